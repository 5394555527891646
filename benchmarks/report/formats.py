"""Tables as Markdown, LaTeX, CSV and JSON text."""

import csv
import io
import json
import re
from typing import Any

from tabulate import tabulate

from benchmarks.report.notes import comparisons
from benchmarks.report.statistics import WITHIN, WORDS, Difference, Summary, agreement, verdict
from benchmarks.report.table import Block, Row, Table

FORMATS = ("md", "csv", "tex", "json")


def render(table: Table, form: str) -> str:
    """The text of a table in one of `FORMATS`, ending in a newline."""
    return {"md": markdown, "csv": as_csv, "tex": latex, "json": as_json}[form](table)


def markdown(table: Table) -> str:
    """For people: percent with one decimal, words and lines below each block."""
    parts = [f"# {table.title}"]
    for block in table.blocks:
        headings, rows = _cells(table, block)
        body = tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)
        below = "\n\n".join((block.completeness, block.discrimination, block.comparisons))
        parts += [f"## {_heading(block)}", body, below]
        if block.pairs:
            whole = tabulate(_who(block), _WHO, tablefmt="pipe", disable_numparse=True)
            parts += [whole, comparisons(block.pairs, "Avg, all pairs of rows")]
    parts.append("\n".join(f"- {note}" for note in table.notes))
    if table.footnotes:
        lines = [f"- [{letter}] {text}" for letter, text in table.footnotes.items()]
        parts.append("Published numbers:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """One booktabs tabular per block, notes as a list below; needs the package booktabs."""
    parts = [f"% {table.title}"]
    for block in table.blocks:
        headings, rows = _cells(table, block)
        lines = [
            f"\\paragraph{{{_tex(_heading(block))}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            "\\toprule",
            " & ".join(_tex(heading) for heading in headings) + r" \\",
            "\\midrule",
            *(" & ".join(_tex(cell) for cell in row) + r" \\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
            "",
            f"{_tex(block.completeness)}. {_tex(block.discrimination)}.",
            f"{_tex(block.comparisons)}.",
        ]
        if block.pairs:
            lines += [
                "",
                f"\\begin{{tabular}}{{l*{{{len(_WHO) - 1}}}{{p{{3cm}}}}}}",
                " & ".join(_WHO) + r" \\",
                *(" & ".join(_tex(cell) for cell in row) + r" \\" for row in _who(block)),
                "\\end{tabular}",
                "",
                f"{_tex(comparisons(block.pairs, 'Avg, all pairs of rows'))}.",
            ]
        parts.append("\n".join(lines))
    notes = [*table.notes, *(f"[{letter}] {text}" for letter, text in table.footnotes.items())]
    items = "\n".join(f"\\item {{{_tex(note)}}}" for note in notes)
    parts.append(f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
    return "\n\n".join(parts) + "\n"


def as_csv(table: Table) -> str:
    """One row per method (or pair of them) and block, full precision, empty for nothing."""
    rows = _flat(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(table: Table) -> str:
    """A list of the rows of `as_csv` under the same names; null where there is nothing."""
    return json.dumps(_flat(table), indent=1) + "\n"


def _flat(table: Table) -> list[dict[str, Any]]:
    several = len({block.selection for block in table.blocks}) > 1
    rows = []
    for block in table.blocks:
        if block.pairs:
            for (method, other), result in block.pairs.differences.items():
                pair = {"placement": block.placement, "method": method, "other": other}
                chosen = {"selection": block.selection} if several else {}
                rows.append(pair | _judged(result) | chosen)
            continue
        for row in block.rows:
            flat: dict[str, Any] = {
                **({"factor": block.factor} if block.factor else {}),
                "placement": block.placement,
                "method": row.label,
                "n": row.n,
                "trainable": row.trainable,
                "s_per_step": row.seconds_per_step,
            }
            for key in table.headings:
                score = row.scores[key]
                flat[f"{key}_mean"] = score.mean if score else None
                flat[f"{key}_sd"] = score.sd if score else None
                flat[f"{key}_published"] = (
                    float(row.published[key][0]) if key in row.published else None
                )
            flat |= _judged(row.difference)
            flat["paired_low"] = row.paired.low if row.paired else None
            flat["paired_high"] = row.paired.high if row.paired else None
            if table.against:
                flat["agreement"] = agreement(row.agreement) if row.agreement else None
            if several:
                flat["selection"] = block.selection
            rows.append(flat)
    return rows


def _judged(result: Difference | None) -> dict[str, Any]:
    return {
        "difference": result.mean if result else None,
        "difference_low": result.low if result else None,
        "difference_high": result.high if result else None,
        "verdict": verdict(result) if result else None,
    }


_WHO = ("row", "better than", "worse than", f"{WITHIN} of", "cannot tell from")


def _who(block: Block) -> list[list[str]]:
    """Per row, the rows that it is better than, worse than, within the margin of, or neither."""
    words: dict[str, dict[str, list[str]]] = {row.label: {} for row in block.rows}
    opposite = {"better": "worse", "worse": "better"}
    for (a, b), result in block.pairs.differences.items():
        word = verdict(result)
        words[a].setdefault(word, []).append(b)
        words[b].setdefault(opposite.get(word, word), []).append(a)
    order = [row.label for row in block.rows]
    return [
        [label, *(", ".join(sorted(own.get(word, []), key=order.index)) or "-" for word in WORDS)]
        for label, own in words.items()
    ]


def _cells(table: Table, block: Block) -> tuple[list[str], list[list[str]]]:
    """Headings and texts of a block for people."""
    published = [key for key in table.headings if any(key in row.published for row in block.rows)]
    headings = ["method", "n", "trainable", "s/step", *table.headings.values()]
    headings.append(f"Avg - {table.reference}")
    if published:
        headings.append(f"published {' / '.join(table.headings[key] for key in published)}")
    if table.against:
        headings.append("against committed records")
    rows = []
    for row in block.rows:
        cells = [row.label, str(row.n)]
        cells.append(_or_state(row, None if row.trainable is None else f"{row.trainable:,}"))
        seconds = row.seconds_per_step
        cells.append(_or_state(row, None if seconds is None else f"{seconds:.3f}"))
        cells += [_or_state(row, _score(row.scores[key])) for key in table.headings]
        cells.append(
            "(baseline)" if row.baseline else _or_state(row, _versus(row.difference, row.n))
        )
        if published:
            cells.append(_published(row, published))
        if table.against:
            cells.append(_or_state(row, _agreement(row.agreement)))
        rows.append(cells)
    return headings, rows


def _or_state(row: Row, text: str | None) -> str:
    """The text, or why there is none: "-" missing, "failed", "n/a"."""
    if text is not None:
        return text
    return row.state if row.state in ("failed", "n/a") else "-"


def _score(score: Summary | None) -> str | None:
    if score is None:
        return None
    return f"{score.mean:.1f}" + (f" ± {score.sd:.1f}" if score.sd is not None else "")


def _interval(result: Difference) -> str:
    if result.low is None or result.high is None:
        return f"{_signed(result.mean)}"
    return f"{_signed(result.mean)} [{_signed(result.low)}, {_signed(result.high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _versus(result: Difference | None, n: int) -> str | None:
    """The difference of a row that has `n` seeds, of which the reference row may lack some."""
    if result is None:
        return None
    text = _interval(result)
    fewer = f" ({result.n} pair{'s' * (result.n > 1)})" if result.n < n else ""
    return f"{f'**{text}**' if result.excludes_zero else text} {verdict(result)}{fewer}"


def _agreement(result: Difference | None) -> str | None:
    if result is None:
        return None
    test = "" if result.paired else " (Welch)"
    return f"{agreement(result)}: {_interval(result)}{test}"


def _published(row: Row, keys: list[str]) -> str:
    """Published numbers in column order, each with its footnote letter where they differ."""
    entries = [row.published.get(key) for key in keys]
    if not any(entries):
        return "-"
    letters = {entry[1] for entry in entries if entry}
    if len(letters) == 1:
        return " / ".join(e[0] if e else "-" for e in entries) + f" [{letters.pop()}]"
    return " / ".join(f"{e[0]} [{e[1]}]" if e else "-" for e in entries)


def _heading(block: Block) -> str:
    if block.factor:
        return f"Factor {block.factor}, selection {block.selection}"
    start = block.start
    where = f"share {start:.3g} of the depth" if isinstance(start, float) else f"{start}"
    every = f"first adapted block of every row: {where}"
    own = "but some rows have a start_block of their own, listed below"
    return (
        f"Placement {block.placement} ({own if start is None else every}), "
        f"selection {block.selection}"
    )


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {char: f"\\{char}" for char in "&%$#_{}"} | {"±": r"$\pm$", "->": r"$\to$"}
_TEX |= {"<": r"$<$", ">": r"$>$"}


def _tex(text: str) -> str:
    """Text with LaTeX's special characters escaped and **bold** turned into a command."""
    pattern = "|".join(re.escape(key) for key in sorted(_TEX, key=len, reverse=True))
    escaped = re.sub(pattern, lambda match: _TEX[match.group()], text)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", escaped)
