"""The committed records are those of the cells that the present protocols resolve to."""

from pathlib import Path

import pytest

from benchmarks.cell import make_cell
from benchmarks.commands.arguments import REFERENCE
from benchmarks.record import Record
from benchmarks.tasks import load_protocol

RECORDS = sorted(REFERENCE.glob("*/*/*/seed*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: str(file.relative_to(REFERENCE)))
def test_committed_record_is_the_one_that_a_run_would_look_for(file: Path) -> None:
    record = Record.load(file)
    cell = make_cell(
        load_protocol(record.protocol),
        record.method,
        seed=record.seed,
        placement=record.placement,
        data=record.data,
    )
    # A detector made from another library than the one installed here is another cell.
    engine = {"engine": record.cell["engine"]} if "engine" in record.cell else {}
    assert {**cell.resolved, **engine} == record.cell
    assert REFERENCE / cell.path == file
