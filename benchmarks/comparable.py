"""Which records may stand in one table, and which reference records they may be compared with."""

from collections.abc import Sequence
from typing import Any

from benchmarks.cell import protocol_semantics
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record


def check_alike(records: Sequence[Record], protocol: Protocol) -> None:
    """Refuse records that cannot stand in one table.

    Raises:
        UserError: another protocol version, other settings, other data, or one row from two
            different cells.
    """
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
        cell = {key: value for key, value in record.cell.items() if key != "seed"}
        if rows.setdefault((record.placement, record.label), cell) != cell:
            raise UserError(f"{who}: its method or recipe differs from other seeds of this row")


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
    lines = [
        "agreement with the reference: difference of Avg to the committed records with a 95 % "
        "interval (paired by seed); agrees = the interval contains 0 or the difference is < 0.05"
    ]
    if records and any(record.data != records[0].data for record in same):
        lines.append("the committed records were made from data with other fingerprints")
    if records and any(record.cell["protocol"] != records[0].cell["protocol"] for record in same):
        lines.append("the committed records were made under other settings of this version")
    return same, lines
