"""A plain ViT with a Mask2Former head (arXiv 2112.01527), from the parts that transformers has."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerAttention,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerTransformerModule,
)

from benchmarks.distributed import Batch
from benchmarks.errors import UserError
from benchmarks.segmentation.heads import Segmenter, resized
from benchmarks.segmentation.loss import SetLoss
from benchmarks.segmentation.settings import Mask2FormerHead


class Mask2Former(Segmenter):
    """Backbone, four feature maps, Mask2Former head.

    Args:
        backbone: see `Segmenter`.
        features: see `Segmenter`; four block indices.
        sizes: widths, depths and loss weights of the head.
        classes: number of classes, void not counted.

    Raises:
        UserError: sizes that do not fit each other.
    """

    def __init__(
        self, backbone: nn.Module, features: Sequence[int], sizes: Mask2FormerHead, classes: int
    ) -> None:
        _check(features, sizes, classes, len(backbone.blocks))
        super().__init__(backbone, features, MaskHead(backbone.embed_dim, sizes, classes))
        self.loss = SetLoss(classes, sizes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of a batch, to be added up.

        Args:
            batch: image float (B, 3, H, W), normalised; label int64 (B, H, W), 255 = ignore; part,
                where these are not all images of the batch.
        """
        masks, classes = self.head(self.feature_maps(batch["image"]))
        # Points and costs need float32 even where the network runs in a shorter type.
        with torch.autocast(classes.device.type, enabled=False):
            masks, classes = [mask.float() for mask in masks], classes.float()
            return self.loss(masks, classes, batch["label"], batch.get("part"))

    def scores(self, images: Tensor, height: int, width: int) -> Tensor:
        """Class scores (B, classes, height, width), from the last decoder layer.

        score[c] = sum over queries of P(c | query) x sigmoid(mask logit upsampled to the image).
        """
        masks, classes = self.head(self.feature_maps(images))
        logits = functional.interpolate(
            masks[-1].float(), size=images.shape[-2:], mode="bilinear", align_corners=False
        )[..., :height, :width]
        # "No object", the last class, takes part in the softmax and names no pixel.
        shares = classes[-1].float().softmax(-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", shares, logits.sigmoid())


class MaskHead(nn.Module):
    """Pixel decoder and masked-attention decoder.

    Initialised as `Mask2FormerHead.initialisation` says.
    """

    def __init__(self, width: int, sizes: Mask2FormerHead, classes: int) -> None:
        super().__init__()
        self.scales = sizes.scales
        config = Mask2FormerConfig(
            feature_size=sizes.hidden,
            mask_feature_size=sizes.hidden,
            hidden_dim=sizes.hidden,
            encoder_feedforward_dim=sizes.encoder_feedforward or sizes.feedforward,
            dim_feedforward=sizes.feedforward,
            encoder_layers=sizes.encoder_layers,
            decoder_layers=sizes.decoder_layers + 1,  # transformers counts the learnt queries too
            num_attention_heads=sizes.attention_heads,
            num_queries=sizes.queries,
        )
        with warnings.catch_warnings():
            # Widths per attention head that are no power of 2 slow only a CUDA kernel not used.
            warnings.filterwarnings("ignore", message=".*power of 2.*")
            self.pixel_decoder = Mask2FormerPixelDecoder(config, [sizes.hidden] * len(sizes.scales))
        # The decoder begins with a 1x1 convolution of each resized map. Both are linear and act on
        # other axes, so their order is free: first reducing the channels is many times cheaper.
        fine_to_coarse = self.pixel_decoder.input_projections[::-1]
        self.reduce = nn.ModuleList()
        for block in (self.pixel_decoder.adapter_1, *fine_to_coarse):
            bias = block[0].bias is not None
            self.reduce.append(nn.Conv2d(width, sizes.hidden, 1, bias=bias))
            block[0] = nn.Identity()
        self.transformer = Mask2FormerTransformerModule(sizes.hidden, config)
        self.class_predictor = nn.Linear(sizes.hidden, classes + 1)
        self._initialise(sizes.initialisation)

    def _initialise(self, kind: str) -> None:
        """Draws the weights; see `Mask2FormerHead.initialisation`.

        The modules do not initialise themselves: level_embed would be whatever memory held.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        draw = nn.init.xavier_normal_ if kind == "mmdet" else nn.init.xavier_uniform_
        for layers in (self.pixel_decoder.encoder, self.transformer.decoder.layers):
            for parameter in layers.parameters():
                if parameter.dim() > 1:
                    draw(parameter)
        nn.init.normal_(self.pixel_decoder.level_embed)
        if kind != "suite":
            self._initialise_as_published(draw)
        for module in self.modules():
            if isinstance(module, Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
                _spread_offsets(module)

    def _initialise_as_published(self, draw: Callable[..., Tensor]) -> None:
        """What the paper's code and mmdetection draw otherwise than the suite."""
        for projection in self.reduce[1:]:
            nn.init.xavier_uniform_(projection.weight)
        for module in self.modules():
            if isinstance(module, Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
                nn.init.xavier_uniform_(module.value_proj.weight)
                nn.init.xavier_uniform_(module.output_proj.weight)
            elif isinstance(module, Mask2FormerAttention):
                for linear in (module.q_proj, module.k_proj, module.v_proj):
                    draw(linear.weight, gain=0.5**0.5)  # a third of one matrix (3 hidden, hidden)
                    nn.init.zeros_(linear.bias)
                nn.init.zeros_(module.out_proj.bias)

    def forward(self, maps: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Predictions of the learnt queries and of every decoder layer after them.

        Args:
            maps: four feature maps (B, width, h, w), which are resized by the head's scales.

        Returns:
            mask logits, per layer (B, queries, s h, s w) with the first scale s; class logits
            (layers, B, queries, classes + 1), void last.
        """
        maps = [
            resized(reduce(level), scale)
            for level, reduce, scale in zip(maps, self.reduce, self.scales, strict=True)
        ]
        pixels = self.pixel_decoder(maps, output_hidden_states=False, return_dict=True)
        decoded = self.transformer(pixels.multi_scale_features, pixels.mask_features)
        states = torch.stack(decoded.intermediate_hidden_states)  # (layers, queries, B, hidden)
        return decoded.masks_queries_logits, self.class_predictor(states.transpose(1, 2))


def _spread_offsets(attention: nn.Module) -> None:
    """Sampling points start on rays, one direction per head and 1, 2, ... pixels from the centre.

    Source: Deformable DETR, arXiv 2010.04159, appendix A.4.
    """
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angle = torch.arange(heads) * (2 * math.pi / heads)
    ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
    ray = ray / ray.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, points + 1)[:, None]
    offsets = (ray[:, None, None] * steps).expand(heads, levels, points, 2)
    nn.init.zeros_(attention.sampling_offsets.weight)
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    for linear in (attention.value_proj, attention.output_proj):
        nn.init.zeros_(linear.bias)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(offsets.flatten())


def _check(features: Sequence[int], sizes: Mask2FormerHead, classes: int, depth: int) -> None:
    if len(features) != len(sizes.scales) or not all(0 <= index < depth for index in features):
        raise UserError(
            f"backbone.features {list(features)}: Mask2Former reads {len(sizes.scales)} blocks "
            f"out of 0..{depth - 1}; list so many"
        )
    if sizes.hidden % 32 or sizes.hidden % sizes.attention_heads:
        raise UserError(
            f"head.hidden {sizes.hidden}: must be a multiple of 32 and of head.attention_heads "
            f"{sizes.attention_heads}"
        )
    if sizes.queries < classes:
        raise UserError(
            f"head.queries {sizes.queries}: one image may hold {classes} classes; take as many"
        )
