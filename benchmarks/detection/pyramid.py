"""A feature pyramid from the one map of a plain ViT (ViTDet, arXiv 2203.16527, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from benchmarks.detection import settings
from benchmarks.errors import UserError


class SimplePyramid(nn.Module):
    """Levels at 4, 2, 1 and 1/2 of the ViT's resolution, all from its last map, without top-down.

    Up by transposed convolutions, down by max pooling, then a 1x1 and a 3x3 convolution, each
    normalised over the channels.

    Args:
        width: channels of the ViT's map.
        spec: which levels, and how many channels they get.
    """

    def __init__(self, width: int, spec: settings.Pyramid) -> None:
        super().__init__()
        self.extra = spec.extra
        self.levels = nn.ModuleList(_level(width, scale, spec.channels) for scale in spec.scales)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, width, h, w) -> per level (B, channels, scale h, scale w), fine to coarse.

        The extra level, where the protocol has one, comes last.
        """
        maps = [level(features) for level in self.levels]
        if self.extra:
            # As Detectron2's LastLevelMaxPool: every second pixel, no maximum over several.
            maps.append(nn.functional.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return maps


def last_map(backbone: nn.Module, features: Sequence[int], images: Tensor) -> Tensor:
    """Output of the one block in `features`, before any final norm: (B, width, h, w)."""
    (feature_map,) = backbone.forward_intermediates(
        images, indices=list(features), norm=False, stop_early=True, intermediates_only=True
    )
    return feature_map


def fitting_strides(
    backbone: nn.Module, features: Sequence[int], spec: settings.Pyramid
) -> list[int]:
    """`strides` of the levels on this ViT.

    Raises:
        UserError: `features` is not one block of the backbone, or its patches do not fit.
    """
    if len(features) != 1 or not 0 <= features[0] < len(backbone.blocks):
        raise UserError(
            f"backbone.features {list(features)}: the pyramid reads one block out of "
            f"0..{len(backbone.blocks) - 1}"
        )
    try:
        return strides(backbone.patch_embed.patch_size[0], spec)
    except ValueError as error:
        raise UserError(f"head.pyramid.scales: {error}; drop it") from None


def strides(patch: int, spec: settings.Pyramid) -> list[int]:
    """Pixels of the image per pixel of each level, the extra one included.

    Raises:
        ValueError: a level would be finer than the image.
    """
    exact = [patch / scale for scale in spec.scales]
    if spec.extra:
        exact.append(2 * exact[-1])
    if any(stride != int(stride) for stride in exact):
        raise ValueError(f"patches of {patch} pixels have no level at scale {spec.scales[0]}")
    return [int(stride) for stride in exact]


def _level(width: int, scale: float, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if scale == 0.5:
        layers.append(nn.MaxPool2d(kernel_size=2))
    while scale > 1:
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width, scale = width // 2, scale / 2
        if scale > 1:
            # As in ViTDet: between two transposed convolutions, not after the last one.
            layers += [LayerNorm2d(width), nn.GELU()]
    layers += [
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]
    return nn.Sequential(*layers)


@torch.no_grad()
def padded(images: Tensor, multiple: int) -> Tensor:
    """Images (B, 3, H, W) with zeros at the bottom and right, to sides of that multiple."""
    bottom, right = (-side % multiple for side in images.shape[-2:])
    return nn.functional.pad(images, (0, right, 0, bottom)) if bottom or right else images
