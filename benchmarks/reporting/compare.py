"""A new method beside fixed baselines: what they may be compared on, and the answer.

The baselines are records, made before and never again. Whatever would make the comparison one of
something else than the methods is refused before anything is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cell import Cell, protocol_semantics
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record, load_records
from benchmarks.reporting import formats, table_spec, tables, verdicts
from benchmarks.reporting.comparable import check_alike
from benchmarks.reporting.table_spec import SOURCE, TableSpec
from benchmarks.reporting.table_values import values_by_seed
from benchmarks.sweeps.claim import finished


@dataclass(frozen=True)
class Baselines:
    """What a method is compared with.

    Attributes:
        folder: where the records lie. rows: those of all other methods. own: the method's own ones
            among them, by digest, failed ones left out.
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
    found = load_records(folder, protocol.name, first.mode) if folder.is_dir() else []
    found = [record for record in found if record.placement in placements]
    mine = [record for record in found if record.label == first.label]
    if folder.resolve() == out.resolve():
        mine = []
    rows = [record for record in found if record.label != first.label]
    mend = f"make baselines with `{how}` and compare with `--against DIR`"
    for placement in placements:
        here = [record for record in rows if record.placement == placement]
        if not here:
            raise UserError(
                f"{folder}: no baselines of {protocol.name} (placement {placement}, recipe "
                f"{first.mode}) to compare with; {mend}"
            )
        for record in here:
            _check_settings(record, protocol, folder, mend)
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


def _check_settings(record: Record, protocol: Protocol, folder: Path, mend: str) -> None:
    if record.protocol_version != protocol.version:
        raise UserError(
            f"{folder}: the baselines were made under {protocol.name} version "
            f"{record.protocol_version}, which is at version {protocol.version} now; {mend}"
        )
    engine, here = record.cell.get("engine"), protocol.engine_here
    if engine != here:
        raise UserError(
            f"{folder}: the baselines were made with engine {engine}, and here it is {here}; set "
            f"engine: {engine} in {protocol.name}, or {mend}"
        )
    ours, theirs = protocol_semantics(protocol), record.cell["protocol"]
    odd = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if odd:
        what = "on another backbone" if "backbone" in odd else "under other settings"
        raise UserError(
            f"{folder}: the baselines were made {what} ({', '.join(odd)} of {protocol.name} "
            f"differ); {mend}"
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
        for ending in ("", ".checkpoint"):
            Path(f"{out / cell.path}{ending}").unlink(missing_ok=True)


def nonconforming(cell: Cell, report: Callable[[str], None]) -> int:
    """How many properties the cell's method fails on the small random backbones, each reported."""
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
    found = [fixed.own.get(cell.digest) or finished(cell, out) for cell in cells]
    return [record for record in found if record is not None]


def answer(spec: TableSpec, fixed: Baselines, cells: Sequence[Cell], mine: Sequence[Record]) -> str:
    """The table of the baselines with the method's row, then the verdict per placement."""
    records, label = [*fixed.rows, *mine], cells[0].label
    request = tables.Request(
        mode=cells[0].mode,
        placements=tuple(dict.fromkeys(cell.placement for cell in cells)),
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
    )
    published = table_spec.published(spec.published)
    built = tables.build(spec, cells[0].protocol, records, published, request)
    headings = {key: name for key, name in spec.headings.items() if key != SOURCE}
    parts = [formats.render(built, "md")]
    for block in built.blocks:
        here = [r for r in records if r.placement == block.placement and r.seed in request.seeds]
        values = {
            row.label: values_by_seed(
                [record for record in here if record.label == row.label],
                block.selection,
                spec.metric,
                spec.domains,
                spec.sources,
            )
            for row in block.rows
        }
        parts.append(f"# Verdict on {label} (placement {block.placement})\n")
        parts.append(f"{_recipe(cells[0])}\n")
        parts.append(verdicts.report(label, spec.reference, headings, values))
    return "\n".join(parts)


def _recipe(cell: Cell) -> str:
    recipe = cell.protocol.recipe
    return (
        f"Its learning rates: head {recipe.lr:g}, backbone {recipe.backbone_lr:g}; those of the "
        "other rows stand under the table. `--set recipe.backbone_lr=...` changes it: choose it on "
        "held-out source images, never on the columns above."
    )
