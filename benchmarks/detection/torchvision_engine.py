"""Faster R-CNN on a plain ViT from torchvision's parts, every number of them from the protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from benchmarks.detection.predictions import Detections
from benchmarks.detection.pyramid import SimplePyramid, fitting_strides, last_map, padded
from benchmarks.detection.settings import FasterRCNN, Kept, Roi, Rpn


class Detector(nn.Module):
    """Backbone, simple feature pyramid, region proposals, box head.

    Args:
        backbone: a timm ViT; its parameters are the ones that a method adapts.
        features: the one block whose output (before any final norm) is the map that is read.
        spec: the detector of the protocol.
        classes: number of classes, background not counted.

    Raises:
        UserError: `features` is not one block of the backbone, or its patches do not fit.
    """

    def __init__(
        self, backbone: nn.Module, features: Sequence[int], spec: FasterRCNN, classes: int
    ) -> None:
        super().__init__()
        steps = fitting_strides(backbone, features, spec.pyramid)
        self.backbone = backbone
        self.features = list(features)
        # Padded to it, every level covers the image exactly and its stride is a whole number.
        self.multiple = max(*steps, backbone.patch_embed.patch_size[0])
        self.pyramid = SimplePyramid(backbone.embed_dim, spec.pyramid)
        self.rpn = _proposals(spec.rpn, spec.pyramid.channels)
        pooled = steps[: len(spec.pyramid.scales)]
        self.roi = _box_head(spec.roi, spec.pyramid.channels, pooled, classes)

    def forward(self, batch: dict[str, Tensor | list[Tensor]]) -> dict[str, Tensor]:
        """Losses of a batch, to be added up.

        Which anchors and proposals take part is drawn from torch's global generator. Each loss is
        a mean over what was drawn. Parts of a batch therefore average to the loss of the whole one
        where every image gives its full number of samples, as is usual, but for other draws.

        Args:
            batch: image float (B, 3, S, S), normalised, 0 where padded; boxes: per image (n, 4) in
                pixels; labels: per image int64 (n,) from 0 on; size int64 (B, 2), height and width
                before padding.
        """
        sizes = [(int(height), int(width)) for height, width in batch["size"].tolist()]
        targets = [
            {"boxes": boxes, "labels": labels + 1}  # torchvision: 0 is background
            for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
        ]
        images = padded(batch["image"], self.multiple)
        maps = self.feature_maps(images)
        # Overlaps and deltas need float32 even where the network runs in a shorter type.
        with torch.autocast(images.device.type, enabled=False):
            levels = _named(maps)
            proposals, first = self.rpn(ImageList(images, sizes), levels, targets)
            _, second = self.roi(levels, proposals, sizes, targets)
        return {name.removeprefix("loss_"): value for name, value in (first | second).items()}

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Levels of the pyramid (B, C, h, w), of images (B, 3, H, W) with fitting sides."""
        return self.pyramid(last_map(self.backbone, self.features, images))

    @torch.no_grad()
    def detect(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Detections]:
        """The objects in images, best first; the module has to be in evaluation mode.

        Args:
            images: (B, 3, H, W), normalised.
            sizes: (height, width) of each before padding, in which its boxes lie; null is (H, W).
        """
        sizes = list(sizes or [tuple(images.shape[-2:])] * len(images))
        images = padded(images, self.multiple)
        maps = self.feature_maps(images)
        with torch.autocast(images.device.type, enabled=False):
            levels = _named(maps)
            proposals, _ = self.rpn(ImageList(images, sizes), levels)
            results, _ = self.roi(levels, proposals, sizes)
        return [
            Detections(
                result["boxes"].cpu().numpy(),
                result["scores"].cpu().numpy(),
                result["labels"].cpu().numpy() - 1,
            )
            for result in results
        ]


