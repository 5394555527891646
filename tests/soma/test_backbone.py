import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from benchmarks.conformance.method_under_test import KINDS, build_vit
from soma.backbone import (
    NotApplicable,
    SplitQKV,
    block_index,
    comes_before,
    linears,
    merge_qkv,
    parameter_role,
    prefix_tokens,
    provides,
    split_qkv,
    token_grid,
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


EVA = {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}


def test_eva_projections_have_roles() -> None:
    vit = timm.create_model("eva02_large_patch14_224", **EVA)
    split_qkv(vit)  # nothing to do
    roles = [role for _, _, role, _ in linears(vit)]
    assert roles == ["q", "k", "v", "proj", "fc1", "fc1", "fc2"]


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_biases_beside_the_fused_linear_move_into_the_parts(name: str) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(name, **EVA | {"img_size": 32, "patch_size": 16}).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    vit.blocks[0].attn.v_bias.requires_grad_(False)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(images)
        split_qkv(vit)
        assert (vit(images) - expected).abs().max() <= 1e-5
    q, k, v = vit.blocks[0].attn.qkv.children()
    assert torch.equal(q.bias, before["blocks.0.attn.q_bias"])
    assert k.bias is None
    assert torch.equal(v.bias, before["blocks.0.attn.v_bias"])
    assert (q.bias.requires_grad, v.bias.requires_grad) == (True, False)
    assert not any("q_bias" in key or "v_bias" in key for key in vit.state_dict())
    merge_qkv(vit)
    after = vit.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_knows_rows_and_columns_of_its_tokens(kind: str) -> None:
    vit = build_vit(kind)
    grid = token_grid(vit)
    assert token_grid(vit) is grid
    seen = []
    vit.blocks[1].register_forward_hook(lambda _block, _args, y: seen.append(y))
    for size in ((16, 24), (40, 56)):
        vit.forward_features(torch.zeros(1, 3, *size))
        assert grid.of(seen[-1]) == (size[0] // 8, size[1] // 8)
    twin = copy.deepcopy(vit)
    twin.forward_features(torch.zeros(1, 3, 16, 32))
    assert twin.token_grid.of(seen[-1]) == (2, 4)
    assert grid.of(seen[1]) == (5, 7)  # the copy has its own
    if kind != "grid in windows":
        with pytest.raises(RuntimeError, match=r"tokens in the block, \d \+ 5 x 7 in the image"):
            grid.of(seen[0])


def test_a_backbone_that_cuts_no_patches_has_no_grid_of_tokens() -> None:
    assert provides(timm.create_model("vit_tiny_patch16_224")) == {"token_sequence", "token_grid"}
    assert provides(nn.Sequential(nn.Conv2d(3, 8, 1))) == set()
