"""What a detection protocol holds besides the parts that every protocol has."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from benchmarks.detection import engines
from benchmarks.protocol import Count, Domain, Fraction, Index, Positive, Protocol, Range
from benchmarks.yaml_files import Strict, added_field


class DetectionAugment(Strict):
    """Training augmentation of images with boxes; lengths in pixels of the resized image.

    Attributes:
        base: (height, width) that the image is fitted into, its ratio kept.
        scale: range of the factor, uniformly drawn, by which that size is multiplied.
        crop: side of the square that is cut out; smaller images are padded to it.
        min_side: a box whose visible part is narrower or lower than this is dropped.
        min_visible: a box of which the crop leaves less than this share of its area is dropped.
        negative_crops: whether a crop may lose every box of its image. If not, it is drawn again,
            at most 10 times.
        flip: probability.
        photometric: whether colours are distorted.
        distortion: of which library: "mmseg" changes brightness, contrast, saturation and hue (by
            up to 36 degrees) in uint8; "mmdet" also permutes the channels, turns hue by up to 18
            degrees, and rounds and clips nothing.
        difficult: whether boxes flagged as difficult are trained on.
        empty: whether source images without a box to train on take part.
    """

    base: tuple[Count, Count]
    scale: Range
    crop: Count
    min_side: Positive
    min_visible: Fraction
    negative_crops: bool
    flip: Fraction
    photometric: bool
    distortion: Literal["mmseg", "mmdet"] = added_field("mmseg")
    difficult: Literal["keep", "drop"]
    empty: Literal["keep", "drop"]


class Pyramid(Strict):
    """The simple feature pyramid of a plain ViT (ViTDet, arXiv 2203.16527, section 3).

    Attributes:
        scales: of the levels against the ViT's map (one pixel per patch), fine to coarse, each half
            of the one before.
        channels: of every level.
        extra: whether a further level, every second pixel of the coarsest one, takes part in
            proposing regions (the paper's detectors: yes).
    """

    scales: Annotated[tuple[Literal[4.0, 2.0, 1.0, 0.5], ...], Field(min_length=1)]
    channels: Count
    extra: bool = False

    @model_validator(mode="after")
    def _halves(self) -> Pyramid:
        if any(fine != 2 * coarse for fine, coarse in itertools.pairwise(self.scales)):
            raise ValueError(f"scales {list(self.scales)}: each has to be half of the one before")
        return self


class Matching(Strict):
    """How boxes become examples of object and background.

    Attributes:
        positive: a box is an object from this overlap (IoU) on.
        negative: a box is background below this overlap; in between it takes no part.
        samples: boxes per image that are trained on.
        positive_share: at most so many of them objects.
    """

    positive: Fraction
    negative: Fraction
    samples: Count
    positive_share: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Matching:
        if self.negative > self.positive:
            raise ValueError(f"negative {self.negative} lies above positive {self.positive}")
        return self


class Kept(Strict):
    """How many proposals per image are kept, in training and in testing."""

    train: Count
    test: Count


class Rpn(Strict):
    """The region proposal network.

    Attributes:
        anchors: per level, fine to coarse (the extra one last), sides in pixels: an anchor covers
            side x side pixels.
        ratios: height / width of the anchors at every place.
        convs: hidden 3x3 convolutions.
        matching: of anchors.
        before_nms: proposals per level.
        after_nms: proposals of all levels.
        nms: largest overlap of two proposals of one level.
    """

    anchors: tuple[Annotated[tuple[Positive, ...], Field(min_length=1)], ...]
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    convs: Count = 1
    matching: Matching = Matching(positive=0.7, negative=0.3, samples=256, positive_share=0.5)
    before_nms: Kept = Kept(train=2000, test=1000)
    after_nms: Kept = Kept(train=1000, test=1000)
    nms: Fraction = 0.7


class Roi(Strict):
    """The box head of Faster R-CNN.

    Attributes:
        pool: side of a pooled region in bins.
        sampling: points per bin and axis, 0 for as many as the bin has pixels.
        canonical_side: a box of this side in pixels is pooled from the level with stride
            `canonical_stride`; each halving of the side halves the stride (arXiv 1612.03144, eq 1).
        convs: 3x3 convolutions before the linear layers.
        linears: number of linear layers.
        hidden: width of the linear layers.
        matching: of proposals, ground truth added to them.
        weights: of the box deltas (x, y, width, height).
        score: smallest score of a detection.
        nms: largest overlap of two detections of one class.
        detections: most per image.
    """

    pool: Count = 7
    sampling: Index = 0
    canonical_side: Positive = 224.0
    canonical_stride: Literal[1, 2, 4, 8, 16, 32, 64] = 16
    convs: Index = 0
    linears: Count = 2
    hidden: Count = 1024
    matching: Matching = Matching(positive=0.5, negative=0.5, samples=512, positive_share=0.25)
    weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    score: Fraction = 0.05
    nms: Fraction = 0.5
    detections: Count = 100


class FasterRCNN(Strict):
    """The detector: pyramid, proposals and box head. Both engines are built from these fields.

    Box losses are smooth L1 with beta 1/9, which torchvision fixes and Detectron2 is given. Anchors
    stand at the upper left corner of their pixel, regions are pooled at half-pixel centres, as
    Detectron2 does both.
    """

    pyramid: Pyramid
    rpn: Rpn
    roi: Roi = Roi()

    @model_validator(mode="after")
    def _anchors_fit(self) -> FasterRCNN:
        levels = len(self.pyramid.scales) + self.pyramid.extra
        if len(self.rpn.anchors) != levels:
            raise ValueError(f"rpn.anchors: {len(self.rpn.anchors)} lists for {levels} levels")
        if len({len(sides) for sides in self.rpn.anchors}) != 1:
            raise ValueError("rpn.anchors: every level needs as many sides; one head reads them")
        return self


class DetectionProtocol(Protocol):
    """A protocol of object detection with Faster R-CNN.

    Attributes:
        engine: what the detector is built from; auto takes Detectron2 where it is installed.
        source_test: test splits of the sources, scored beside the unseen domains; nothing is chosen
            on them.
    """

    metric: ClassVar[str] = "AP50_voc07"
    ground_truth: ClassVar[Literal["boxes"]] = "boxes"
    roles: ClassVar[dict[str, str]] = {
        "validation": "validation",
        "source": "source_test",
        "target": "targets",
        "extra": "extra",
    }
    task: Literal["detection"]
    engine: Literal["auto", "detectron2", "torchvision"] = "auto"
    head: FasterRCNN
    augment: DetectionAugment
    source_test: tuple[Domain, ...] = ()

    @property
    def engine_here(self) -> str:
        """The engine on this machine.

        Raises:
            UserError: the protocol asks for one that is not installed.
        """
        return engines.resolve(self.engine)

    @property
    def engine_reason(self) -> str:
        """One line on which engine a run takes, and why.

        Raises:
            UserError: the protocol asks for one that is not installed.
        """
        return engines.announcement(self.engine)
