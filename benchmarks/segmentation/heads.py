"""What every segmentation model is, and the two heads that classify pixel by pixel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from benchmarks.data.cards import IGNORE
from benchmarks.distributed import Batch, Part
from benchmarks.errors import UserError
from benchmarks.segmentation.settings import LinearHead, SemanticFpnHead


class Segmenter(nn.Module):
    """Backbone, feature maps, head. Derived classes give losses (`forward`) and `scores`.

    Args:
        backbone: a timm ViT; its parameters are the ones that a method adapts.
        features: block indices whose outputs (before any final norm) become the feature maps, fine
            to coarse.
        head: reads the maps.
    """

    def __init__(self, backbone: nn.Module, features: Sequence[int], head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.features = list(features)
        self.head = head

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Outputs of the blocks as maps (B, width, h, w), one pixel per patch."""
        return self.backbone.forward_intermediates(
            images, indices=self.features, norm=False, stop_early=True, intermediates_only=True
        )

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Class scores (B, classes, H, W) of images (B, 3, H, W).

        Images whose sides are no multiple of the patch are padded with 0 and the scores cut back.
        """
        height, width = images.shape[-2:]
        patch = self.backbone.patch_embed.patch_size
        bottom, right = -height % patch[0], -width % patch[1]
        padded = functional.pad(images, (0, right, 0, bottom)) if bottom or right else images
        return self.scores(padded, height, width)

    def scores(self, images: Tensor, height: int, width: int) -> Tensor:
        """Class scores (B, classes, height, width) of the upper left pixels of `images`.

        Images (B, 3, H, W) have whole patches.
        """
        raise NotImplementedError


class PixelSegmenter(Segmenter):
    """A head that gives the logits of every class at every place of one map."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch: the mean cross-entropy of its labelled pixels.

        Args:
            batch: image float (B, 3, H, W), normalised; label int64 (B, H, W), 255 = ignore; part,
                where these are not all images of the batch.
        """
        logits = self.head(self.feature_maps(batch["image"]))
        with torch.autocast(logits.device.type, enabled=False):
            loss = pixel_loss(logits.float(), batch["label"], batch.get("part"))
        return {"cross_entropy": loss}

    def scores(self, images: Tensor, height: int, width: int) -> Tensor:
        """Logits (B, classes, height, width), bilinear at the images' size, then cut."""
        logits = self.head(self.feature_maps(images)).float()
        return _bilinear(logits, images.shape[-2:])[..., :height, :width]


