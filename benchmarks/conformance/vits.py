"""Small random backbones on which methods are checked: one per layout of tokens and of linears."""

import timm
import torch
from torch import Tensor, nn

from soma import split_qkv

WIDTH, DEPTH = 32, 3
_SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "num_heads": 2, "num_classes": 0}
_VIT, _EVA, _GRID = "vit_tiny_patch16_224", "eva02_large_patch14_224", "samvit_base_patch16"
_REGISTERS = {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True}
# The norm of EVA stands before its pooling, so that it takes part in the features.
_NORM = {"use_post_transformer_norm": True, "use_fc_norm": False}
_WINDOWS = {"window_size": 2, "global_attn_indexes": (1,), "neck_chans": WIDTH}
_MODELS = {
    # the layout of the mini backbone
    "class token": (_VIT, {}),
    # DINOv2 with registers
    "registers and layer scale": (_VIT, _REGISTERS),
    # EVA02-L: q, k, v apart by nature and no bias of the keys; a norm inside the gated MLP
    "rotary and SwiGLU": (_EVA, {"mlp_ratio": 3, **_NORM}),
    # SAM, ViTDet: blocks see B x height x width x channels, there is no token before the patches
    "grid in windows": (_GRID, _WINDOWS),
}
KINDS = tuple(_MODELS)


def build_vit(kind: str, *, split: bool = True, depth: int = DEPTH) -> nn.Module:
    """A random backbone in eval mode, the same on every call; no tensor of it is constant.

    Seeds torch's global generator. Width 32, 2 heads, 16 patches of 8 x 8 pixels.

    Args:
        kind: one of `KINDS`.
        split: q, k and v as linears of their own; else fused where the model fuses them.
        depth: number of blocks, at least 2.
    """
    name, options = _MODELS[kind]
    torch.manual_seed(7)
    vit = timm.create_model(name, pretrained=False, **_SIZE, **options, depth=depth)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if split:
        split_qkv(vit)
    return vit.eval()


def draw_images() -> Tensor:
    """Three images of noise, (3, 3, 32, 32), the same on every call."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
