"""A small segmentation cell whose batches are shared by processes, and its losses."""

import numpy as np
from tiny_worlds import HEAD
from toy_task import protocol

from benchmarks.cell import make_cell

STEPS = 20
# Once rounding tips a tie of the matching between queries and masks, two runs part for good: on
# some processors within 20 steps, on none of those tried within 5.
COMPARED = 5


def cell(method="lora", head=HEAD, **recipe):
    settings = {"batch": 4, "iterations": STEPS, "checkpoint_every": 5, "clip": 1.0, "lr": 1e-3}
    whole = protocol(**settings, backbone_lr=1e-3, ema={"momentum": 0.1, "start": 3})
    ours = whole.model_copy(
        update={
            "head": head,
            "augment": whole.augment.model_copy(update={"crop": 32, "short_sides": (32, 48)}),
            "window": whole.window.model_copy(update={"size": 32, "stride": 16}),
        }
    )
    return make_cell(ours, method, seed=0, placement="all", changes={"recipe": recipe}, data={})


def losses(record):
    return np.array([point.loss for point in record.losses])


def furthest(found, expected):
    """Largest relative difference of the first `COMPARED` losses; that of all is printed too."""
    difference = np.abs(found - expected) / np.abs(expected)
    for count in (COMPARED, len(expected)):
        print(f"largest relative difference of {count} losses: {difference[:count].max():.1e}")
    return float(difference[:COMPARED].max())
