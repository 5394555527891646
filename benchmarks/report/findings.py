"""What the rows of a block say, in sentences whose numbers and words come from the judgement."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

from benchmarks.report.spec import AVERAGE, SOURCE
from benchmarks.report.statistics import WORDS, Difference, judge, verdict
from benchmarks.report.table import Block

Seeds = Mapping[int, float]  # seed -> percent
Columns = Mapping[str, Mapping[str, Seeds]]  # row -> column key -> seed -> percent
MANY = 6  # names in a row that a reader would skip
Differences = Mapping[tuple[str, str], Difference | None]


def findings(block: Block) -> list[str]:
    """At most three sentences; none that the records do not support.

    The best row on the source and the best on unseen domains are chosen on the scores, so they are
    judged against every row with intervals that hold together over all pairs of rows; against the
    reference on unseen domains as the table judges them, so that no sentence contradicts it.
    """
    reference, resolved = baseline(block), {row.label: row.difference for row in block.rows}
    unseen = _judged(block.values, AVERAGE)
    for label, result in resolved.items():
        if result:
            unseen |= {(label, reference): result, (reference, label): _turned(result)}
    said = [
        best_on_source(block.values, unseen),
        best_unseen(block.values, unseen, reference),
        against(resolved, reference),
    ]
    return [sentence for sentence in said if sentence]


def best_on_source(values: Columns, unseen: Differences) -> str | None:
    """Who leads on the source, and what that is worth on unseen domains; None: nobody leads.

    `unseen` are the differences on unseen domains between all rows, in both directions.
    """
    best = _leader(values, SOURCE)
    beaten = _rivals(_judged(values, SOURCE), best, "better")
    if not beaten:
        return None
    worse, better = (_rivals(unseen, best, word) for word in ("worse", "better"))
    says = [
        f"{word} than {_among(rivals, values)}"
        for word, rivals in (("worse", worse), ("better", better))
        if rivals
    ]
    if worse:
        highest = max(worse, key=lambda label: _mean(values[label][AVERAGE]))
        to = f" to {highest}" if len(worse) > 1 else ""
        # `worse` is the first of `says`.
        says[0] += f" ({_interval(unseen[best, highest])}{to})"
    return (
        f"On held-out images of the source {best} scores highest ({_mean(values[best][SOURCE]):.1f}"
        f"), better than {_among(beaten, values)}; on unseen domains "
        f"{'it is ' * bool(says)}{' and '.join(says) or 'the records tell it from no row'}"
    )


def best_unseen(values: Columns, unseen: Differences, reference: str) -> str | None:
    """Who leads on unseen domains; None: the records tell the highest mean from no other.

    None too where the reference leads: what `against` says is the same then.
    """
    best = _leader(values, AVERAGE)
    beaten = _rivals(unseen, best, "better")
    if not beaten or best == reference:
        return None
    rest = [label for label in values if label not in (best, *beaten) and values[label][AVERAGE]]
    # Rows from which the best cannot be told are named: silence would rank them.
    unknown = f"; of {listed(rest)} the records cannot tell" if rest else ""
    return (
        f"On unseen domains {best} has the highest mean ({_mean(values[best][AVERAGE]):.1f}): "
        f"better than {_among(beaten, values)}{unknown}"
    )


def against(differences: Mapping[str, Difference | None], reference: str) -> str | None:
    """Which rows differ from the reference on unseen domains; None: there is none to judge."""
    words = {label: verdict(result) for label, result in differences.items() if label != reference}
    by_word = {word: [label for label in words if words[label] == word] for word in WORDS}
    *told, unknown = by_word.values()
    parts = [
        f"{listed(labels)} {'is' if len(labels) == 1 else 'are'} {word}"
        for word, labels in zip(WORDS, told, strict=False)
        if labels
    ]
    if unknown:
        many = f"the {'other ' * bool(parts)}{len(unknown)} rows"
        who = many if len(unknown) > MANY else listed(unknown)
        parts.append(f"of {who} the records cannot tell")
    return f"Against {reference}, on unseen domains: {'; '.join(parts)}" if parts else None


def gains(block: Block) -> list[dict[str, Any]]:
    """Every row minus the reference, on the source and on unseen domains, judged per column.

    Rows with the highest difference on unseen domains come first.
    """
    reference, points = baseline(block), []
    rows = [row for row in block.rows if row.difference]
    rows.sort(key=lambda row: (-row.difference.mean, row.label))
    source = {label: columns[SOURCE] for label, columns in block.values.items()}
    pairs = [(row.label, reference) for row in rows]
    held_out = judge(source, pairs).differences if reference in source else {}
    for where, results in (
        ("held-out source", held_out),
        ("unseen domains", {(row.label, reference): row.difference for row in rows}),
    ):
        for pair in pairs:
            if result := results.get(pair):
                ends = {"mean": result.mean, "low": result.low, "high": result.high}
                numbers = {k: None if v is None else round(v, 3) for k, v in ends.items()}
                points.append(
                    {"where": where, "method": pair[0], **numbers, "verdict": verdict(result)}
                )
    return points


def baseline(block: Block) -> str:
    """The row of a block that differences are taken to; "" where it is not among its rows."""
    return next((row.label for row in block.rows if row.baseline), "")


def listed(labels: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def _leader(values: Columns, column: str) -> str:
    """The row with the highest mean of a column; "" of none."""
    means = {label: _mean(own[column]) for label, own in values.items() if own[column]}
    return max(means, key=means.__getitem__, default="")


def _judged(values: Columns, column: str) -> dict[tuple[str, str], Difference | None]:
    """All ordered pairs of rows; intervals hold together over them."""
    scored = {label: own[column] for label, own in values.items() if own[column]}
    # The leader was picked on these scores, so its intervals have to hold over all pairs.
    judged = judge(scored, [*combinations(scored, 2)]).differences
    return judged | {(b, a): _turned(result) for (a, b), result in judged.items() if result}


def _turned(result: Difference) -> Difference:
    # The ends change places with the sign.
    low, high = (None if end is None else -end for end in (result.high, result.low))
    return replace(result, mean=-result.mean, low=low, high=high)


def _rivals(judged: Differences, label: str, word: str) -> list[str]:
    """The rows that a row is better, or worse, than."""
    return [b for (a, b), result in judged.items() if a == label and verdict(result) == word]


def _among(rivals: Sequence[str], values: Columns) -> str:
    others = len(values) - 1
    return f"all {others} other rows" if len(rivals) == others > 1 else listed(rivals)


def _interval(result: Difference) -> str:
    return f"{result.mean:+.1f} [{result.low:+.1f}, {result.high:+.1f}]"


def _mean(seeds: Seeds) -> float:
    return fmean(seeds.values())
