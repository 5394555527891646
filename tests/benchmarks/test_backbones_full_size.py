"""What methods and heads need of timm's transformers, at full size.

Names and shapes on the meta device; outputs at full width with two blocks; features at full depth.
"""

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from baselines import METHODS
from benchmarks.backbones import load_backbone
from benchmarks.protocol import RANDOM, Backbone
from soma import adapt, split_qkv
from soma.backbone import linears, prefix_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

# (depth, width, linears of the MLP beside fc2 -> their rows, columns of fc2, prefix tokens)
PLAIN, GATED = ("fc1",), ("fc1_g", "fc1_x")
MODELS = {
    "vit_small_patch14_dinov2": (12, 384, PLAIN, 1536, 1536, 1),
    "vit_base_patch14_dinov2": (12, 768, PLAIN, 3072, 3072, 1),
    "vit_large_patch14_dinov2": (24, 1024, PLAIN, 4096, 4096, 1),
    "vit_large_patch14_reg4_dinov2": (24, 1024, PLAIN, 4096, 4096, 5),
    "vit_giant_patch14_dinov2": (40, 1536, PLAIN, 8192, 4096, 1),  # fc1: gate and value in one
    "eva02_large_patch14_448": (24, 1024, GATED, 2730, 2730, 1),
    "eva02_large_patch14_clip_224": (24, 1024, GATED, 2730, 2730, 1),
    "eva02_small_patch14_224": (12, 384, PLAIN, 2048, 1024, 1),
    "vit_large_patch16_dinov3": (24, 1024, PLAIN, 4096, 4096, 5),
    "vit_large_patch16_dinov3_qkvb": (24, 1024, PLAIN, 4096, 4096, 5),
    "vit_huge_plus_patch16_dinov3": (32, 1280, GATED, 5120, 5120, 5),
    "vit_large_patch14_clip_224": (24, 1024, PLAIN, 4096, 4096, 1),
    "vit_so400m_patch14_siglip_384": (27, 1152, PLAIN, 4304, 4304, 0),
}
WIDE = [name for name in MODELS if "giant" not in name and "huge" not in name]


def on_meta(name: str, **args: object) -> nn.Module:
    with torch.device("meta"):
        vit = timm.create_model(name, num_classes=0, **args)
    split_qkv(vit)
    return vit


@pytest.mark.parametrize("name", MODELS)
def test_roles_and_counts(name: str) -> None:
    depth, width, first, rows, columns, prefix = MODELS[name]
    vit = on_meta(name)
    shapes = {
        **{role: (width, width) for role in ("q", "k", "v", "proj")},
        **{"fc1": (rows, width), "fc2": (width, columns)},
    }
    found = linears(vit)
    assert all(tuple(linear.weight.shape) == shapes[role] for _, _, role, linear in found)
    each = {role: len(first) if role == "fc1" else 1 for role in shapes}
    assert Counter(role for _, _, role, _ in found) == {r: depth * n for r, n in each.items()}
    assert prefix_tokens(vit) == prefix
    pairs = sum(each[role] * 16 * sum(shape) for role, shape in shapes.items())
    adapt(METHODS["lora"](rank=16), vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == depth * pairs


def test_the_backbone_of_the_paper() -> None:
    """DINOv2-L with 16-pixel patches and 512-pixel images, without the mask token (1024)."""
    vit = on_meta("vit_large_patch14_dinov2", patch_size=16, img_size=512)
    assert sum(p.numel() for p in vit.parameters()) == 304_199_680 - 1024
    adapt(METHODS["soma"](), vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == 4_867_072 - 1024


@pytest.mark.parametrize("name", WIDE)
def test_splitting_keeps_the_output_at_full_width(name: str) -> None:
    size = 2 * int(name.split("patch")[1][:2])
    args = {"depth": 2, "img_size": size}
    torch.manual_seed(0)
    fused = timm.create_model(name, num_classes=0, dynamic_img_size=True, **args).eval()
    torch.manual_seed(0)
    split = load_backbone(Backbone(name=name, args=args, weights=RANDOM, features=(0,))).eval()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected, found = fused(images), split(images)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: split q, k, v differ by {error:.1e} of the largest output")
    assert error <= 1e-5
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in fused.parameters())


# Class token; registers; rotary and SwiGLU; rotary and registers; a norm first; no class token.
LAYOUTS = (
    "vit_large_patch14_dinov2",
    "vit_large_patch14_reg4_dinov2",
    "eva02_large_patch14_448",
    "vit_large_patch16_dinov3",
    "vit_large_patch14_clip_224",
    "vit_so400m_patch14_siglip_384",
)


@pytest.mark.parametrize("size", [(512, 512), (160, 288)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_features_at_other_sizes_than_the_positions_are_for(
    name: str, size: tuple[int, int]
) -> None:
    args = {"patch_size": 16, "img_size": 128, "embed_dim": 32, "num_heads": 2, "depth": 24}
    vit = load_backbone(Backbone(name=name, args=args, weights=RANDOM, features=(0,))).eval()
    outputs = []
    for block in (7, 11, 15, 23):
        vit.blocks[block].register_forward_hook(lambda _, __, tokens: outputs.append(tokens))
    with torch.no_grad():
        features = vit.forward_intermediates(
            torch.randn(1, 3, *size), indices=[7, 11, 15, 23], norm=False, intermediates_only=True
        )
    rows, columns = size[0] // 16, size[1] // 16
    for feature, tokens in zip(features, outputs, strict=True):
        patches = tokens[:, prefix_tokens(vit) :].unflatten(1, (rows, columns))
        assert torch.equal(feature, patches.permute(0, 3, 1, 2))
        assert feature.isfinite().all()
