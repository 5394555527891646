import logging

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from benchmarks.checkpoint import Checkpoint
from benchmarks.errors import UserError
from benchmarks.memory import PeakMemory
from benchmarks.protocol import Recipe
from benchmarks.recipe import make_optimizer
from benchmarks.seeding import stream, torch_seed
from benchmarks.train import NotFinite, Training, train

STEPS = 12


class Net(nn.Module):
    """A backbone and a head with dropout; the loss draws random points, as Mask2Former's does."""

    def __init__(self, dropout):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, batch):
        self.count += 1
        scores = self.out(self.drop(self.backbone(batch["image"])))
        points = torch.rand(len(scores), 1) < 0.7
        return {"square": (points * (scores - 1) ** 2).mean(), "size": 0.1 * scores.abs().mean()}


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**changes):
    given = {"iterations": STEPS, "batch": 4, "lr": 1e-2, "backbone_lr": 5e-3, "weight_decay": 0.05}
    return Recipe(**(given | {"checkpoint_every": 4} | changes))


def batches(first, *, dies_at=None, poison=None):
    for iteration in range(first, STEPS):
        if iteration == dies_at:
            raise Killed
        torch.rand(3)  # a loader that draws from torch's own generator must not matter
        image = stream(3, "order", iteration).normal(size=(4, 6)).astype(np.float32)
        yield {"image": torch.from_numpy(image) * (float("nan") if iteration == poison else 1)}


def make(ours, dropout=0.3, seed=3):
    torch.manual_seed(torch_seed(seed, "initialisation"))
    model = Net(dropout)
    model.backbone[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model, ours, {"backbone.3.weight": "to_init"})
    return Training(
        model, optimizer, ours, seed, Fabric(accelerator="cpu", devices=1, precision=ours.precision)
    )


def score(training, calls=None, dies_at=None):
    def evaluate(iteration):
        if calls is not None:
            calls.append(iteration)
        if iteration == dies_at:
            raise Killed
        assert not training.state.model.training
        assert not torch.is_grad_enabled()
        torch.rand(7)  # nor must one in evaluation
        return {
            "sum": float(sum(value.sum() for value in training.state.model.state_dict().values()))
        }

    return evaluate


def run(folder, ours, *, digest="a", dies_at=None, dies_scoring=None, poison=None, **options):
    training = make(ours, **options)
    calls = []
    history = train(
        training,
        lambda first: batches(first, dies_at=dies_at, poison=poison),
        score(training, calls, dies_scoring),
        Checkpoint(folder / "seed0.checkpoint", digest),
    )
    return training.state, history, calls


def assert_same_bits(one, other):
    (state, history, _), (state2, history2, _) = one, other
    assert history.losses == history2.losses
    assert history.evaluations == history2.evaluations
    assert history.iteration == history2.iteration == STEPS
    for (name, value), value2 in zip(
        state.model.state_dict().items(), state2.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, value2), name


RECIPES = {
    "plain": (recipe(), 0.0),
    "dropout": (recipe(evaluate_at=(3,)), 0.3),
    "everything": (
        recipe(
            weight_decay_schedule="cosine",
            warmup=3,
            clip=0.5,
            ema={"momentum": 0.1, "start": 5},
            evaluate_at=(3, 7),
        ),
        0.3,
    ),
    "half": (recipe(precision="bf16-mixed", ema={"momentum": 0.1, "start": 0}), 0.3),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path):
    ours, dropout = RECIPES[name]
    whole = run(tmp_path / "whole", ours, dropout=dropout)
    for dies_at in stream(0, "order", len(name)).choice(STEPS, size=3, replace=False).tolist():
        cut = tmp_path / f"cut{dies_at}"
        with pytest.raises(Killed):
            run(cut, ours, dropout=dropout, dies_at=dies_at)
        assert_same_bits(whole, run(cut, ours, dropout=dropout))
    assert_same_bits(whole, run(tmp_path / "again", ours, dropout=dropout))


@pytest.mark.parametrize("iteration", [3, STEPS])
def test_a_run_killed_while_scoring_repeats_the_scoring_only(iteration, tmp_path):
    ours, _ = RECIPES["everything"]
    whole = run(tmp_path / "whole", ours)
    with pytest.raises(Killed):
        run(tmp_path / "cut", ours, dies_scoring=iteration)
    resumed = run(tmp_path / "cut", ours)
    assert resumed[2] == [n for n in (3, 7, STEPS) if n >= iteration]
    assert_same_bits(whole, resumed)