class Anchors(AnchorGenerator):
    """torchvision's anchors without rounding, which would move a side of 5 pixels by a fifth."""

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Boxes (n, 4) around the origin, n = sides x ratios, side after side."""
        boxes = []
        for side in scales:
            for ratio in aspect_ratios:
                width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                boxes.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(boxes, dtype=dtype, device=device)


class Pooling(nn.Module):
    """Each region pooled from the level that fits its size, at half-pixel centres.

    torchvision's own module guesses the strides from the first batch that it sees, wrongly where
    images are padded, and shifts regions by half a pixel.

    Args:
        spec: of the box head.
        steps: strides of the levels in pixels, fine to coarse.
    """

    def __init__(self, spec: Roi, steps: Sequence[int]) -> None:
        super().__init__()
        self.spec, self.steps = spec, list(steps)
        self.output_size = (spec.pool, spec.pool)

    def level_of(self, boxes: Tensor) -> Tensor:
        """Index of the level of each box (n, 4): equation 1 of arXiv 1612.03144."""
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        finest = math.log2(self.steps[0] / self.spec.canonical_stride)
        # The small term, as in torchvision: a box of exactly a power of two must not fall a level
        # lower by rounding.
        wanted = torch.floor(torch.log2(sides / self.spec.canonical_side) + 1e-6) - finest
        return wanted.clamp(0, len(self.steps) - 1).long()

    def forward(
        self, levels: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Regions of all images (n, C, pool, pool), from levels (B, C, h, w) and boxes (n, 4)."""
        maps = list(levels.values())[: len(self.steps)]  # the extra level only proposes
        image = torch.cat([torch.full_like(b[:, :1], i) for i, b in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(boxes)], dim=1)
        chosen = self.level_of(regions[:, 1:])
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for index, (features, step) in enumerate(zip(maps, self.steps, strict=True)):
            here = torch.where(chosen == index)[0]
            part = roi_align(
                features, regions[here], self.output_size, 1 / step, self.spec.sampling, True
            )
            pooled = pooled.index_copy(0, here, part)
        return pooled


def _named(maps: list[Tensor]) -> dict[str, Tensor]:
    return {str(index): level.float() for index, level in enumerate(maps)}


def _proposals(spec: Rpn, channels: int) -> RegionProposalNetwork:
    anchors = Anchors(spec.anchors, (spec.ratios,) * len(spec.anchors))
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=spec.convs),
        fg_iou_thresh=spec.matching.positive,
        bg_iou_thresh=spec.matching.negative,
        batch_size_per_image=spec.matching.samples,
        positive_fraction=spec.matching.positive_share,
        pre_nms_top_n=_modes(spec.before_nms),
        post_nms_top_n=_modes(spec.after_nms),
        nms_thresh=spec.nms,
    )


def _modes(kept: Kept) -> dict[str, int]:
    return {"training": kept.train, "testing": kept.test}


def _box_head(spec: Roi, channels: int, steps: Sequence[int], classes: int) -> RoIHeads:
    head = FastRCNNConvFCHead(
        (channels, spec.pool, spec.pool),
        [channels] * spec.convs,
        [spec.hidden] * spec.linears,
        norm_layer=LayerNorm2d,
    )
    predictor = FastRCNNPredictor(spec.hidden, classes + 1)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            # As Detectron2 (c2_xavier_fill); torchvision leaves linears at torch's own start.
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)
    # Small at the start: every region is about as likely of every class, and stays where it is.
    for linear, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(linear.weight, std=deviation)
        nn.init.zeros_(linear.bias)
    return RoIHeads(
        Pooling(spec, steps),
        head,
        predictor,
        fg_iou_thresh=spec.matching.positive,
        bg_iou_thresh=spec.matching.negative,
        batch_size_per_image=spec.matching.samples,
        positive_fraction=spec.matching.positive_share,
        bbox_reg_weights=spec.weights,
        score_thresh=spec.score,
        nms_thresh=spec.nms,
        detections_per_img=spec.detections,
    )
