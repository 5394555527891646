"""Tables as text for a terminal, Markdown, HTML, LaTeX, CSV and JSON."""

import csv
import io
import json
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.errors import UserError, closest
from benchmarks.report import statistics
from benchmarks.report.notes import comparisons
from benchmarks.report.spec import AVERAGE_ALL, SOURCE
from benchmarks.report.statistics import WITHIN, WORDS, Difference, Summary, agreement, verdict
from benchmarks.report.table import Block, Row, Table

FORMATS = ("text", "md", "csv", "tex", "html", "json")
WRITTEN = ("md", "csv", "tex", "html")  # what a folder of tables holds
WIDTH = 80  # of a terminal, in characters
_HEADING = 6  # characters of a narrow column's heading, where the table names none
_LABEL = 8  # characters of a row's name that are always shown


@dataclass(frozen=True)
class Layout:
    """How much of a table is shown; CSV and JSON are always whole.

    Attributes:
        columns: keys, in order; () leaves the choice to the format.
        wide: text with all columns, however long its lines get.
        notes: text with what stands below a table in the other formats.
        paths: text that names the records behind each row.
    """

    columns: tuple[str, ...] = ()
    wide: bool = False
    notes: bool = False
    paths: bool = False


WHOLE = Layout()
# Headings of columns of words.
_LEFT = ("method", "verdict", "published", "against", "class", "image", "worst", "detections")


def render(table: Table, form: str, layout: Layout = WHOLE) -> str:
    """The text of a table in one of `FORMATS`, ending in a newline.

    Raises:
        UserError: the layout asks for a column that the table does not have.
    """
    known = ("method", *_FIRST, *table.headings, *_LAST)
    for key in layout.columns:
        if key not in known:
            raise UserError(f"{table.name}: no column {key!r}{closest(key, known)}")
    if form in ("csv", "json"):
        return as_csv(table) if form == "csv" else as_json(table)
    return {"text": text, "md": markdown, "tex": latex, "html": html}[form](table, layout)


def text(table: Table, layout: Layout = WHOLE) -> str:
    """For a terminal: no line beyond `WIDTH` columns, unless columns are asked for.

    Standard deviations, and then whole columns, are left out where they do not fit.
    """
    lines = [*_wrapped(table.title)]
    for block in table.blocks:
        # The protocol's own rule is among the notes.
        about = _about(table, block).removesuffix(f", selection {table.protocol.selection}")
        lines += _wrapped(f"{table.protocol.name}: {about}")
        if layout.wide or layout.columns:
            lines += grid(_columns(table, block, layout.columns or _all_keys(table, block)))
        else:
            lines += grid(_narrow(table, block))
        also = f". Recorded too: placement {', '.join(table.others)} (--placement both)"
        counts = block.completeness + (also if table.others else "")
        lines += [*_wrapped(counts), *_wrapped(_agreements(block))]
        if block.pairs:
            lines += [part for line in _who_lines(block) for part in _wrapped(line, "  ")]
        if layout.notes:
            lines += [*_wrapped(block.discrimination), *_wrapped(block.comparisons)]
    if layout.notes:
        below = [*table.notes, *_footnotes(table)]
        lines += [part for line in below for part in _wrapped(f"- {line}", "  ")]
    else:
        lines += _wrapped(table.protocol.note)
    if layout.paths:
        lines += _paths(table)
    return "\n".join(lines) + "\n"


MORE = "More: --notes, --wide"
HINT = "What the numbers mean, published numbers, recipes: --notes; more: `table --wide`"


def _about(table: Table, block: Block) -> str:
    """What the numbers of a block are."""
    if block.released:
        metric = f"{table.spec.metric} in %"
        return f"{metric}; released weights, {block.selection}; outside of all differences"
    return f"{_measured(table)}; {_where(block)}, selection {block.selection}"


def _measured(table: Table) -> str:
    """Metric, seeds and engine, in a few words."""
    seeds = f"mean of {len(table.seeds)} seeds" if len(table.seeds) > 1 else "one seed"
    engine = "".join(f", engine {name}" for name in table.engines)
    return f"{table.spec.metric} in %, {seeds}{engine}"


def wrapped(markdown: str) -> str:
    """Markdown whose paragraphs and items fit `WIDTH`; its tables stay as they are."""
    lines = []
    for line in markdown.splitlines():
        if line.startswith("|") or not line:
            lines.append(line)
        else:
            lines += _wrapped(line, "  " if line.startswith("- ") else "")
    return "\n".join(lines) + "\n"


