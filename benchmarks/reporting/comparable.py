"""Which records may stand in one table, and which reference records they may be compared with."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.cell import protocol_semantics
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record

_OF_SEED = ("seed", "first_stage")  # parts of a cell in which the seeds of a row may differ


def check_alike(records: Sequence[Record], protocol: Protocol, table: str = "TABLE") -> None:
    """Refuse records that cannot stand in one table.

    Raises:
        UserError: another protocol version, other settings, another engine, other data, or one row
            from two different cells.
    """
    _check_engine(records, protocol, table)
    semantics = protocol_semantics(protocol)
    data: dict[str, str] | None = None
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        who = f"record {record.protocol}/{record.placement}/{record.label}/seed{record.seed}"
        if record.protocol_version != protocol.version:
            raise UserError(
                f"{who}: made under {protocol.name} version {record.protocol_version}, which is at "
                f"version {protocol.version} now; tables never mix versions, run it again"
            )
        if record.cell.get("protocol") != semantics:
            raise UserError(
                f"{who}: made under other settings of {protocol.name} version {protocol.version}; "
                "run it again, and raise `version` with every edit of a protocol"
            )
        data = record.data if data is None else data
        if record.data != data:
            odd = sorted(k for k in data | record.data if data.get(k) != record.data.get(k))
            raise UserError(
                f"{who}: made from other data than the records before it ({', '.join(odd)}); "
                "tables never mix data, run it again"
            )
        cell = {key: value for key, value in record.cell.items() if key not in _OF_SEED}
        if rows.setdefault((record.placement, record.label), cell) != cell:
            raise UserError(f"{who}: its method or recipe differs from other seeds of this row")


def _check_engine(records: Sequence[Record], protocol: Protocol, table: str) -> None:
    """Refuse records of two engines: the rarer one has to be run again."""
    counts = Counter(record.cell.get("engine") for record in records)
    if len(counts) < 2:
        return
    kept = counts.most_common(1)[0][0]
    odd = [record for record in records if record.cell.get("engine") != kept]
    labels, seeds = (sorted({str(getattr(r, key)) for r in odd}) for key in ("label", "seed"))
    raise UserError(
        f"{protocol.name}: {counts[kept]} records were made with engine {kept}, {len(odd)} with "
        f"{', '.join(sorted({str(r.cell.get('engine')) for r in odd}))}; tables never mix engines: "
        f"move the latter away, set engine: {kept} in {protocol.name}, and run: python -m "
        f"benchmarks sweep {table} --profile {protocol.profile} --methods {','.join(labels)} "
        f"--seeds {','.join(seeds)}"
    )


def comparable(
    against: Sequence[Record] | None, protocol: Protocol, records: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """The reference records that may be compared with `records`, and remarks for the table."""
    if against is None:
        return [], []
    same = [record for record in against if record.protocol_version == protocol.version]
    if not same:
        why = "of this protocol" if not against else f"of version {protocol.version}"
        return [], [f"agreement with the reference: no committed records {why}"]
    ours, theirs = ({r.cell.get("engine") for r in group} for group in (records, same))
    if ours and ours != theirs:
        made = ", ".join(sorted(map(str, theirs)))
        return [], [f"agreement with the reference: the committed records have engine {made}"]
    lines = [
        "agreement with the reference: difference of Avg to the committed records with a 95 % "
        "interval (paired by seed); agrees = the interval contains 0 or the difference is < 0.05"
    ]
    if records and any(record.data != records[0].data for record in same):
        lines.append("the committed records were made from data with other fingerprints")
    if records and any(record.cell["protocol"] != records[0].cell["protocol"] for record in same):
        lines.append("the committed records were made under other settings of this version")
    return same, lines
