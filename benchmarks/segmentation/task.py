"""Domain-generalised semantic segmentation: the functions that `benchmarks.tasks.Task` asks for."""

from __future__ import annotations

from benchmarks.backbones import load_backbone
from benchmarks.data.cards import classes_of
from benchmarks.segmentation.data import batches, check_data
from benchmarks.segmentation.evaluate import evaluate
from benchmarks.segmentation.mask2former import Segmenter
from benchmarks.segmentation.settings import SegmentationProtocol

__all__ = ["batches", "build", "check_data", "evaluate"]


def build(protocol: SegmentationProtocol) -> Segmenter:
    """See `Task.build`."""
    classes = len(classes_of(protocol))
    backbone = load_backbone(protocol.backbone)
    return Segmenter(backbone, protocol.backbone.features, protocol.head, classes)
