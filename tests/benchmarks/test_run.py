import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_task import FakeTask, cell_of, files, numbers, protocol, take_place

from baselines import METHODS
from benchmarks import run
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.progress import log_file, progress_file, read_log, read_state
from benchmarks.record import Record
from benchmarks.segmentation.metrics import summary
from soma import load_adapter
from soma.method import NotApplicable

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _deterministic_only_here():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def task(monkeypatch):
    module = FakeTask("fake_task")
    take_place(module, monkeypatch)
    return module


def test_a_cell_leaves_a_complete_record(task, tmp_path):
    cell = cell_of(evaluate_at=(3,))
    record = run.run_cell(cell, tmp_path, tmp_path / "data")
    assert files(tmp_path) == ["seed0.json", "seed0.npz", "seed0.safetensors"]
    path = tmp_path / cell.path
    assert Record.load(path) == record
    assert not progress_file(path).exists()
    entries = read_log(log_file(path))
    assert [entry["iteration"] for entry in entries] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert entries[0]["loss"] == record.losses[0].loss
    scored = [entry["held_out"] for entry in entries if "held_out" in entry]
    assert [list(domains) for domains in scored] == [["gtav_held_out"]] * 2
    assert (record.status, record.reason, record.digest) == ("done", "", cell.digest)
    assert (record.method, record.label, record.placement, record.seed) == (
        "soma",
        "soma",
        "all",
        0,
    )
    assert record.data == {"gtav": "f00d"}
    assert record.environment.threads == 1
    assert [each.iteration for each in record.evaluations] == [3, 6]
    domains = record.evaluations[-1].domains
    assert {name: score.role for name, score in domains.items()} == {
        "gtav_held_out": "validation",
        "cityscapes": "target",
    }
    assert [point.iteration for point in record.losses] == list(range(6))
    cost = record.cost
    assert 0 < cost.seconds_per_step <= cost.train_seconds
    assert cost.evaluate_seconds > 0
    assert cost.adapt_seconds > 0
    assert cost.peak_train_bytes is None or cost.peak_train_bytes > 2**20
    with np.load(path.with_suffix(".npz")) as arrays:
        assert sorted(arrays) == ["cityscapes", "gtav_held_out"]
        scored = summary(arrays["cityscapes"].sum(0))
    assert scored.items() <= domains["cityscapes"].metrics.items()


def test_the_weights_beside_the_record_are_the_scored_ones(task, tmp_path):
    cell = cell_of(ema={"momentum": 0.2, "start": 2})
    record = run.run_cell(cell, tmp_path, tmp_path)
    file = (tmp_path / cell.path).with_suffix(".safetensors")
    torch.manual_seed(run.torch_seed(0, "initialisation"))
    model = task.build(cell.protocol)
    load_adapter(cell.make_method(), model.backbone, file)
    tensors = load_file(file)
    model.head.load_state_dict({key: tensors[f"head.{key}"] for key in ("weight", "bias")})
    model.eval()
    for domain in task.domains(cell.protocol):
        again = task.evaluate(model, cell.protocol, tmp_path, domain)
        kept = record.evaluations[-1].domains[domain.domain].metrics
        assert again.metrics["margin"] == pytest.approx(kept["margin"], rel=1e-5)


@pytest.mark.parametrize("method", ["soma", "full", "vpt"])
def test_the_same_cell_twice_gives_the_same_bits(method, task, tmp_path):
    one, two = (run.run_cell(cell_of(method), tmp_path / name, tmp_path) for name in "ab")
    assert numbers(one) == numbers(two)
    first, second = (tmp_path / name / cell_of(method).path for name in "ab")
    weights = load_file(first.with_suffix(".safetensors"))
    for name, value in load_file(second.with_suffix(".safetensors")).items():
        assert torch.equal(value, weights[name]), name
    other = run.run_cell(cell_of(method, seed=1), tmp_path, tmp_path)
    assert other.losses != one.losses


@pytest.mark.parametrize("dies_at", [1, 3, 5])
def test_a_killed_cell_is_resumed_to_the_same_bits(dies_at, task, tmp_path):
    cell = cell_of(evaluate_at=(3,), ema={"momentum": 0.2, "start": 2})
    whole = run.run_cell(cell, tmp_path / "whole", tmp_path)
    task.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        run.run_cell(cell, tmp_path / "cut", tmp_path)
    assert files(tmp_path / "cut") == (["seed0.json.checkpoint"] if dies_at > 2 else [])
    task.dies_at = None
    assert read_state((tmp_path / "cut") / cell.path) is not None
    assert numbers(run.run_cell(cell, tmp_path / "cut", tmp_path)) == numbers(whole)
    assert files(tmp_path / "cut") == ["seed0.json", "seed0.npz", "seed0.safetensors"]
    assert read_state((tmp_path / "cut") / cell.path) is None
    steps = [
        e["iteration"] for e in read_log(log_file((tmp_path / "cut") / cell.path)) if "loss" in e
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_is_a_failed_record(task, tmp_path):
    task.poison = 4
    record = run.run_cell(cell_of(), tmp_path, tmp_path)
    assert record.status == "failed"
    assert record.reason.startswith("iteration 4: the loss is nan (cross_entropy nan")
    assert record.evaluations == []
    assert len(record.losses) == 4
    assert files(tmp_path) == ["seed0.json"]


def test_a_method_that_does_not_fit_is_a_record_with_the_reason(task, tmp_path, monkeypatch):
    def refuse(vit):
        raise NotApplicable("needs a token sequence")

    monkeypatch.setattr(METHODS["vpt"], "attach", lambda self, vit: refuse(vit))
    record = run.run_cell(cell_of("vpt"), tmp_path, tmp_path)
    assert (record.status, record.reason) == ("not_applicable", "needs a token sequence")
    assert files(tmp_path) == ["seed0.json"]


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), UserError("no such image")])
def test_other_errors_leave_no_record(error, task, tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise error

    monkeypatch.setattr(FakeTask, "evaluate", broken)
    with pytest.raises(type(error), match=str(error)):
        run.run_cell(cell_of(), tmp_path, tmp_path)
    assert files(tmp_path) == ["seed0.json.checkpoint"]


def test_a_field_that_does_not_fit_the_backbone_is_the_users_error(task, tmp_path):
    ours = protocol().model_copy(update={"placements": {"all": 99}})
    cell = make_cell(ours, "soma", seed=0, placement="all", data={})
    with pytest.raises(UserError, match=r"method soma on .*start_block 99"):
        run.run_cell(cell, tmp_path, tmp_path)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(UserError, match=f"device '{device}'"):
        run.make_fabric(device, "32-true")
