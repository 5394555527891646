"""The committed records are those of the cells that the present protocols resolve to."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cell import make_cell
from benchmarks.commands.arguments import REFERENCE
from benchmarks.record import Record
from benchmarks.report.spec import FOLDER, load_table
from benchmarks.tasks import load_protocol

RECORDS = sorted(REFERENCE.glob("*/*/*/seed*.json"))


@cache
def _varied(name: str) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Placement and label of the records of a table of factors -> what their rows change."""
    protocol, specs = load_protocol(name), [load_table(path.stem) for path in FOLDER.glob("*.yaml")]
    return {
        line.key: line.changes
        for spec in specs
        if name in spec.protocols.values()
        for line in spec.lines(protocol, "controlled")
    }


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: str(file.relative_to(REFERENCE)))
def test_committed_record_is_the_one_that_a_run_would_look_for(file: Path) -> None:
    record = Record.load(file)
    protocol = load_protocol(record.protocol)
    cell = make_cell(
        protocol,
        record.method,
        seed=record.seed,
        placement=record.placement,
        data=record.data,
        changes=_varied(record.protocol).get((record.placement, record.label)),
    )
    # A detector made from another library than the one installed here is another cell.
    engine = {"engine": record.cell["engine"]} if "engine" in record.cell else {}
    assert {**cell.resolved, **engine} == record.cell
    assert REFERENCE / cell.path == file
