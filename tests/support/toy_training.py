"""A small model that trains in milliseconds, for tests of the loop and of its checkpoints."""

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from benchmarks.optim import make_optimizer
from benchmarks.protocol import Recipe
from benchmarks.seeding import stream, torch_seed
from benchmarks.train import Checkpoint, Training, train

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


def run(folder, ours, *, lr=1, digest="a", dies_at=None, dies_scoring=None, poison=None, **options):
    training = make(ours, **options)
    calls = []
    history = train(
        training,
        lambda first: batches(first, dies_at=dies_at, poison=poison),
        score(training, calls, dies_scoring),
        Checkpoint(folder / "seed0.checkpoint", {"lr": lr}, digest),
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