def _wrapped(line: str, indent: str = "") -> list[str]:
    # Names with hyphens and paths are there to be copied: they stay in one piece.
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side, the first row being their headings; numbers to the right."""
    # Without the stars of Markdown, which a terminal shows and which would count as width.
    plain = [[_bold(cell, "", "") for cell in row] for row in rows]
    columns = []
    for cells in zip(*plain, strict=True):
        width = max(map(len, cells))
        left = not cells[0] or cells[0].startswith(_LEFT)
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _narrow(table: Table, block: Block) -> list[list[str]]:
    """Headings and rows that fit `WIDTH`, with fewer columns and at last shorter names."""
    rows: list[list[str]] = []
    for keys in _fewer(table, block):
        rows = _columns(table, block, keys, "means")
        # Names that the table chose for narrow columns fit; those of domains may be of any length.
        named = table.headings.keys() - table.spec.short.keys()
        rows[0] = [
            _cut(h, _HEADING) if key in named else h for h, key in zip(rows[0], keys, strict=True)
        ]
        longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
        over = sum(longest) + 2 * (len(longest) - 1) - WIDTH
        if over <= 0:
            return rows
    room = max(_LABEL, longest[0] - over)
    return [[_cut(row[0], room), *row[1:]] for row in rows]


def _fewer(table: Table, block: Block) -> list[list[str]]:
    """Keys of the columns of a narrow table, and again with fewer and fewer of them."""
    scores = list(table.headings)
    extras = [key for key in scores if key not in table.spec.headings]
    keys = ["method", "n", "trainable", *scores, "difference", "verdict"]
    # The line above the block says how many seeds there are; a column does where rows differ.
    alike = len({row.n for row in block.rows if row.n}) < 2
    never = {SOURCE, *extras, *(["n"] if alike else [])}
    never |= {"n", "difference", "verdict"} if block.released else set()
    steps = [never]
    for key in ("trainable", AVERAGE_ALL, *table.spec.sources):
        steps.append(steps[-1] | {key})
    return [[key for key in keys if key not in without] for without in steps]


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _agreements(block: Block) -> str:
    """Which rows agree with the committed records; "" where none is compared."""
    words: dict[str, list[str]] = {}
    for row in block.rows:
        if row.agreement:
            words.setdefault(agreement(row.agreement), []).append(row.label)
    if not words:
        return ""
    parts = [
        f"{len(rows)} {'agree' if word == 'agrees' else word}"
        + ("" if word == "agrees" else f" ({', '.join(rows)})")
        for word, rows in words.items()
    ]
    return f"Against the committed records: {', '.join(parts)}"


def _paths(table: Table) -> list[str]:
    """One line per record: row and file, as a path from here where that is shorter."""
    lines = ["Records behind the rows (`show PATH` prints one):"]
    for block in table.blocks:
        for row in block.rows:
            for record in row.kept:
                lines.append(f"{row.label}  {_place(table, record.digest, record.path)}")
    return lines


def _place(table: Table, digest: str, otherwise: Path) -> str:
    path = table.places.get(digest, otherwise)
    # A path from here may be the longer one, with a row of "..".
    return min(str(path), os.path.relpath(path) if path.is_absolute() else str(path), key=len)


def _footnotes(table: Table) -> list[str]:
    """Where published numbers come from, with the numbers of each row."""
    rows = {row.label: row.published for block in table.blocks for row in block.rows}
    keys = [key for key in table.headings if any(key in own for own in rows.values())]
    columns = " / ".join(table.headings[key] for key in keys)
    lines = []
    for letter, source in table.footnotes.items():
        cited = []
        for label, own in rows.items():
            numbers = [own[key][0] if own.get(key, "")[1:] == (letter,) else "-" for key in keys]
            if any(number != "-" for number in numbers):
                cited.append(f"{label} {' / '.join(numbers)}")
        lines.append(f"[{letter}] {source}. {columns}: {', '.join(cited)}")
    return lines


def _who_lines(block: Block) -> list[str]:
    lines = [f"{comparisons(block.pairs, 'Avg, all pairs of rows')}:"]
    for label, *groups in _who(block):
        told = [
            f"{word} {rows}" for word, rows in zip(_WHO[1:], groups, strict=True) if rows != "-"
        ]
        lines.append(f"{label}: {'; '.join(told)}")
    return lines


def markdown(table: Table, layout: Layout = WHOLE) -> str:
    """For people: percent with one decimal, words and lines below each block."""
    parts = [f"# {table.title}"]
    for block in table.blocks:
        headings, *rows = _columns(table, block, layout.columns or _all_keys(table, block))
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


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.4 sans-serif;margin:1em}}div{{overflow-x:auto}}
table{{border-collapse:collapse}}caption{{text-align:left}}
th,td{{padding:.2em .6em;text-align:right;white-space:nowrap;border-bottom:1px solid #ccc}}
th:first-child{{text-align:left}}</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def html(table: Table, layout: Layout = WHOLE) -> str:
    """One page without scripts, of what `markdown` shows."""
    parts = []
    for block in table.blocks:
        headings, *rows = _columns(table, block, layout.columns or _all_keys(table, block))
        head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
        body = "\n".join(
            f'<tr><th scope="row">{escape(first)}</th>'
            + "".join(f"<td>{_bold(escape(cell), '<b>', '</b>')}</td>" for cell in cells)
            + "</tr>"
            for first, *cells in rows
        )
        parts.append(
            f"<div><table><caption>{escape(_heading(block))}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )
        below = [block.completeness, block.discrimination, block.comparisons]
        below += _who_lines(block) if block.pairs else []
        parts += [f"<p>{escape(line)}</p>" for line in below]
    lines = [*table.notes, *(f"[{letter}] {text}" for letter, text in table.footnotes.items())]
    parts.append("<ul>" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    return _HTML.format(title=escape(table.title), body="\n".join(parts))


def _bold(text: str, start: str, end: str) -> str:
    """Text in which **words** stand between `start` and `end`."""
    return re.sub(r"\*\*(.+?)\*\*", lambda match: f"{start}{match[1]}{end}", text)


_FIRST = ("n", "trainable", "s_per_step")
_LAST = ("difference", "verdict", "published", "agreement")


def _all_keys(table: Table, block: Block) -> list[str]:
    """Keys of the columns that have something to say; the verdict stands beside the difference."""
    if block.released:
        return ["method", "trainable", *table.headings]
    # How long a step took says how busy a machine was; Table 5 says what a method costs.
    keys = ["method", "n", "trainable", *table.headings, "difference"]
    keys += ["published"] if _published_keys(table, block) else []
    return keys + (["agreement"] if table.against else [])


def _columns(
    table: Table, block: Block, keys: Sequence[str], style: str = "whole"
) -> list[list[str]]:
    """The row of headings, and the rows of a block for people.

    Args:
        table: of the block.
        block: whose rows are shown.
        keys: of the columns; the names of the rows stand first in any case.
        style: "whole"; "short" has rounded counts and narrow headings; "means" no deviations too.
    """
    keys = ["method", *(key for key in keys if key != "method")]
    rows = [[_cell(table, block, row, keys, style, key) for key in keys] for row in block.rows]
    return [[_column_heading(table, block, key, style) for key in keys], *rows]


def _column_heading(table: Table, block: Block, key: str, style: str) -> str:
    whole = {
        "s_per_step": "s/step",
        "difference": f"Avg - {table.reference}",
        "published": f"published {' / '.join(_published_keys(table, block).values())}",
        "agreement": "against committed records",
    } | table.headings
    if style == "whole":
        return whole.get(key, key)
    short = {"trainable": "params", "difference": f"vs {table.reference} [95 %]"}
    return (short | table.spec.short).get(key, whole.get(key, key))


def _published_keys(table: Table, block: Block) -> dict[str, str]:
    """Key -> heading of the columns for which a row of the block has a published number."""
    held = {key for row in block.rows for key in row.published}
    return {key: heading for key, heading in table.headings.items() if key in held}


def _cell(table: Table, block: Block, row: Row, keys: Sequence[str], style: str, key: str) -> str:
    """One cell; **bold** marks a difference that stands."""
    if key == "method":
        return row.label
    if key == "n":
        return "-" if block.released else str(row.n)
    if key == "published":
        return _published(row, list(_published_keys(table, block)))
    if key == "verdict":
        return (
            "baseline"
            if row.baseline
            else _or_state(row, row.difference and verdict(row.difference))
        )
    if key == "difference" and row.baseline:
        return "(baseline)" if style == "whole" else "-"
    return _or_state(row, _value(row, key, style, "verdict" in keys or style != "whole"))


def _value(row: Row, key: str, style: str, bare: bool) -> str | None:
    """A number of a row; None where there is none. A `bare` difference stands without its word."""
    if key == "trainable":
        count = row.trainable
        return None if count is None else f"{count:,}" if style == "whole" else rounded(count)
    if key == "s_per_step":
        return None if row.seconds_per_step is None else f"{row.seconds_per_step:.3f}"
    if key == "difference":
        return _versus(row.difference, row.n, bare)
    if key == "agreement":
        return _agreement(row.agreement)
    return _score(row.scores[key], style != "means")


def rounded(count: int) -> str:
    """A count in three characters or so: 176k, 1.8M, 304M."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{int(count < 10 * unit and sign != 'k')}f}{sign}"
    return str(count)


