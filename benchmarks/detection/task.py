"""Domain-generalised object detection: the functions that `benchmarks.tasks.Task` asks for."""

from __future__ import annotations

from torch import nn

from benchmarks.backbones import load_backbone
from benchmarks.data.cards import classes_of
from benchmarks.detection import engines
from benchmarks.detection.data import batches
from benchmarks.detection.evaluate import evaluate
from benchmarks.detection.reading import check_data
from benchmarks.detection.settings import DetectionProtocol

__all__ = ["batches", "build", "check_data", "evaluate"]


def build(protocol: DetectionProtocol) -> nn.Module:
    """See `Task.build`.

    Raises:
        UserError: besides, an engine that is not installed.
    """
    engine = engines.load(protocol.engine)
    classes = len(classes_of(protocol))
    backbone = load_backbone(protocol.backbone)
    return engine.Detector(backbone, protocol.backbone.features, protocol.head, classes)
