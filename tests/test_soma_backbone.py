from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from soma.backbone import (
    NotApplicable,
    SplitQKV,
    block_index,
    comes_before,
    linears,
    merge_qkv,
    parameter_role,
    prefix_tokens,
    split_qkv,
)

Build = Callable[..., nn.Module]


def test_split_keeps_outputs_and_merge_restores_every_bit(small_vit: Build, images) -> None:
    vit = small_vit(split=False)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with torch.no_grad():
        expected = vit(images)
        split_qkv(vit)
        error = (vit(images) - expected).abs().max().item()
    print(f"split q, k, v: max output difference {error:.1e}")
    assert error <= 1e-5
    assert "blocks.0.attn.qkv.k.bias" in vit.state_dict()
    split_qkv(vit)  # a second time changes nothing
    assert isinstance(vit.blocks[0].attn.qkv.q, nn.Linear)
    merge_qkv(vit)
    after = vit.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_split_without_bias_keeps_flags() -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2, num_classes=0, qkv_bias=False
    ).eval()
    vit.blocks[0].attn.qkv.weight.requires_grad_(False)
    split_qkv(vit)
    layers = vit.blocks[0].attn.qkv
    assert isinstance(layers, SplitQKV)
    assert not layers.training
    for layer in (layers.q, layers.k, layers.v):
        assert layer.bias is None
        assert not layer.weight.requires_grad
    merge_qkv(vit)
    assert vit.blocks[0].attn.qkv.bias is None


def test_merge_refuses_adapters(small_vit: Build) -> None:
    from soma import SoMA, adapt

    vit = small_vit()
    adapt(SoMA(rank=2), vit)
    with pytest.raises(ValueError, match="fold it before"):
        merge_qkv(vit)


def test_roles_match_leaf_names_inside_blocks_only(small_vit: Build) -> None:
    vit = small_vit()
    vit.blocks[1].extra_proj = nn.Linear(2, 2)  # ends with "proj" but is none
    vit.blocks[1].mlp.norm = nn.LayerNorm(2)
    found = linears(vit)
    assert len(found) == 4 * 6
    assert [role for _, block, role, _ in found if block == 2] == [
        "q",
        "k",
        "v",
        "proj",
        "fc1",
        "fc2",
    ]
    for name, block, role, module in found:
        assert vit.get_submodule(name) is module
        assert block_index(f"{name}.weight") == block
        assert parameter_role(f"{name}.weight") == role
    assert parameter_role("patch_embed.proj.weight") is None
    assert parameter_role("blocks.0.norm1.bias") is None
    assert block_index("norm.weight") is None
    assert block_index("myblocks.3.weight") is None


def test_what_comes_before_a_block(small_vit: Build) -> None:
    vit = small_vit()
    names = [name for name, _ in vit.named_parameters()]
    assert not any(comes_before(vit, name, 0) for name in names)
    late = {name for name in names if not comes_before(vit, name, 3)}
    assert late == {n for n in names if n.startswith("blocks.3.")} | {"norm.weight", "norm.bias"}
    assert not comes_before(vit, "mask_token", 3)


def test_prefix_tokens_need_a_token_sequence(small_vit: Build) -> None:
    vit = small_vit()
    assert prefix_tokens(vit) in (1, 5)
    with pytest.raises(NotApplicable, match="token sequence"):
        prefix_tokens(nn.Linear(1, 1))


def test_eva_projections_have_roles_and_a_fused_one_is_refused() -> None:
    options = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    vit = timm.create_model("eva02_large_patch14_224", **options)
    split_qkv(vit)  # nothing to do
    roles = [role for _, _, role, _ in linears(vit)]
    assert roles == ["q", "k", "v", "proj", "fc1", "fc1", "fc2"]
    fused = timm.create_model("eva02_tiny_patch14_224", **options)
    with pytest.raises(NotApplicable, match="biases apart"):
        split_qkv(fused)