def latex(table: Table, layout: Layout = WHOLE) -> str:
    """One float per block, with caption, label and notes; packages booktabs and threeparttable.

    It is as wide as a column where that holds the columns, else as a page (`table*`), for which
    columns are left out that were not asked for. What does not fit the notes stands in comments.
    """
    parts = [
        f"% {table.title}\n% \\usepackage{{booktabs,threeparttable}}",
        "\n".join(f"% {note}" for note in table.notes),
    ]
    return "\n\n".join([*parts, *(_float(table, block, layout) for block in table.blocks)]) + "\n"


# Points. Text of single-column classes is 397 wide (NeurIPS, ICLR), columns of others 229 to 252.
_COLUMN, _PAGE, _GAP = 229.0, 397.0, 6.0


def _float(table: Table, block: Block, layout: Layout) -> str:
    """A block as a table of LaTeX."""
    keys, rows, room = _fitting(table, block, layout.columns)
    environment = "table" if room == _COLUMN else "table*"
    # LaTeX counts tables itself.
    title = re.sub(r"^Table \w+\. ", "", table.title).removesuffix(".")
    what = _about(table, block)
    bold = (
        f". Bold: best of all rows and differences to {table.reference} that noise does not explain"
    )
    bold = "" if block.released else bold
    published = _footnotes(table)
    below = [block.completeness, block.comparisons, *(published if room == _PAGE else ())]
    below += [table.protocol.note] if table.protocol.note else []
    below += _who_lines(block) if block.pairs else []
    # \ref takes no comma, space or bracket of a block's name.
    label = re.sub(r"[^\w.-]", "-", f"{table.name}-{table.protocol.profile}-{block.name}")
    wanted = layout.columns or _all_keys(table, block)
    without = [key for key in wanted if key not in (*keys, "method")]
    return "\n".join(
        [
            *([f"% left out, too wide or below: {', '.join(without)}"] if without else []),
            *(f"% {line}" for line in published if room == _COLUMN),  # a column is too short
            f"\\begin{{{environment}}}[t]",
            f"\\centering\\footnotesize\\sloppy\\setlength{{\\tabcolsep}}{{{_GAP / 2:g}pt}}",
            "\\begin{threeparttable}",
            f"\\caption{{{tex(f'{title}. {what}{bold}.')}}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{@{{}}l{'r' * (len(rows[0]) - 1)}@{{}}}}",
            "\\toprule",
            _tex_row(rows[0]),
            "\\midrule",
            *map(_tex_row, rows[1:]),
            "\\bottomrule",
            "\\end{tabular}",
            "\\begin{tablenotes}[flushleft]\\scriptsize",
            *(f"\\item {{{tex(line)}}}" for line in below),
            "\\end{tablenotes}",
            "\\end{threeparttable}",
            f"\\end{{{environment}}}",
        ]
    )


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def _fitting(
    table: Table, block: Block, asked: Sequence[str]
) -> tuple[list[str], list[list[str]], float]:
    """Keys and rows of a LaTeX table, headings first, and the points that they fit into.

    Of the columns that are asked for, the last ones go where a page cannot hold them.
    """
    fewer = [list(asked[:count]) for count in range(len(asked), 0, -1)] or _fewer(table, block)
    # A page unless it all fits a column: one with less is for those who choose its columns.
    tries = [(fewer[0], style, _COLUMN) for style in ("short", "means")[: 1 + bool(asked)]]
    tries += [(keys, style, _PAGE) for keys in fewer for style in ("short", "means")]
    # Of all rows, so that bold does not depend on the columns that fit.
    best = {key: _best(block, key) for key in table.headings}
    for keys, style, room in tries:
        names = ["method", *(key for key in keys if key != "method")]
        rows = _columns(table, block, names, style)
        for row in rows[1:]:
            label = row[0]
            row[:] = [
                f"**{cell}**" if best.get(key) == label else cell
                for key, cell in zip(names, row, strict=True)
            ]
        if _points(rows) <= room:
            return names, rows, room
    while _points(rows) > room and (longest := max(len(row[0]) for row in rows)) > _LABEL:
        rows = [[_cut(row[0], longest - 1), *row[1:]] for row in rows]
    return names, rows, room


