"""Mask2Former's set loss on semantic ground truth: each class of an image is one target mask."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from benchmarks.cards import IGNORE
from benchmarks.protocol_parts import Head


class SetLoss(nn.Module):
    """Weighted class, mask and dice losses of transformers, each summed over the decoder layers.

    Source: arXiv 2112.01527, section 3.3. The points on which masks are compared come from torch's
    global generator.
    """

    def __init__(self, classes: int, sizes: Head) -> None:
        super().__init__()
        self.weights = {
            "cross_entropy": sizes.class_weight,
            "mask": sizes.mask_weight,
            "dice": sizes.dice_weight,
        }
        config = Mask2FormerConfig(
            num_labels=classes,
            class_weight=sizes.class_weight,
            mask_weight=sizes.mask_weight,
            dice_weight=sizes.dice_weight,
            no_object_weight=sizes.no_object_weight,
            train_num_points=sizes.points,
        )
        self.loss = Mask2FormerLoss(config, {})  # these weights only steer the matching

    def forward(
        self, masks: Sequence[Tensor], classes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The losses of a batch, to be added up.

        Args:
            masks: per layer the mask logits (B, queries, h, w).
            classes: class logits (layers, B, queries, classes + 1), void last.
            labels: trainIds (B, H, W), 255 = ignore. Ignored pixels are outside every mask.

        Returns:
            {"cross_entropy", "mask", "dice"}: scalars. Without any target the last two are 0.
        """
        present = [label.unique() for label in labels]
        present = [ids[ids != IGNORE] for ids in present]
        targets = [
            (label == ids[:, None, None]).float()
            for label, ids in zip(labels, present, strict=True)
        ]
        earlier = [
            {"masks_queries_logits": mask, "class_queries_logits": logits}
            for mask, logits in zip(masks[:-1], classes[:-1], strict=True)
        ]
        parts = self.loss(masks[-1], classes[-1], targets, present, earlier)
        return {
            kind: weight * sum(value for name, value in parts.items() if f"loss_{kind}" in name)
            for kind, weight in self.weights.items()
        }
