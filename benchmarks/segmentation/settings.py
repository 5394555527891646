"""What a segmentation protocol holds besides the parts that every protocol has."""

import itertools
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from benchmarks.protocol import Count, Fraction, NotNegative, Positive, Protocol, Range
from benchmarks.yaml_files import KIND, Strict, added_field


class Mask2FormerHead(Strict):
    """Sizes (channels, counts) and loss weights of Mask2Former.

    `points` are sampled per mask in the loss. `scales` resize the four feature maps, fine to
    coarse. The default is that of Rein and SoMA, strides of 4 to 32 pixels with patches of 16.
    `encoder_feedforward` is the width in the pixel decoder's layers where it is another.
    `count_unlabelled`: the mask and dice losses are divided by the number of masks in the batch; an
    image without a labelled pixel counts as one, as in mmdetection, or as none.

    `initialisation` is whose weights the head starts from. In all three, what encoder and decoder
    layers multiply with is drawn by Xavier's rule, sampling points of the deformable attention
    start on rays, convolutions are Kaiming's (uniform, a = 1), embeddings normal of deviation 1,
    biases of convolutions, deformable and cross attention 0; the linear layers of the class and
    mask predictions and the biases of feed-forward layers are torch's.

    - "paper", the code of arXiv 2112.01527: Xavier's rule is uniform; query, key and value of
      self-attention are drawn as one matrix and have biases of 0, as has its output; the 1x1
      projections of the three coarse maps are Xavier's (uniform).
    - "mmdet", mmdetection 3: as "paper", but Xavier's rule is normal in encoder and decoder layers,
      except in value and output of the deformable attention.
    - "suite": as "paper", but query, key and value are three matrices with larger weights, these
      and the output have torch's biases, and the projections are Kaiming's.
    """

    kind: Literal["mask2former"] = added_field("mask2former")
    hidden: Count
    feedforward: Count
    encoder_feedforward: Count | None = added_field(None)
    encoder_layers: Count
    decoder_layers: Count
    attention_heads: Count
    queries: Count
    points: Count
    scales: tuple[Positive, Positive, Positive, Positive] = (4.0, 2.0, 1.0, 0.5)
    class_weight: NotNegative = 2.0
    mask_weight: NotNegative = 5.0
    dice_weight: NotNegative = 5.0
    no_object_weight: NotNegative = 0.1
    initialisation: Literal["suite", "paper", "mmdet"] = added_field("suite")
    count_unlabelled: bool = added_field(False)

    @model_validator(mode="after")
    def _fine_to_coarse(self) -> "Mask2FormerHead":
        if any(fine < coarse for fine, coarse in itertools.pairwise(self.scales)):
            raise ValueError(f"scales {list(self.scales)}: list them fine to coarse, largest first")
        return self


class SemanticFpnHead(Strict):
    """Widths of the head of Semantic FPN.

    `scales` resize the feature maps, fine to coarse, one map of the backbone for each; every scale
    is the finest one halved some times. `hidden` is the width that the maps are reduced to,
    `channels` that of the stages, `groups` those of every group norm. The defaults are the paper's,
    with patches of 16.
    """

    kind: Literal["semantic-fpn"]
    hidden: Count = 256
    channels: Count = 128
    groups: Count = 32
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (4.0, 2.0, 1.0, 0.5)

    @model_validator(mode="after")
    def _fits_together(self) -> "SemanticFpnHead":
        for name, width in (("hidden", self.hidden), ("channels", self.channels)):
            if width % self.groups:
                raise ValueError(f"{name} {width}: must be a multiple of groups {self.groups}")
        halvings = [math.log2(self.scales[0] / scale) for scale in self.scales]
        if any(number < 0 or not number.is_integer() for number in halvings):
            raise ValueError(
                f"scales {list(self.scales)}: list the largest first; the others are it, halved "
                "once or several times"
            )
        return self


class LinearHead(Strict):
    """A linear classifier of the patches; the maps that it reads are `backbone.features`."""

    kind: Literal["linear"]


def _kind(head: Any) -> str:
    """Tag of a head as a mapping or a model; protocols older than the choice name no kind."""
    if isinstance(head, dict):
        return f"{KIND}{head.get('kind', 'mask2former')}"
    return f"{KIND}{getattr(head, 'kind', 'mask2former')}"


Head = Annotated[
    Annotated[Mask2FormerHead, Tag(f"{KIND}mask2former")]
    | Annotated[SemanticFpnHead, Tag(f"{KIND}semantic-fpn")]
    | Annotated[LinearHead, Tag(f"{KIND}linear")],
    Discriminator(
        _kind,
        custom_error_type="head_kind",
        custom_error_message="kind is one of mask2former, semantic-fpn, linear",
    ),
]


class Augment(Strict):
    """Training augmentation: lengths in pixels, `max_class_share` and `flip` as shares of 1.

    `factor` is the range of a number, uniformly drawn, by which the drawn short side and the cap on
    the long side are both multiplied.
    """

    short_sides: Annotated[tuple[Count, ...], Field(min_length=1)]
    long_side_max: Count
    factor: Range = added_field((1.0, 1.0))
    crop: Count
    max_class_share: Fraction
    flip: Fraction
    photometric: bool


class Window(Strict):
    """Sliding window of evaluation: side and stride in pixels."""

    size: Count
    stride: Count


class SegmentationProtocol(Protocol):
    """A protocol of semantic segmentation."""

    metric: ClassVar[str] = "mIoU"
    ground_truth: ClassVar[Literal["label"]] = "label"
    task: Literal["segmentation"]
    head: Head
    augment: Augment
    window: Window

    @model_validator(mode="after")
    def _pads_no_image(self) -> "SegmentationProtocol":
        for domain in (*self.source, *self.scored_domains):
            if domain.pad:
                raise ValueError(f"{domain.domain}: pad: segmentation scores windows; leave it out")
        return self
