"""A detector of a few thousand parameters, and what it learns from."""

import importlib

import pytest
import torch
from tiny_worlds import BACKBONE
from torch import Tensor, nn

from benchmarks.backbones import load_backbone
from benchmarks.detection.settings import FasterRCNN

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
ONE_MAP = BACKBONE.model_copy(update={"features": (3,)})
HEAD = {
    "pyramid": {"scales": [2.0, 1.0, 0.5], "channels": 16},
    "rpn": {
        "anchors": [[6], [12], [24]],
        "ratios": [0.5, 1.0, 2.0],
        "matching": {"positive": 0.6, "negative": 0.25, "samples": 32, "positive_share": 0.5},
        "before_nms": {"train": 60, "test": 40},
        "after_nms": {"train": 30, "test": 20},
    },
    "roi": {
        "pool": 3,
        "sampling": 2,
        "canonical_side": 24.0,
        "canonical_stride": 8,
        "hidden": 24,
        "matching": {"positive": 0.5, "negative": 0.5, "samples": 16, "positive_share": 0.5},
        "detections": 10,
    },
}


def head(**changes: dict) -> FasterRCNN:
    """The tiny detector; `changes` go into its parts: roi={"score": 0.0}."""
    parts = {name: part | changes.get(name, {}) for name, part in HEAD.items()}
    return FasterRCNN.model_validate(parts)


def detector(
    seed: int = 0, classes: int = 7, engine: str = "torchvision", **changes: dict
) -> nn.Module:
    torch.manual_seed(seed)
    module = importlib.import_module(f"benchmarks.detection.{engine}_engine")
    return module.Detector(load_backbone(ONE_MAP), ONE_MAP.features, head(**changes), classes)


def batch(empty: bool = False) -> dict[str, Tensor | list[Tensor]]:
    """Two images with bright and dark rectangles on noise; the second is padded below 24 pixels."""
    generator = torch.Generator().manual_seed(3)
    image = 0.1 * torch.randn(2, 3, 32, 32, generator=generator)
    boxes = [torch.tensor([[2.0, 3, 14, 12], [16, 16, 31, 31]]), torch.tensor([[4.0, 5, 20, 20]])]
    labels = [torch.tensor([0, 6]), torch.tensor([3])]
    for picture, inside, kinds in zip(image, boxes, labels, strict=True):
        for (left, top, right, bottom), kind in zip(inside.int().tolist(), kinds, strict=True):
            picture[:, top:bottom, left:right] += float(kind) - 2.5
    image[1, :, 24:] = 0
    if empty:
        boxes[1], labels[1] = boxes[1][:0], labels[1][:0]
    size = torch.tensor([[32, 32], [24, 32]])
    return {"image": image, "boxes": boxes, "labels": labels, "size": size}
