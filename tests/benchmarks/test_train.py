import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import ROOT
from toy_training import STEPS, Killed, Net, assert_same_bits, batches, make, recipe, run

from benchmarks.optim import make_optimizer
from benchmarks.seeding import stream
from benchmarks.train import NotFinite, Training

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_model_may_say_itself_that_its_numbers_are_not_finite(tmp_path, monkeypatch):
    def diverged(net, batch):
        raise FloatingPointError("boxes are NaN")

    monkeypatch.setattr(Net, "forward", diverged)
    with pytest.raises(NotFinite, match="iteration 0: boxes are NaN"):
        run(tmp_path, recipe())


def test_weights_that_are_not_finite_are_never_scored(tmp_path):
    training = make(recipe())
    training.state.model.out.bias.data[1] = float("inf")
    with pytest.raises(NotFinite, match="a trained parameter is not finite"):
        training.evaluate(lambda iteration: pytest.fail("scored"))


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
    assert history.seconds_per_step == 8.0


NESTED_PHASES = """
import json, torch
from benchmarks.memory import PeakMemory
memory = PeakMemory(torch.device("cpu"))
with memory.phase("train"):
    small = torch.ones(20, 1024, 1024 // 4)  # 20 MiB
    with memory.phase("evaluate"):
        large = torch.ones(60, 1024, 1024 // 4)
        del large
    del small
print(json.dumps(memory.peaks))
"""


def test_peak_memory_of_nested_phases():
    # In a process of its own, whose allocator holds nothing back as that of a sweep's workers does.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", NESTED_PHASES]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, check=True)
    peaks = json.loads(done.stdout)
    if None in peaks.values():
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 50 * 2**20 < peaks["evaluate"] - peaks["train"] < 70 * 2**20
