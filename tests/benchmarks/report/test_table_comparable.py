"""Which records may stand in one table, and how they compare with committed ones."""

from pathlib import Path
from typing import Any

import pytest
from toy_records import build, evaluation, row, toy_record, toy_records

from benchmarks.errors import UserError
from benchmarks.report import statistics
from benchmarks.report.formats import render


def test_agreement_compares_row_by_row(tmp_path: Path) -> None:
    lower = evaluation(20, 42.0, 30.9, 28.9)
    moved = [toy_record("lora", seed, evaluations=[lower]) for seed in (0, 1, 2)]
    against = [r for r in toy_records() if r.label in ("full", "freeze")] + moved
    table = build(tmp_path, against=against)
    text = {
        line.split("|")[1].strip(): line for line in render(table, "md").splitlines() if "|" in line
    }
    assert "agrees: 0.0" in text["full"]
    assert "differs: -2.5 [" in text["lora"]
    assert row(table, "soma").agreement is None


@pytest.mark.parametrize(
    "changes",
    [{"cpu": "another"}, {"gpu": "one"}, {"instruction_set": {"ATEN_CPU_CAPABILITY": "default"}}],
)
def test_agreement_allows_for_the_spread_between_processors(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    lower = evaluation(20, 42.0, 30.9, 28.9)
    moved = [toy_record("lora", seed, evaluations=[lower]) for seed in (0, 1, 2)]
    elsewhere = [
        record.model_copy(update={"environment": record.environment.model_copy(update=changes)})
        for record in moved
    ]
    here, there = (row(build(tmp_path, against=made), "lora") for made in (moved, elsewhere))
    spread = statistics.PROCESSOR_SPREAD
    assert there.agreement.mean == here.agreement.mean
    assert there.agreement.low == pytest.approx(here.agreement.low - spread)
    assert there.agreement.high == pytest.approx(here.agreement.high + spread)


def test_reference_of_another_version_is_not_compared(tmp_path: Path) -> None:
    old = [toy_record("lora", 0, protocol_version=2)]
    table = build(tmp_path, against=old)
    assert row(table, "lora").agreement is None
    assert any("no committed records of version 3" in note for note in table.notes)


def test_record_of_another_version_is_refused(tmp_path: Path) -> None:
    records = [*toy_records()[1:], toy_record("full", 0, protocol_version=2)]
    with pytest.raises(
        UserError, match="full/seed0: made under toy version 2, which is at version 3"
    ):
        build(tmp_path, records)


def test_record_of_other_settings_is_refused(tmp_path: Path) -> None:
    cell = toy_record("full", 0).cell
    changed = cell | {"protocol": cell["protocol"] | {"task": "other"}}
    with pytest.raises(UserError, match="made under other settings of toy version 3"):
        build(tmp_path, [toy_record("full", 0, cell=changed)])


def test_record_from_other_data_is_refused(tmp_path: Path) -> None:
    data = {"gtav": "aa", "gtav_held_out": "aa", "cityscapes": "XX", "bdd100k": "cc"}
    records = [*toy_records()[:-1], toy_record("soma", 2, data=data)]
    with pytest.raises(UserError, match=r"soma/seed2: made from other data .*\(cityscapes\)"):
        build(tmp_path, records)


def test_row_of_two_different_cells_is_refused(tmp_path: Path) -> None:
    cell = toy_record("lora", 1).cell
    changed = cell | {"method": {"name": "lora", "fields": {"rank": 99}}}
    records = [toy_record("lora", 0), toy_record("lora", 1, cell=changed)]
    with pytest.raises(UserError, match="lora/seed1: its method or recipe differs"):
        build(tmp_path, records)


def test_images_left_out_are_no_other_settings_and_are_told(tmp_path: Path) -> None:
    records = []
    for record in toy_records():
        protocol = dict(record.cell["protocol"])
        protocol["targets"] = [dict(domain) for domain in protocol["targets"]]
        protocol["targets"][1]["exclude"] = ["a", "b"]
        cell = record.cell | {"protocol": protocol}
        records.append(record.model_copy(update={"cell": cell}))
    assert "images left out, by name: 2 of bdd100k" in build(tmp_path, records).notes
    assert not [note for note in build(tmp_path).notes if "left out, by name" in note]