def _best(block: Block, key: str) -> str | None:
    """The row that is better than every other one in a column, all pairs judged together."""
    values = {label: own[key] for label, own in block.values.items() if own[key]}
    means = {label: sum(own.values()) / len(own) for label, own in values.items()}
    if len(means) < 2:
        return None
    first = max(means, key=means.__getitem__)
    labels = [first, *(label for label in values if label != first)]
    # All pairs: the first was chosen on these scores, so intervals against it alone would be short.
    judged = statistics.judge(values, [*combinations(labels, 2)]).differences
    beaten = [verdict(judged.get((first, label))) == "better" for label in values if label != first]
    return first if all(beaten) else None


_NARROW, _BROAD = frozenset("ijlt.,:;'|![]()fr -/"), frozenset("mwMW+±%@&")


def _points(rows: Sequence[Sequence[str]]) -> float:
    """Width of a tabular set in 8 pt Computer Modern, rather too large than too small."""
    columns = zip(*rows, strict=True)
    widths = [max(_points_of(cell) for cell in column) for column in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def _points_of(cell: str) -> float:
    plain = _bold(cell, "", "")
    # Three classes are enough: a width that is too large costs a column, one too small the margin.
    minus = len(re.findall(_MINUS, plain))
    width = sum(
        2.9 if sign in _NARROW else 6.9 if sign in _BROAD or sign.isupper() else 4.4
        for sign in plain.replace(" ± ", "±")
    )
    return (width + 4.0 * minus) * (1.17 if plain != cell else 1.0)


def as_csv(table: Table) -> str:
    """One row per method (or pair of them) and block, full precision, empty for nothing."""
    rows = _flat(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else (), lineterminator="\n")
    writer.writeheader()
    # Lists, which JSON keeps, are parted by spaces.
    joined = [
        {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
        for row in rows
    ]
    writer.writerows(joined)
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
                # With pairs, lines are differences between two rows, and no rows of their own.
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
            flat["seeds"] = [record.seed for record in row.records]
            flat["digests"] = [record.digest for record in row.kept]
            flat["records"] = [_place(table, r.digest, r.path) for r in row.kept]
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


def _or_state(row: Row, text: str | None) -> str:
    """The text, or why there is none: "-" missing, "failed", "n/a"."""
    if text is not None:
        return text
    return row.state if row.state in ("failed", "n/a") else "-"


def _score(score: Summary | None, deviation: bool) -> str | None:
    if score is None:
        return None
    shown = deviation and score.sd is not None
    return f"{score.mean:.1f}" + (f" ± {score.sd:.1f}" if shown else "")


def _interval(result: Difference) -> str:
    if result.low is None or result.high is None:
        return f"{_signed(result.mean)}"
    return f"{_signed(result.mean)} [{_signed(result.low)}, {_signed(result.high)}]"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    # What rounds to nothing has no sign.
    return "0.0" if text in ("+0.0", "-0.0") else text


def _versus(result: Difference | None, n: int, bare: bool) -> str | None:
    """The difference of a row that has `n` seeds, of which the reference row may lack some."""
    if result is None:
        return None
    text = _interval(result)
    marked = f"**{text}**" if result.excludes_zero else text
    if bare:
        return marked
    # A row's n does not say how many seeds it shares with the reference.
    fewer = f" ({result.n} pair{'s' * (result.n > 1)})" if result.n < n else ""
    return f"{marked} {verdict(result)}{fewer}"


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
    # One source for all numbers is named once, at the end.
    if len(letters) == 1:
        return " / ".join(e[0] if e else "-" for e in entries) + f" [{letters.pop()}]"
    return " / ".join(f"{e[0]} [{e[1]}]" if e else "-" for e in entries)


def _where(block: Block) -> str:
    return f"factor {block.factor}" if block.factor else f"placement {block.placement}"


def _heading(block: Block) -> str:
    if block.released:
        return f"Released weights, {block.selection}"
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
_TEX |= {char: f"\\{char}" for char in "&%$#_{}"} | {
    "±": r"${\pm}$",
    "->": r"$\to$",
    "\N{MINUS SIGN}": "$-$",
}
_TEX |= {"<": r"$<$", ">": r"$>$"}


# The sign of a number, not the hyphen in a name or a range.
_MINUS = r"(?<![\w.)-])-(?=\d)"


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped and **bold** turned into a command."""
    text = re.sub(_MINUS, "\N{MINUS SIGN}", text.replace(" ± ", "±"))
    # In one pass, so that no replacement is escaped again, and -> is met before >.
    pattern = "|".join(re.escape(key) for key in sorted(_TEX, key=len, reverse=True))
    escaped = re.sub(pattern, lambda match: _TEX[match.group()], text)
    return _bold(escaped, r"\textbf{", "}")
