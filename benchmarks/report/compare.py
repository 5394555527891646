"""A new method beside fixed baselines: what it may be compared with, and the verdict in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tabulate import tabulate

from benchmarks.cell import Cell, protocol_semantics
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record
from benchmarks.report import notes, statistics
from benchmarks.report import spec as table_spec
from benchmarks.report import table as tables
from benchmarks.report.records import load_records
from benchmarks.report.spec import SOURCE, TableSpec, factor_rows
from benchmarks.report.statistics import Difference, Judgement
from benchmarks.report.table import AVERAGE, check_alike
from benchmarks.sweep import finished

Values = Mapping[str, Mapping[int, float]]  # column key -> seed -> percent


def best(values: Mapping[str, Values], labels: Sequence[str]) -> str | None:
    """The label with the highest mean Avg among those with most seeds; None without values."""
    seeds = {label: values[label][AVERAGE] for label in labels if values[label][AVERAGE]}
    most = max(map(len, seeds.values()), default=0)
    # A row of few seeds leads by luck more easily.
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
    versus = [(label, other) for other in others]
    judged = {
        key: statistics.judge({row: own[key] for row, own in values.items()}, versus)
        for key in dict.fromkeys([*headings, AVERAGE])
    }
    parts = []
    for other, what in chosen.items():
        if other in others:
            rows = [
                [name, *in_words(judged[key].differences[label, other])]
                for key, name in headings.items()
            ]
            parts += [f"Against {other}, {what}:", _table(["domain", *_COLUMNS], rows)]
    rows = [[other, *in_words(judged[AVERAGE].differences[label, other])] for other in others]
    parts += ["Against every row, on Avg:", _table(["row", *_COLUMNS], rows)]
    lines = "\n".join(f"- {line}" for line in _notes(judged[AVERAGE], label))
    return "\n\n".join([*parts, lines]) + "\n"


_COLUMNS = ("difference [95 % interval]", "verdict")


def in_words(result: Difference | None) -> list[str]:
    """A difference with its interval, and its verdict."""
    if result is None:
        return ["-", "-"]
    interval = "" if result.low is None else f" [{result.low:+.2f}, {result.high:+.2f}]"
    return [f"{result.mean:+.2f}{interval}", statistics.verdict(result)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)


def _notes(averages: Judgement, label: str) -> list[str]:
    """How to read the verdict; `averages` are the differences on Avg to every row."""
    lines = [
        f"difference: {notes.HOW}; they hold together over the rows of a column, not over columns",
        notes.comparisons(averages, f"Avg, {label} against every row"),
        "the best baseline was chosen on these same scores, so luck has lifted it: not to beat it "
        "is weaker evidence than to beat it",
    ]
    results = averages.differences.values()
    tested = [result for result in results if result and result.low is not None]
    if tested:
        half = median((result.high - result.low) / 2 for result in tested)
        lines.append(
            f"a difference on Avg below about {half:.2f} cannot be told from noise here "
            "(median half width of the intervals)"
        )
    lines.append("seeds vary the head, the adapter and the order of the data, not the backbone")
    return lines


@dataclass(frozen=True)
class Baselines:
    """What a method is compared with.

    Attributes:
        folder: where the records lie.
        rows: those of all other methods.
        own: the method's own ones among them, by digest, failed ones left out.
    """

    folder: Path
    rows: tuple[Record, ...]
    own: dict[str, Record] = field(default_factory=dict)


def baselines(folder: Path, cells: Sequence[Cell], out: Path, how: str) -> Baselines:
    """The fixed records of the cells' protocol, recipe mode and placements.

    Args:
        folder: of records.
        cells: of the method in question, for all seeds and placements.
        out: folder of the method's records; where it is `folder`, none of them is a committed one.
        how: command that makes such records.

    Raises:
        UserError: there are none, they belong to another version, backbone or other settings of
            the protocol, or a seed of the cells is not among them.
    """
    first = cells[0]
    protocol, placements = first.protocol, dict.fromkeys(cell.placement for cell in cells)
    records = load_records(folder, protocol.name, first.mode) if folder.is_dir() else []
    # Rows of Table 4 are one method many times over; the row in question may be one of them.
    varied = factor_rows(protocol, first.mode) - {first.label}
    records = [r for r in records if r.placement in placements and r.label not in varied]
    mine = [record for record in records if record.label == first.label]
    if folder.resolve() == out.resolve():
        mine = []
    rows = [record for record in records if record.label != first.label]
    remedy = f"make baselines with `{how}` and compare with `--against DIR`"
    for placement in placements:
        here = [record for record in rows if record.placement == placement]
        if not here:
            raise UserError(
                f"{folder}: no baselines of {protocol.name} (placement {placement}, recipe "
                f"{first.mode}) to compare with; {remedy}"
            )
        for record in here:
            _check_settings(record, protocol, folder, remedy)
        seeds = {record.seed for record in here}
        if extra := sorted({cell.seed for cell in cells} - seeds):
            known = ", ".join(map(str, sorted(seeds)))
            raise UserError(
                f"no baseline has seed {', '.join(map(str, extra))}, and differences are paired by "
                f"seed; choose --seeds among {known}"
            )
    check_alike(rows, protocol)
    own = {record.digest: record for record in mine if record.status != "failed"}
    return Baselines(folder, tuple(rows), own)


def with_engine_of(folder: Path, protocol: Protocol, mode: str) -> Protocol:
    """The protocol; where it leaves the engine open, with the one its records were made with.

    So a library that was installed later takes no comparison away.
    """
    if getattr(protocol, "engine", "") != "auto" or not folder.is_dir():
        return protocol
    engines = {record.cell.get("engine") for record in load_records(folder, protocol.name, mode)}
    if len(engines) != 1 or engines == {protocol.engine_here}:
        return protocol
    return protocol.model_copy(update={"engine": engines.pop()})


def _check_settings(record: Record, protocol: Protocol, folder: Path, remedy: str) -> None:
    # The most telling first: settings differ between versions and engines too.
    if record.protocol_version != protocol.version:
        raise UserError(
            f"{folder}: the baselines were made under {protocol.name} version "
            f"{record.protocol_version}, which is at version {protocol.version} now; {remedy}"
        )
    engine, here = record.cell.get("engine"), protocol.engine_here
    if engine != here:
        raise UserError(
            f"{folder}: the baselines were made with engine {engine}, and here it is {here}; say "
            f"--engine {engine}, or {remedy}"
        )
    ours, theirs = protocol_semantics(protocol), record.cell["protocol"]
    odd = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if odd:
        what = "on another backbone" if "backbone" in odd else "under other settings"
        raise UserError(
            f"{folder}: the baselines were made {what} ({', '.join(odd)} of {protocol.name} "
            f"differ); {remedy}"
        )


def check_data(fixed: Baselines, cells: Sequence[Cell], data_root: Path) -> None:
    """Refuse data that the baselines have not seen.

    Raises:
        UserError: the fingerprint of a domain differs.
    """
    ours, theirs = cells[0].data, fixed.rows[0].data
    odd = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if odd:
        raise UserError(
            f"{data_root}: not the data that the baselines in {fixed.folder} were made from "
            f"({', '.join(odd)} differ), and a difference of data must not pass for one of "
            "methods; use the same data, or make baselines on this (`sweep`, then --against DIR)"
        )


def missing(fixed: Baselines, cells: Sequence[Cell], out: Path, replace: bool) -> list[Cell]:
    """The cells that have to be run: those without a record in `out` or among the baselines.

    With `replace`, also those that failed, or were recorded before the method changed.

    Raises:
        UserError: the baselines hold another cell under the method's name, or the record of another
            cell lies in `out` at the path of one of these and `replace` is not set.
    """
    held = {(record.placement, record.seed) for record in fixed.own.values()}
    todo = [cell for cell in cells if cell.digest not in fixed.own]
    # Two rows of one name would become one in the table.
    if any((cell.placement, cell.seed) in held for cell in todo):
        raise UserError(
            f"{cells[0].label}: {fixed.folder} holds a row of this name with other fields or "
            "recipe; give the new one as path/to/file.py:Class to have both side by side"
        )
    if replace:
        return [cell for cell in todo if not _is_done(cell, out)]
    try:
        return [cell for cell in todo if finished(cell, out) is None]
    except UserError as error:
        raise UserError(f"{error}, or --replace it") from None


def _is_done(cell: Cell, out: Path) -> bool:
    try:
        record = finished(cell, out)
    except UserError:
        return False
    return record is not None and record.status != "failed"


def clear(cells: Sequence[Cell], out: Path) -> None:
    """Delete what lies at the paths of cells that are to be run anew: record and checkpoint."""
    for cell in cells:
        # The checkpoint too, or the run would go on from what the method was before.
        for ending in ("", ".checkpoint"):
            Path(f"{out / cell.path}{ending}").unlink(missing_ok=True)


def nonconforming(cell: Cell, report: Callable[[str], None]) -> int:
    """How many properties the cell's method fails on the small random backbones, each reported."""
    # Only where a method is checked: it builds backbones, and a kept record needs none.
    from benchmarks.conformance.check import KINDS, check_method

    count = passed = 0
    for kind in KINDS:
        for finding in check_method(cell.make_method(), kind):
            passed += finding.verdict == "pass"
            if finding.verdict == "fail":
                count += 1
                report(f"FAIL  {kind}: {finding.property}: {finding.measured}")
    report(f"conformance of {cell.label}: {passed} properties hold, {count} fail")
    return count