def test_the_average_is_scored_and_kept_but_not_trained_from(tmp_path):
    plain, averaged = (
        recipe(evaluate_at=(7,)),
        recipe(evaluate_at=(7,), ema={"momentum": 0.1, "start": 5}),
    )
    raw, mean = run(tmp_path / "raw", plain), run(tmp_path / "mean", averaged)
    assert raw[1].losses == mean[1].losses
    assert raw[1].evaluations[7] != mean[1].evaluations[7]
    assert mean[1].evaluations[STEPS] == score_of(mean[0].model)
    assert mean[0].model.count == raw[0].model.count == STEPS


def score_of(model):
    return {"sum": float(sum(value.sum() for value in model.state_dict().values()))}


def test_the_last_iteration_is_always_scored(tmp_path):
    assert run(tmp_path, recipe())[2] == [STEPS]
    assert run(tmp_path / "b", recipe(evaluate_at=(2, STEPS)))[2] == [2, STEPS]


def test_training_lowers_the_loss_and_moves_only_what_is_trainable(tmp_path):
    before = make(recipe()).state.model.state_dict()
    state, history, _ = run(tmp_path, recipe(), dropout=0.0)
    assert np.mean(history.losses[-4:]) < np.mean(history.losses[:4])
    frozen = {"backbone.0.weight"}
    for name, value in state.model.named_parameters():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_the_seed_changes_the_run(tmp_path):
    assert (
        run(tmp_path / "a", recipe())[1].losses != run(tmp_path / "b", recipe(), seed=4)[1].losses
    )


def test_a_loss_that_is_not_finite_says_where_and_which(tmp_path):
    with pytest.raises(
        NotFinite, match=r"iteration 5: the loss is nan \(square nan, size nan\)"
    ) as error:
        run(tmp_path, recipe(), poison=5)
    assert error.value.iteration == 5


def test_weights_that_are_not_finite_are_never_scored(tmp_path):
    training = make(recipe())
    training.state.model.out.bias.data[1] = float("inf")
    with pytest.raises(NotFinite, match="a trained parameter is not finite"):
        training.evaluate(lambda iteration: pytest.fail("scored"))


def test_a_checkpoint_of_another_cell_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    with pytest.raises(UserError, match="checkpoint of another cell .* delete it"):
        run(tmp_path, recipe(), digest="b")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_cannot_be_read_is_said_and_ignored(damage, tmp_path, caplog):
    whole = run(tmp_path / "whole", recipe())
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    path = tmp_path / "seed0.checkpoint"
    path.write_bytes(path.read_bytes()[:-500] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert_same_bits(whole, run(tmp_path, recipe()))
    assert "cannot be read" in caplog.text


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, recipe(), dies_at=6)
    path = tmp_path / "seed0.checkpoint"
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 704 vs 598")  # what torch says on a full disk

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError) as error:
        run(tmp_path, recipe())
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_frozen_backbone_is_left_out_of_the_backward_pass(tmp_path):
    training = make(recipe(), dropout=0.0)
    model = training.state.model
    model.backbone.requires_grad_(False)
    frozen = Training(model, make_optimizer(model, recipe(), {}), recipe(), 3, training.fabric)
    needed = []
    model.backbone.register_forward_hook(
        lambda module, inputs, output: needed.append(output.requires_grad)
    )
    frozen.step(batches(0))
    assert needed == [False]
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_step_time_is_a_median_without_the_first_steps(tmp_path):
    _, history, _ = run(tmp_path, recipe())
    assert len(history.seconds) == STEPS
    history.seconds = [9.0, 9.0, 9.0, 1.0, 2.0, 7.0]
    assert history.seconds_per_step == 2.0
    history.seconds = [9.0, 8.0]
    assert history.seconds_per_step == 8.5


def test_peak_memory_of_nested_phases():
    memory = PeakMemory(torch.device("cpu"))
    with memory.phase("train"):
        small = torch.ones(20, 1024, 1024 // 4)  # 20 MiB
        with memory.phase("evaluate"):
            large = torch.ones(60, 1024, 1024 // 4)
            del large
        del small
    if None in memory.peaks.values():
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 50 * 2**20 < memory.peaks["evaluate"] - memory.peaks["train"] < 70 * 2**20