def pixel_loss(logits: Tensor, labels: Tensor, part: Part | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels of the whole batch; 0 where it has none.

    Args:
        logits: (B, classes, h, w), bilinear at the labels' size.
        labels: trainIds (B, H, W), 255 = ignore.
        part: which part of a batch these images are, where they are not all of it; its targets are
            labelled pixels. The mean over all parts is the loss of the batch.
    """
    total = functional.cross_entropy(
        _bilinear(logits, labels.shape[-2:]), labels, ignore_index=IGNORE, reduction="sum"
    )
    if part:
        return total * (part.count / max(sum(part.targets), 1))
    return total / (labels != IGNORE).sum().clamp(min=1)


class SemanticFpn(nn.Module):
    """The semantic branch of Panoptic FPN (arXiv 1901.02446, section 3.1) on maps of a plain ViT.

    A 1x1 convolution and group norm reduce every map, which is then resized by its scale: these
    stand for the levels of the paper's FPN, without its top-down path. A level goes to the finest
    scale in stages of 3x3 convolution, group norm, ReLU and x2 bilinear upsampling; the finest one
    has one stage without upsampling. The sum goes through a 1x1 convolution.

    Starts: 3x3 convolutions Kaiming normal by their outputs, reducing ones Kaiming uniform (a = 1),
    as in the authors' Detectron2; norms 1 and 0; the last one torch's own, uniform within
    1 / sqrt(channels).
    """

    def __init__(self, width: int, sizes: SemanticFpnHead, classes: int) -> None:
        super().__init__()
        self.scales = sizes.scales
        self.reduce, self.levels = nn.ModuleList(), nn.ModuleList()
        for scale in sizes.scales:
            lateral = nn.Conv2d(width, sizes.hidden, 1, bias=False)
            nn.init.kaiming_uniform_(lateral.weight, a=1)
            self.reduce.append(nn.Sequential(lateral, nn.GroupNorm(sizes.groups, sizes.hidden)))
            stages = max(1, round(math.log2(sizes.scales[0] / scale)))
            widths = [sizes.hidden] + [sizes.channels] * stages
            pairs = itertools.pairwise(widths)
            self.levels.append(nn.ModuleList(_stage(*pair, sizes.groups) for pair in pairs))
        self.classifier = nn.Conv2d(sizes.channels, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, classes, s h, s w) with the first scale s, of maps (B, width, h, w)."""
        levels = [
            resized(reduce(one), scale)
            for one, reduce, scale in zip(maps, self.reduce, self.scales, strict=True)
        ]
        size = levels[0].shape[-2:]
        raised = (_raised(*pair, size) for pair in zip(levels, self.levels, strict=True))
        return self.classifier(sum(raised))


def _stage(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.ReLU())


def _raised(level: Tensor, stages: nn.ModuleList, size: tuple[int, int]) -> Tensor:
    """A level at the finest scale, `size`; sides that halve with a rest are rounded up."""
    for later, stage in zip(reversed(range(len(stages))), stages, strict=True):
        level = _bilinear(stage(level), [-(-side // 2**later) for side in size])
    return level


class LinearClassifier(nn.Module):
    """A linear layer on the patches: DINOv2's read-out for segmentation (arXiv 2304.07193, 7.4).

    Batch norm of the concatenated maps, then a 1x1 convolution to logits at the patches'
    resolution. The paper's "lin." reads the last block, its "+ms" the last four (and tests at
    several scales, which nothing here does). The batch norm is that of the authors' code; blocks
    are read before the backbone's final norm. Starts: the convolution normal of deviation 0.01 and
    bias 0, the norm 1 and 0.
    """

    def __init__(self, width: int, maps: int, classes: int) -> None:
        super().__init__()
        self.norm = SharedBatchNorm(width * maps)
        self.classifier = nn.Conv2d(width * maps, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, classes, h, w) of maps (B, width, h, w)."""
        return self.classifier(self.norm(torch.cat(maps, dim=1)))


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the images of all processes, on any device."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w), of equal size in every process, in the same shape."""
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = torch.distributed.get_world_size() if shared else 1
        if not self.training or world == 1:
            return super().forward(maps)
        # Sums over whole maps lose digits in 16 bits.
        maps = maps.float()
        mean = all_reduce(maps.mean((0, 2, 3), keepdim=True)) / world
        # A second pass with the shared mean: E[x^2] - E[x]^2 would cancel digits.
        centred = maps - mean
        variance = all_reduce(centred.square().mean((0, 2, 3), keepdim=True)) / world
        count = world * maps.numel() // self.num_features
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            # Torch keeps the unbiased variance, and normalises by the biased one.
            self.running_var.lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return centred * scale + self.bias[:, None, None]


def resized(maps: Tensor, scale: float) -> Tensor:
    """Maps (B, C, h, w) at `scale` times their size, bilinear."""
    if scale == 1:
        return maps
    return functional.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)


def _bilinear(maps: Tensor, size: Sequence[int]) -> Tensor:
    if maps.shape[-2:] == tuple(size):
        return maps
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_segmenter(
    backbone: nn.Module,
    features: Sequence[int],
    sizes: SemanticFpnHead | LinearHead,
    classes: int,
) -> PixelSegmenter:
    """A model with one of the heads that classify pixels; see `Segmenter`.

    Raises:
        UserError: the head cannot read these features.
    """
    depth, wanted = len(backbone.blocks), len(getattr(sizes, "scales", features))
    if len(features) != wanted or not all(0 <= index < depth for index in features):
        raise UserError(
            f"backbone.features {list(features)}: {sizes.kind} reads {wanted} blocks out of "
            f"0..{depth - 1}; list so many"
        )
    if isinstance(sizes, SemanticFpnHead):
        head: nn.Module = SemanticFpn(backbone.embed_dim, sizes, classes)
    else:
        head = LinearClassifier(backbone.embed_dim, len(features), classes)
    return PixelSegmenter(backbone, features, head)
