"""A second stage goes on from the model that the first stage left for the same row."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_records import build as built
from toy_records import toy_record
from toy_task import FakeTask, cell_of, take_place

from benchmarks import run
from benchmarks.cell import Cell, first_stage_record, prepare
from benchmarks.errors import UserError
from soma import save_adapter

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    module = FakeTask("fake_task")
    take_place(module, monkeypatch)
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: {"gtav": "f00d"})
    yield module
    torch.use_deterministic_algorithms(False)


def second(first: Cell) -> Cell:
    changes = {"name": "second", "starts_from": first.protocol.name}
    return replace(first, protocol=first.protocol.model_copy(update=changes))


@pytest.mark.parametrize("method", ["soma", "lora", "full", "vpt", "freeze", "svf"])
def test_it_starts_with_the_scores_with_which_the_first_ended(
    method: str, task: FakeTask, tmp_path: Path
) -> None:
    first = cell_of(method, ema={"momentum": 0.2, "start": 2})
    record = run.run_cell(first, tmp_path, tmp_path)
    (cell,) = prepare([second(first)], tmp_path, tmp_path)
    model = run.build(cell, task, first_stage_record(cell, tmp_path)).model.eval()
    for domain in cell.protocol.scored_domains:
        scores = task.evaluate(model, cell.protocol, tmp_path, domain).metrics
        last = record.evaluations[-1].domains[domain.domain].metrics
        assert scores["margin"] == pytest.approx(last["margin"], rel=1e-6)
    fresh = task.evaluate(run.build(first, task).model.eval(), cell.protocol, tmp_path, domain)
    assert fresh.metrics["margin"] != pytest.approx(last["margin"], rel=1e-3)


def test_it_trains_on_and_its_record_names_the_first(task: FakeTask, tmp_path: Path) -> None:
    first = run.run_cell(cell_of(), tmp_path, tmp_path)
    (cell,) = prepare([second(cell_of())], tmp_path, tmp_path)
    record = run.run_cell(cell, tmp_path, tmp_path)
    assert record.cell["first_stage"] == first.digest
    assert record.losses[0].loss < first.losses[0].loss
    (other,) = prepare([replace(cell, first="")], tmp_path, tmp_path)
    assert other.digest == cell.digest
    assert replace(cell, first="0" * 64).digest != cell.digest


def test_seeds_of_a_row_may_differ_in_their_first_stage(tmp_path: Path) -> None:
    cell = toy_record("lora", 0).cell
    records = [
        toy_record("lora", seed, cell=cell | {"seed": seed, "first_stage": digest})
        for seed, digest in ((0, "aa"), (1, "bb"))
    ]
    assert built(tmp_path, records)


def test_a_first_stage_that_is_not_there_is_one_line(task: FakeTask, tmp_path: Path) -> None:
    cell = second(cell_of())
    with pytest.raises(UserError, match=r"has no record .*run mini_gtav soma --seed 0 --out"):
        prepare([cell], tmp_path, tmp_path)
    path = first_stage_record(cell, tmp_path)
    toy_record("soma", 0, status="failed", reason="loss", evaluations=[]).write(path)
    with pytest.raises(UserError, match=r"goes on from mini_gtav, but .* is failed"):
        prepare([cell], tmp_path, tmp_path)
    run.run_cell(cell_of(), tmp_path, tmp_path)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(UserError, match=r"the weights beside .* are missing"):
        prepare([cell], tmp_path, tmp_path)


def test_weights_that_do_not_fit_are_one_line(task: FakeTask, tmp_path: Path) -> None:
    run.run_cell(cell_of("lora"), tmp_path, tmp_path)
    (cell,) = prepare([second(cell_of("lora"))], tmp_path, tmp_path)
    weights = first_stage_record(cell, tmp_path).with_suffix(".safetensors")
    wider = replace(cell, fields=cell.fields | {"rank": 3})
    with pytest.raises(UserError, match=r"saved with .*rank 2"):
        run.build(wider, task, first_stage_record(cell, tmp_path))
    first = run.build(cell_of("lora"), task).model
    weight, bias = first.head.weight, first.head.bias
    save_adapter(first.backbone, weights, extra={"head.weight": weight})
    with pytest.raises(UserError, match=r"no tensor head.bias of the head"):
        run.build(cell, task, first_stage_record(cell, tmp_path))
    save_adapter(first.backbone, weights, extra={"head.weight": weight, "head.bias": bias[1:]})
    with pytest.raises(UserError, match=r"size mismatch for head.bias"):
        run.build(cell, task, first_stage_record(cell, tmp_path))
