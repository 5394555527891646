"""Faster R-CNN on a plain ViT from Detectron2's parts, every number of them from the protocol.

The only file that imports Detectron2. Written for commit 02b5c4e of its repository.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from benchmarks.detection.predictions import Detections
from benchmarks.detection.pyramid import fitting_strides, last_map, padded
from benchmarks.detection.settings import FasterRCNN, Matching, Pyramid, Roi, Rpn
from benchmarks.errors import UserError

BETA = 1 / 9  # of smooth L1; torchvision fixes it, Detectron2's default is plain L1
# Of the losses: as the other engine calls them.
_NAMES = {
    "loss_rpn_cls": "objectness",
    "loss_rpn_loc": "rpn_box_reg",
    "loss_cls": "classifier",
    "loss_box_reg": "box_reg",
}


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
        if any(not math.log2(step).is_integer() for step in steps):
            raise UserError(
                f"engine detectron2: levels at strides of {steps} pixels, and it pools from powers "
                "of two; take a backbone with such patches, or engine: torchvision"
            )
        self.backbone = backbone
        pyramid = _pyramid(VitMap(backbone, features), spec.pyramid, steps)
        levels = list(pyramid.output_shape())
        pooled = dict(zip(levels, steps[: len(spec.pyramid.scales)], strict=False))
        self.rcnn = PaddedRCNN(
            max(*steps, backbone.patch_embed.patch_size[0]),
            backbone=pyramid,
            proposal_generator=_proposals(spec.rpn, spec.pyramid.channels, levels, steps),
            roi_heads=_box_head(spec.roi, spec.pyramid.channels, pooled, classes),
            # Images come normalised from the loader.
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(1.0, 1.0, 1.0),
        )

    def forward(self, batch: dict[str, Tensor | list[Tensor]]) -> dict[str, Tensor]:
        """Losses of a batch, to be added up; both as in `torchvision_engine`.

        Which anchors and proposals take part is drawn from torch's global generator.

        Raises:
            FloatingPointError: a proposal is not finite.
        """
        items = []
        fields = (batch[name] for name in ("image", "boxes", "labels"))
        for (height, width), image, boxes, labels in zip(
            batch["size"].tolist(), *fields, strict=True
        ):
            objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=labels)
            items.append({"image": image, "height": height, "width": width, "instances": objects})
        with EventStorage():  # Detectron2 counts its samples there, and asks for one
            losses = self.rcnn(items)
        return {_NAMES[name]: value for name, value in losses.items()}

    @torch.no_grad()
    def detect(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Detections]:
        """See `torchvision_engine.Detector.detect`."""
        sizes = sizes or [tuple(images.shape[-2:])] * len(images)
        items = zip(images, sizes, strict=True)
        results = self.rcnn([{"image": i, "height": h, "width": w} for i, (h, w) in items])
        return [
            Detections(
                instances.pred_boxes.tensor.cpu().numpy(),
                instances.scores.cpu().numpy(),
                instances.pred_classes.cpu().numpy(),
            )
            for instances in (result["instances"] for result in results)
        ]


class VitMap(Backbone):
    """The one map of a ViT, as Detectron2 asks for it.

    Args:
        backbone: the ViT, a submodule of the detector and not of this one, so that each of its
            parameters has one name.
        features: the block that is read.
    """

    def __init__(self, backbone: nn.Module, features: Sequence[int]) -> None:
        super().__init__()
        self.outside = (backbone,)  # a tuple registers nothing
        self.features = features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> (B, width, h, w), named "map"."""
        return {"map": last_map(self.outside[0], self.features, images)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels of the map, and pixels of the image per pixel of it."""
        (vit,) = self.outside
        return {"map": ShapeSpec(channels=vit.embed_dim, stride=vit.patch_embed.patch_size[0])}


class PaddedRCNN(GeneralizedRCNN):
    """Takes images of one size, normalised; pads them to sides of a multiple.

    Then every level covers them exactly. What of an image was no padding before, its dictionary
    says: height and width.
    """

    def __init__(self, multiple: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.multiple = multiple

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The padded images, (B, 3, h, w), with their sizes."""
        images = torch.stack([image["image"] for image in batched_inputs])
        sizes = [(image["height"], image["width"]) for image in batched_inputs]
        return ImageList(padded(images, self.multiple), sizes)


class Float32:
    """Before a head: overlaps and deltas need float32, even in a network of a shorter type."""

    def forward(self, images: ImageList, features: Mapping[str, Tensor], *others: Any) -> Any:
        """See `RPN.forward` and `StandardROIHeads.forward`."""
        features = {name: level.float() for name, level in features.items()}
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images, features, *others)


