"""Domain-generalised semantic segmentation: the functions that `benchmarks.tasks.Task` asks for."""

from __future__ import annotations

from benchmarks.backbones import load_backbone
from benchmarks.data.cards import classes_of
from benchmarks.errors import UserError
from benchmarks.segmentation.data import batches, check_data
from benchmarks.segmentation.evaluate import evaluate
from benchmarks.segmentation.mask2former import Segmenter
from benchmarks.segmentation.settings import SegmentationProtocol

__all__ = ["batches", "build", "check_data", "evaluate"]


def build(protocol: SegmentationProtocol) -> Segmenter:
    """See `Task.build`.

    Raises:
        UserError: besides, a crop that patches do not fill.
    """
    classes = len(classes_of(protocol))
    backbone = load_backbone(protocol.backbone)
    patch = max(backbone.patch_embed.patch_size)
    if protocol.augment.crop % patch and not getattr(
        backbone.patch_embed, "dynamic_img_pad", False
    ):
        raise UserError(
            f"{protocol.name}: augment.crop {protocol.augment.crop} is no multiple of the "
            f"backbone's patch of {patch} pixels; choose one that is"
        )
    return Segmenter(backbone, protocol.backbone.features, protocol.head, classes)
