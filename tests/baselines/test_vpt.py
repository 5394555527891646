"""Visual prompt tuning against the rule of the paper, written out as a loop."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from baselines.vpt import VPT
from soma import NotApplicable, adapt

Build = Callable[..., nn.Module]
COUNT = 3


def prompted(small_vit: Build, **fields: object) -> nn.Module:
    vit = small_vit()
    torch.manual_seed(1)
    adapt(VPT(prompts=COUNT, **fields), vit)
    return vit


def reference(
    plain: nn.Module, prompts: list[torch.Tensor], start: int, images
) -> list[torch.Tensor]:
    """Outputs of all blocks without the prompts; `prompts` holds one set, or one per block."""
    x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))
    prefix, outputs = plain.num_prefix_tokens, []
    for index, block in enumerate(plain.blocks):
        step = index - start
        if step == 0:  # insert
            new = prompts[0].expand(len(x), -1, -1)
            x = torch.cat([x[:, :prefix], new, x[:, prefix:]], dim=1)
        elif 0 < step < len(prompts):  # replace the slots
            x = x.clone()
            x[:, prefix : prefix + COUNT] = prompts[step]
        x = block(x)
        inside = COUNT if step >= 0 else 0
        outputs.append(torch.cat([x[:, :prefix], x[:, prefix + inside :]], dim=1))
    return outputs


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("deep", [True, False])
def test_follows_the_rule(small_vit: Build, images, deep: bool, start: int) -> None:
    vit = prompted(small_vit, deep=deep, start_block=start)
    tokens = [p for name, p in vit.named_parameters() if name.endswith("prompts.tokens")]
    assert len(tokens) == (4 - start if deep else 1)
    with torch.no_grad():
        expected = reference(small_vit(), tokens, start, images)
        final, taps = vit.forward_intermediates(images, indices=4, output_fmt="NLC")
        error = (final - vit.norm(expected[-1])).abs().max().item()
        print(f"deep {deep}, from block {start}: differs from the loop by {error:.1e}")
        assert error <= 1e-5
        for tap, states in zip(taps, expected, strict=True):
            assert torch.allclose(tap, states[:, vit.num_prefix_tokens :], atol=1e-5)


def test_start_is_uniform_with_the_published_bound(small_vit: Build) -> None:
    vit = small_vit()
    adapt(VPT(prompts=400), vit)
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    for block in vit.blocks:
        tokens = block.prompts.tokens
        assert tokens.abs().max() <= bound
        assert tokens.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_dropout_acts_in_training_only(small_vit: Build, images) -> None:
    with torch.no_grad():
        without = prompted(small_vit)(images)
        vit = prompted(small_vit, dropout=0.5)
        assert torch.equal(vit(images), without)
        vit.train()
        assert not torch.equal(vit(images), without)


def test_lost_prompts_are_an_error(small_vit: Build, images) -> None:
    vit = prompted(small_vit, deep=False)
    x = vit.blocks[0](torch.randn(1, vit.num_prefix_tokens + 16, 32))
    with pytest.raises(RuntimeError, match="prompts of the block before are lost"):
        vit.blocks[1](x.clone())


@pytest.mark.parametrize("deep", [True, False])
def test_rotary_positions_skip_the_prompts(deep: bool) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "eva02_large_patch14_224", img_size=28, embed_dim=24, depth=3, num_heads=2, num_classes=0
    ).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = vit.forward_features(images)
        adapt(VPT(prompts=2, deep=deep), vit)
        got = vit.forward_features(images)
    assert got.shape == expected.shape
    assert not torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("fields", [{"prompts": 0}, {"dropout": 1.0}])
def test_fields_are_checked(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        VPT(**fields)


@pytest.mark.parametrize("shared", [True, False])
def test_relative_position_biases_are_refused(shared: bool) -> None:
    """BEiT: one table for all blocks, or one in each."""
    args = {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = timm.create_model("beit_base_patch16_224", num_classes=0, **sizes, **args)
    before = str(vit)
    with pytest.raises(NotApplicable, match="a position bias for each pair of tokens"):
        adapt(VPT(prompts=2), vit)
    assert str(vit) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_relpos_small_patch16_224", "a position bias for each pair of tokens"),
        ("vit_srelpos_small_patch16_224", "a position bias for each pair of tokens"),
        ("xcit_tiny_12_p16_224", "convolves its tokens as an image"),
    ],
)
def test_blocks_that_count_their_tokens_are_refused(name: str, words: str) -> None:
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    vit = timm.create_model(name, **sizes)
    before = str(vit)
    with pytest.raises(NotApplicable, match=words):
        adapt(VPT(prompts=2), vit)
    assert str(vit) == before
