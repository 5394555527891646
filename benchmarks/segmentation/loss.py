"""Mask2Former's set loss on semantic ground truth: each class of an image is one target mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
)

from benchmarks.data.cards import IGNORE
from benchmarks.distributed import Part
from benchmarks.segmentation.settings import Mask2FormerHead


class SetLoss(nn.Module):
    """Weighted class, mask and dice losses of transformers, each summed over the decoder layers.

    Source: arXiv 2112.01527, section 3.3. The points on which masks are compared come from torch's
    global generator.
    """

    def __init__(self, classes: int, sizes: Mask2FormerHead) -> None:
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
        self.loss = _LossOfPart(config, least=int(sizes.count_unlabelled))

    def forward(
        self, masks: Sequence[Tensor], classes: Tensor, labels: Tensor, part: Part | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, to be added up.

        Args:
            masks: per layer the mask logits (B, queries, h, w).
            classes: class logits (layers, B, queries, classes + 1), void last.
            labels: trainIds (B, H, W), 255 = ignore. Ignored pixels are outside every mask.
            part: which part of a batch these images are, where they are not all of it. The mean of
                the losses over all parts is the loss of the batch, the points drawn are the same.

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
        # Always told, for whole batches too: counts of an earlier part would stay in the module.
        self.loss.begin(part or Part(0, 1, tuple(map(len, present))), len(labels))
        parts = self.loss(masks[-1], classes[-1], targets, present, earlier)
        return {
            kind: weight * sum(value for name, value in parts.items() if f"loss_{kind}" in name)
            for kind, weight in self.weights.items()
        }


class _LossOfPart(Mask2FormerLoss):
    """The loss of some images of a batch as their contribution to that of the whole batch.

    What transformers divides by is counted over the whole batch, and the random points of the other
    images are drawn too. Every image counts as `least` masks or more.
    """

    def __init__(self, config: Mask2FormerConfig, least: int = 0) -> None:
        super().__init__(config, {})  # its weights only steer the matching
        self.least = least
        self.matcher = _MatcherOfPart(
            cost_class=config.class_weight,
            cost_dice=config.dice_weight,
            cost_mask=config.mask_weight,
            num_points=config.train_num_points,
        )

    def begin(self, part: Part, images: int) -> None:
        """Turn to a part with so many images; torch's generator starts as for the whole batch."""
        first, last = part.index * images, (part.index + 1) * images
        self.part, self.own = part, part.targets[first:last]
        self.masks_before, self.masks_after = sum(part.targets[:first]), sum(part.targets[last:])
        self.matcher.before, self.matcher.after = first, len(part.targets) - last
        if part.seed is not None:
            torch.manual_seed(part.seed)

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Number of masks that each part would have if all had the same."""
        masks = sum(max(count, self.least) for count in self.part.targets)
        return torch.tensor(max(masks, 1) / self.part.count, device=device)

    def loss_labels(
        self, class_queries_logits: Tensor, class_labels: list[Tensor], indices: Any
    ) -> dict[str, Tensor]:
        """Class loss: a mean over all queries, in which unmatched ones have less weight."""
        queries = class_queries_logits.shape[1]

        def weight(targets: tuple[int, ...]) -> float:
            unmatched = len(targets) * queries - sum(targets)
            return sum(targets) + self.eos_coef * unmatched

        share = self.part.count * weight(self.own) / weight(self.part.targets)
        losses = super().loss_labels(class_queries_logits, class_labels, indices)
        return {name: share * loss for name, loss in losses.items()}

    def sample_points_using_uncertainty(self, logits: Tensor, *settings: Any) -> Tensor:
        """Points of this part's masks (masks, points, 2), drawn with those of all masks."""
        before = (0, 0, 0, 0, 0, 0, self.masks_before, self.masks_after)
        points = super().sample_points_using_uncertainty(functional.pad(logits, before), *settings)
        return points[self.masks_before : self.masks_before + len(logits)]


class _MatcherOfPart(Mask2FormerHungarianMatcher):
    """Also draws the points of the images `before` and `after` those that it matches."""

    before = after = 0

    def forward(self, masks_queries_logits: Tensor, *others: Any) -> list[tuple[Tensor, Tensor]]:
        device = masks_queries_logits.device
        self._draw(self.before, device)
        matched = super().forward(masks_queries_logits, *others)
        self._draw(self.after, device)
        return matched

    def _draw(self, images: int, device: torch.device) -> None:
        for _ in range(images):
            # As transformers draws the points of one image; only the state of the generator
            # matters.
            torch.rand(1, self.num_points, 2, device=device)