class Proposals(Float32, RPN):
    """Detectron2's region proposal network."""


class BoxHead(Float32, StandardROIHeads):
    """Detectron2's box head."""


def _pyramid(vit: VitMap, spec: Pyramid, steps: Sequence[int]) -> SimpleFeaturePyramid:
    top = None
    if spec.extra:
        top = LastLevelMaxPool()
        top.in_feature = f"p{int(math.log2(steps[-2]))}"  # the coarsest level; always p5 by default
    # Detectron2's own layer norm is no nn.LayerNorm, by which a recipe knows what does not decay.
    return SimpleFeaturePyramid(vit, "map", spec.channels, spec.scales, top, LayerNorm2d)


def _matcher(spec: Matching, low_quality: bool) -> Matcher:
    return Matcher([spec.negative, spec.positive], [0, -1, 1], low_quality)


def _proposals(spec: Rpn, channels: int, levels: Sequence[str], steps: Sequence[int]) -> Proposals:
    anchors = DefaultAnchorGenerator(
        sizes=spec.anchors, aspect_ratios=[spec.ratios], strides=steps, offset=0.0
    )
    return Proposals(
        in_features=levels,
        head=StandardRPNHead(
            in_channels=channels, num_anchors=anchors.num_anchors[0], conv_dims=[-1] * spec.convs
        ),
        anchor_generator=anchors,
        anchor_matcher=_matcher(spec.matching, low_quality=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=spec.matching.samples,
        positive_fraction=spec.matching.positive_share,
        pre_nms_topk=(spec.before_nms.train, spec.before_nms.test),
        post_nms_topk=(spec.after_nms.train, spec.after_nms.test),
        nms_thresh=spec.nms,
        smooth_l1_beta=BETA,
    )


def _box_head(spec: Roi, channels: int, steps: Mapping[str, int], classes: int) -> BoxHead:
    """`steps`: stride of each level that is pooled from, by name."""
    head = FastRCNNConvFCHead(
        ShapeSpec(channels=channels, height=spec.pool, width=spec.pool),
        conv_dims=[channels] * spec.convs,
        fc_dims=[spec.hidden] * spec.linears,
        conv_norm=LayerNorm2d,
    )
    predictor = FastRCNNOutputLayers(
        head.output_shape,
        box2box_transform=Box2BoxTransform(weights=spec.weights),
        num_classes=classes,
        test_score_thresh=spec.score,
        test_nms_thresh=spec.nms,
        test_topk_per_image=spec.detections,
        smooth_l1_beta=BETA,
    )
    pooler = ROIPooler(
        output_size=spec.pool,
        scales=[1 / step for step in steps.values()],
        sampling_ratio=spec.sampling,
        pooler_type="ROIAlignV2",
        canonical_box_size=spec.canonical_side,
        canonical_level=int(math.log2(spec.canonical_stride)),
    )
    return BoxHead(
        box_in_features=list(steps),
        box_pooler=pooler,
        box_head=head,
        box_predictor=predictor,
        num_classes=classes,
        batch_size_per_image=spec.matching.samples,
        positive_fraction=spec.matching.positive_share,
        proposal_matcher=_matcher(spec.matching, low_quality=False),
    )
