"""The set loss of Mask2Former on semantic ground truth, all decoder layers in one pass.

Same terms and weights as transformers' Mask2FormerLoss (source: arXiv 2112.01527, sec. 3.3): each
class of an image is one target mask; targets are matched to queries by class, mask and dice cost on
random points; matched masks are compared on points drawn mostly where the prediction is uncertain.
Two things differ, for speed: one call serves all layers instead of one call per layer and image,
and the layers share the random points from which each takes its own uncertain ones. The points come
from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cards import IGNORE
from benchmarks.protocol_parts import Head

OVERSAMPLE = 3  # random points drawn per point kept
IMPORTANCE = 0.75  # share of the kept points that are the most uncertain ones


class SetLoss(nn.Module):
    """Weighted class, mask and dice losses, each summed over the decoder layers."""

    def __init__(self, classes: int, sizes: Head) -> None:
        super().__init__()
        self.classes, self.points = classes, sizes.points
        self.weights = (sizes.class_weight, sizes.mask_weight, sizes.dice_weight)
        weight = torch.ones(classes + 1)
        weight[-1] = sizes.no_object_weight
        self.register_buffer("class_balance", weight, persistent=False)

    def forward(
        self, masks: Sequence[Tensor], classes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The losses of a batch, to be added up.

        Args:
            masks: per layer the mask logits (B, queries, h, w).
            classes: class logits (layers, B, queries, classes + 1), void last.
            labels: trainIds (B, H, W), 255 = ignore. Ignored pixels are outside every mask.

        Returns:
            {"class", "mask", "dice"}: scalars. Without any target the last two are 0.
        """
        layers, batch, queries = classes.shape[:3]
        image, category = _targets(labels, self.classes)
        targets = (labels[image] == category[:, None, None]).float()[:, None]  # (M, 1, H, W)
        row = self._match(masks, classes, targets, image, category)  # (layers, M)

        wanted = torch.full((layers, batch * queries), self.classes, device=labels.device)
        wanted.scatter_(1, row, category.expand(layers, -1))
        # Every layer matches the same number of targets, so the mean over all layers is the mean
        # of the layers' weighted means.
        loss_class = layers * functional.cross_entropy(
            classes.flatten(0, 2), wanted.flatten(), weight=self.class_balance
        )
        losses = {"class": self.weights[0] * loss_class}
        if len(image) == 0:
            nothing = sum(mask.sum() for mask in masks) * 0
            return losses | {"mask": nothing, "dice": nothing}

        matched = torch.stack(
            [mask.flatten(0, 1).index_select(0, own) for mask, own in zip(masks, row, strict=True)],
            dim=1,
        )  # (M, layers, h, w)
        with torch.no_grad():
            points = self._points(matched)  # (M, layers, points, 2)
            truth = _sample(targets, points).flatten(0, 2)
        logits = _sample(matched.flatten(0, 1)[:, None], points.flatten(0, 1)[:, None])
        logits = logits.flatten(0, 2)  # (M * layers, points), as `truth`
        loss_mask = functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        inside = logits.sigmoid()
        overlap = 2 * (inside * truth).sum(-1) + 1
        loss_dice = (1 - overlap / (inside.sum(-1) + truth.sum(-1) + 1)).sum()
        return losses | {
            "mask": self.weights[1] * loss_mask / (self.points * len(image)),
            "dice": self.weights[2] * loss_dice / len(image),
        }

    @torch.no_grad()
    def _match(
        self,
        masks: Sequence[Tensor],
        classes: Tensor,
        targets: Tensor,
        image: Tensor,
        category: Tensor,
    ) -> Tensor:
        """Image x queries + query of every target in every layer, (layers, M)."""
        layers, batch, queries = classes.shape[:3]
        points = torch.rand(batch, 1, self.points, 2, device=classes.device) * 2 - 1
        logits = torch.cat([_sample(mask, points)[:, :, 0] for mask in masks], dim=1)
        outside = functional.softplus(logits).sum(-1, keepdim=True)  # (B, layers * queries, 1)
        inside = logits.sigmoid()
        share = classes.softmax(-1)
        row = torch.empty(layers, len(image), dtype=torch.long)
        for index in range(batch):
            own = (image == index).nonzero()[:, 0]
            if len(own) == 0:
                continue
            truth = _sample(targets[own].transpose(0, 1), points[index : index + 1])[0, :, 0]
            # binary cross-entropy: softplus(x) - x t, summed over the points by one product
            cost_mask = (outside[index] - logits[index] @ truth.T) / self.points
            overlap = 2 * inside[index] @ truth.T + 1
            cost_dice = 1 - overlap / (inside[index].sum(-1, keepdim=True) + truth.sum(-1) + 1)
            cost = self.weights[1] * cost_mask + self.weights[2] * cost_dice
            cost = cost.view(layers, queries, len(own))
            cost = cost - self.weights[0] * share[:, index][..., category[own]]
            # Not finite: matched last, so that the loss itself shows it.
            cost = torch.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=1e9).cpu().numpy()
            for layer in range(layers):
                query, target = linear_sum_assignment(cost[layer])
                row[layer, own.cpu()[target]] = torch.from_numpy(query) + index * queries
        return row.to(classes.device)

    def _points(self, masks: Tensor) -> Tensor:
        """Points in [-1, 1], (M, layers, points, 2), for mask logits (M, layers, h, w).

        The most uncertain of 3 x `points` random ones, and some that are just random.
        """
        count, layers = masks.shape[:2]
        certain = int(IMPORTANCE * self.points)
        total = OVERSAMPLE * self.points + self.points - certain
        drawn = torch.rand(count, 1, total, 2, device=masks.device) * 2 - 1
        candidates, others = drawn.split([OVERSAMPLE * self.points, self.points - certain], dim=2)
        doubt = _sample(masks, candidates)[:, :, 0].abs()
        nearest = doubt.topk(certain, dim=-1, largest=False, sorted=False).indices
        chosen = candidates.expand(-1, layers, -1, -1).gather(
            2, nearest[..., None].expand(-1, -1, -1, 2)
        )
        return torch.cat([chosen, others.expand(-1, layers, -1, -1)], dim=2)


def _targets(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Image index and class of every class present in a batch of labels, both (M,)."""
    image, category = [], []
    for index, label in enumerate(labels):
        present = label.unique()
        present = present[(present != IGNORE) & (present < classes)]
        image.append(torch.full_like(present, index))
        category.append(present)
    return torch.cat(image), torch.cat(category)


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (N, channels, a, b) of maps (N, channels, h, w) at points (N, a, b, 2)."""
    return functional.grid_sample(maps, points, mode="bilinear", align_corners=False)
