"""A task that trains in milliseconds on noise, and cells of it."""

import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import run, tasks
from benchmarks.backbones import load_backbone
from benchmarks.cell import Cell, make_cell
from benchmarks.data.loading import loaded
from benchmarks.distributed import WHOLE
from benchmarks.record import Record, Result
from benchmarks.seeding import stream
from benchmarks.segmentation.metrics import confusion, summary
from benchmarks.segmentation.settings import SegmentationProtocol
from benchmarks.tasks import load_protocol

BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    "weights": "random",
    "features": [0, 1, 2, 3],
}
RECIPE = {
    "iterations": 6,
    "batch": 2,
    "lr": 1e-2,
    "backbone_lr": 1e-2,
    "weight_decay": 0.05,
    "weight_decay_schedule": "method",
    "checkpoint_every": 2,
}
RANK_2 = {"fields": {"rank": 2, "alpha": 2.0}}


def protocol(**recipe):
    domain = {"card": "cityscapes", "split": "val", "size": [32, 48]}
    held_out = {"domain": "gtav_held_out", "card": "gtav", "split": "train", "holdout": 2}
    changes = {
        "backbone": BACKBONE,
        "recipe": RECIPE | recipe,
        "recipes": {"controlled": {}},
        "methods": {name: RANK_2 for name in ("lora", "pissa", "dora", "soma", "soma-release")}
        | {"recyclelora": {"fields": {"rank": 2, "sub_rank": 1}}},
        "source": [{"domain": "gtav", "card": "gtav", "split": "train", "holdout": 2}],
        "validation": [held_out],
        "targets": [{"domain": "cityscapes", **domain}],
    }
    return SegmentationProtocol.model_validate(load_protocol("mini_gtav").model_dump() | changes)


def cell_of(method="soma", seed=0, **recipe):
    return make_cell(protocol(**recipe), method, seed=seed, placement="all", data={"gtav": "f00d"})


class Net(nn.Module):
    """A linear head on the class token: which of three classes is an image?"""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.embed_dim, 3)

    def score(self, images):
        return self.head(self.backbone.forward_features(images)[:, 0])

    def forward(self, batch):
        return {
            "cross_entropy": nn.functional.cross_entropy(self.score(batch["image"]), batch["label"])
        }


class FakeTask(ModuleType):
    """The interface of a task, with images of noise."""

    dies_at = poison = None

    def build(self, protocol):
        return Net(load_backbone(protocol.backbone))

    def batches(self, protocol, data_root, seed, first=0, shard=WHOLE):
        for iteration in range(first, protocol.recipe.iterations):
            if iteration == self.dies_at:
                raise KeyboardInterrupt
            rng = stream(seed, "order", iteration)
            image = torch.from_numpy(rng.normal(size=(2, 3, 32, 32)).astype(np.float32))
            label = torch.from_numpy(rng.integers(3, size=2))
            yield {"image": image / (0 if iteration == self.poison else 1), "label": label}

    def check_data(self, protocol, data_root):
        pass

    def domains(self, protocol):
        return [*protocol.validation, *protocol.targets]

    def evaluate(self, model, protocol, data_root, domain, shard=WHOLE):
        rng = stream(len(domain.domain), "order")
        images = torch.from_numpy(rng.normal(size=(5, 3, 32, 32)).astype(np.float32))
        guesses = model.score(images).argmax(1).numpy()
        labels = rng.integers(3, size=5)
        matrices = np.stack([confusion(labels[i : i + 1], guesses[i : i + 1], 3) for i in range(5)])
        scores = summary(matrices.sum(0)) | {"margin": np.float64(model.score(images).std().item())}
        return Result(scores, {"confusion": matrices.astype(np.int32)}, 5)


class SlowTask(FakeTask):
    """The same task; a process of its own loads the batches, a tenth of a second each."""

    def batches(self, *arguments, **options):
        slow = Slow(super().batches(*arguments, **options))
        return loaded(slow, range(len(slow)), workers=1)


class Slow(list):
    def __getitem__(self, index):
        time.sleep(0.1)
        return super().__getitem__(index)


def numbers(record):
    return record.evaluations, record.losses, record.parameters, record.status


def files(folder):
    """Names of the files below a folder, a checkpoint and the one before it counted once.

    Those that say where a cell is, and was, are left out: see test_progress.py.
    """
    names = {path.name.removesuffix(".previous") for path in folder.rglob("*") if path.is_file()}
    names -= {"seed0.json.progress", "seed0.log.jsonl"}
    return sorted(names)


def take_place(task: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every protocol is of this task, which reads no files."""
    monkeypatch.setattr(tasks, "task_of", lambda _: task)
    monkeypatch.setattr(run, "_check_unchanged", lambda *_: None)


def uninterrupted(cell: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """What `toy_runs.trains` comes to in one go."""
    task = FakeTask("fake_task")
    take_place(task, monkeypatch)
    record = run.run_cell(cell, folder / "alone", folder)
    torch.use_deterministic_algorithms(False)
    return record
