"""Domain-generalised semantic segmentation: the functions that `benchmarks.tasks.Task` asks for."""

from __future__ import annotations

from benchmarks.backbones import load_backbone
from benchmarks.data.cards import classes_of
from benchmarks.errors import UserError
from benchmarks.segmentation.data import batches, check_data
from benchmarks.segmentation.evaluate import evaluate
from benchmarks.segmentation.heads import Segmenter, pixel_segmenter
from benchmarks.segmentation.settings import Mask2FormerHead, SegmentationProtocol

__all__ = ["batches", "build", "check_data", "evaluate"]


def build(protocol: SegmentationProtocol) -> Segmenter:
    """See `Task.build`.

    Raises:
        UserError: besides, a crop that patches do not fill; micro-batches, where the head
            normalises over the batch.
    """
    head, features = protocol.head, protocol.backbone.features
    if head.kind == "linear" and protocol.recipe.accumulate > 1:
        raise UserError(
            f"{protocol.name}: recipe.accumulate {protocol.recipe.accumulate}: the batch norm of "
            "head.kind linear needs the whole batch at once; set 1, and "
            "recipe.activation_checkpointing to save memory"
        )
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
    if not isinstance(head, Mask2FormerHead):
        return pixel_segmenter(backbone, features, head, classes)
    # transformers takes seconds to import, which the other heads do without.
    from benchmarks.segmentation.mask2former import Mask2Former

    return Mask2Former(backbone, features, head, classes)
