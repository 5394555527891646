"""One row of a table beside the others: which differences are larger than seed noise, in words.

Values are percent of the table's metric; everything here is a pure function of numbers.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from scipy.special import stdtrit
from tabulate import tabulate

from benchmarks.reporting import statistics
from benchmarks.reporting.statistics import CONFIDENCE, Difference
from benchmarks.reporting.tables import AVERAGE

# A difference below this counts as none. Nobody should choose a method by less: the test resolution
# alone moves published numbers by twice as much (PITFALLS.md).
MARGIN = 1.0
Values = Mapping[str, Mapping[int, float]]  # column key -> seed -> percent


def larger_than_noise(found: Difference | None) -> str:
    """Whether a difference is larger than what another seed would change.

    Returns:
        "yes, better" or "yes, worse": the 95 % interval excludes 0. "no": it contains 0 and lies
        within `MARGIN` of it. "cannot tell with n seeds": neither. "-": nothing to compare.
    """
    if found is None:
        return "-"
    if found.excludes_zero:
        return "yes, better" if found.mean > 0 else "yes, worse"
    if found.low is not None and found.low >= -MARGIN and found.high <= MARGIN:
        return "no"
    return f"cannot tell with {found.n} seed{'' if found.n == 1 else 's'}"


def stands_among(found: Difference, comparisons: int) -> bool:
    """Whether a paired difference excludes 0 after Bonferroni's correction.

    The interval is widened to the level 1 - 0.05 / comparisons.
    """
    if not found.excludes_zero:
        return False
    level, freedom = (1 - CONFIDENCE) / 2, found.n - 1
    widen = stdtrit(freedom, 1 - level / comparisons) / stdtrit(freedom, 1 - level)
    return abs(found.mean) > widen * (found.high - found.low) / 2


def best(values: Mapping[str, Values], labels: Sequence[str]) -> str | None:
    """The label with the highest mean Avg among those with most seeds; None without values."""
    seeds = {label: values[label][AVERAGE] for label in labels if values[label][AVERAGE]}
    most = max(map(len, seeds.values()), default=0)
    means = {k: sum(v.values()) / len(v) for k, v in seeds.items() if len(v) == most}
    return max(means, key=means.__getitem__, default=None)


def report(
    label: str, reference: str, headings: Mapping[str, str], values: Mapping[str, Values]
) -> str:
    """The verdict in Markdown: per column against two rows, and on Avg against every row.

    Args:
        label: the row in question.
        reference: the row that differences in the table are taken to.
        headings: column key -> heading, Avg among them.
        values: label -> column key -> seed -> percent, in the order of the rows.
    """
    others = [other for other in values if other != label]
    strongest = best(values, others)
    if strongest is None or not values[label][AVERAGE]:
        who = label if strongest else "any baseline"
        return f"No verdict: no scores of {who} to compare; the table says why.\n"
    chosen = {reference: "the table's reference row", strongest: "the best baseline on Avg"}
    if reference == strongest:
        chosen[reference] = "the table's reference row, and the best baseline on Avg"
    parts = []
    for other, what in chosen.items():
        if other in others:
            rows = [
                [name, *_cells(_versus(values, label, other, key))]
                for key, name in headings.items()
            ]
            parts += [f"Against {other}, {what}:", _table(["domain", *_COLUMNS], rows)]
    averages = {other: _versus(values, label, other, AVERAGE) for other in others}
    rows = [[other, *_cells(found)] for other, found in averages.items()]
    parts += ["Against every row, on Avg:", _table(["row", *_COLUMNS], rows)]
    found = [each for each in averages.values() if each is not None]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in _notes(found))]) + "\n"


_COLUMNS = ("difference [95 % interval]", "larger than seed noise")


def _versus(values: Mapping[str, Values], label: str, other: str, key: str) -> Difference | None:
    return statistics.paired(values[label][key], values[other][key])


def _cells(found: Difference | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    interval = "" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    return [f"{found.mean:+.2f}{interval}", larger_than_noise(found)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)


def _notes(averages: Sequence[Difference]) -> list[str]:
    """How to read the verdict; `averages` are the differences on Avg to every row."""
    lines = [
        "difference: mean over the seeds that both rows have, paired by seed, Student's t; yes = "
        f"the interval excludes 0; no = it contains 0 and lies within ±{MARGIN:g} point, half of "
        "what the test resolution alone moves; cannot tell = neither",
        "the best baseline was found on these same scores, so luck has lifted it: not to beat it "
        "is weaker evidence than to beat it",
    ]
    widths = [(each.high - each.low) / 2 for each in averages if each.low is not None]
    if widths:
        lines.append(
            f"a difference on Avg below about {median(widths):.2f} cannot be told from noise here "
            "(median half width of the intervals)"
        )
    count = len(widths)
    if count > 1:
        apart = [each for each in averages if each.excludes_zero]
        stand = sum(stands_among(each, count) for each in apart)
        lines.append(
            f"{count} comparisons on Avg, {len(apart)} larger than seed noise: were there no "
            f"difference at all, about {(1 - CONFIDENCE) * count:.1f} would look so by chance; "
            f"{stand} still {'does' if stand == 1 else 'do'} with intervals corrected for "
            f"{count} comparisons (Bonferroni); the lines per domain are not corrected"
        )
    lines.append("seeds vary the head, the adapter and the order of the data, not the backbone")
    return lines
