"""What a segmentation protocol holds besides the parts that every protocol has."""

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from benchmarks.protocol import Count, Fraction, NotNegative, Positive, Protocol, Range
from benchmarks.yaml_files import Strict, added_field


class Head(Strict):
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
    def _fine_to_coarse(self) -> "Head":
        if any(fine < coarse for fine, coarse in itertools.pairwise(self.scales)):
            raise ValueError(f"scales {list(self.scales)}: list them fine to coarse, largest first")
        return self


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
    """A protocol of semantic segmentation with Mask2Former."""

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