def records_of(cells: Sequence[Cell], fixed: Baselines, out: Path) -> list[Record]:
    """The records that there are of the cells, committed ones first."""
    records = [fixed.own.get(cell.digest) or finished(cell, out) for cell in cells]
    return [record for record in records if record is not None]


def build(
    spec: TableSpec, fixed: Baselines, cells: Sequence[Cell], mine: Sequence[Record]
) -> tables.Table:
    """The table of the baselines with the method's row."""
    request = tables.Request(
        mode=cells[0].mode,
        placements=tuple(dict.fromkeys(cell.placement for cell in cells)),
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
    )
    published = table_spec.published(spec.published)
    return tables.build(spec, cells[0].protocol, [*fixed.rows, *mine], published, request)


def verdicts(table: tables.Table, cell: Cell) -> str:
    """The verdict on the method of a cell per placement, in Markdown."""
    # The verdict is about unseen domains; held-out source stands in the table.
    headings = {key: name for key, name in table.spec.headings.items() if key != SOURCE}
    parts = []
    for block in table.blocks:
        parts.append(f"# Verdict on {cell.label} (placement {block.placement})\n")
        parts.append(f"{_recipe(cell)}\n")
        parts.append(report(cell.label, table.spec.reference, headings, block.values))
    return "\n".join(parts)


def _recipe(cell: Cell) -> str:
    recipe = cell.protocol.recipe
    return (
        f"Its learning rates: head {recipe.lr:g}, backbone {recipe.backbone_lr:g}; those of the "
        "other rows are among the notes. `--set recipe.backbone_lr=...` changes it: choose it on "
        "held-out source images, never on the columns above."
    )
