"""A small segmentation cell whose batches are shared by processes, and its losses."""

import numpy as np
from tiny_worlds import HEAD
from toy_task import protocol

from benchmarks.cell import make_cell

STEPS = 20


def cell(method="lora", **recipe):
    settings = {"batch": 4, "iterations": STEPS, "checkpoint_every": 5, "clip": 1.0, "lr": 1e-3}
    whole = protocol(**settings, backbone_lr=1e-3, ema={"momentum": 0.1, "start": 3})
    ours = whole.model_copy(
        update={
            "head": HEAD,
            "augment": whole.augment.model_copy(update={"crop": 32, "short_sides": (32, 48)}),
            "window": whole.window.model_copy(update={"size": 32, "stride": 16}),
        }
    )
    return make_cell(ours, method, seed=0, placement="all", changes={"recipe": recipe}, data={})


def losses(record):
    return np.array([point.loss for point in record.losses])


def furthest(found, expected):
    """Largest relative difference, printed."""
    worst = float(np.max(np.abs(found - expected) / np.abs(expected)))
    print(f"largest relative difference of {len(expected)} losses: {worst:.1e}")
    return worst
