"""AdaptFormer, Rein and shallow VPT: what they do to the tokens, written out as a loop."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines import METHODS
from baselines.adaptformer import AdaptFormer
from baselines.rein import Rein
from baselines.vpt import VPT
from soma import Method, NotApplicable, adapt

Build = Callable[..., nn.Module]


def adapted(small_vit: Build, method: Method) -> nn.Module:
    """In float64, with everything that learns moved away from its start."""
    vit = small_vit().double()
    torch.manual_seed(1)
    adapt(method, vit)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.requires_grad:
                size = 0.03 if name == "rein.scale" else 0.3
                parameter.add_(size * torch.randn_like(parameter))
    return vit


def embedded(plain: nn.Module, images: Tensor) -> Tensor:
    """What enters the first block."""
    return plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias


@torch.no_grad()
def adaptformer_by_hand(vit: nn.Module, plain: nn.Module, images: Tensor, scale: float) -> Tensor:
    """The residual form of the block, with the bottleneck where `vit` has one."""
    learned, x = dict(vit.named_parameters()), embedded(plain, images)
    for index, block in enumerate(plain.blocks):
        middle = x + block.ls1(block.attn(block.norm1(x)))
        normalised = block.norm2(middle)
        x = middle + block.ls2(block.mlp(normalised))
        prefix = f"blocks.{index}.adaptformer."
        beside = {n.removeprefix(prefix): p for n, p in learned.items() if n.startswith(prefix)}
        if beside:
            read = {"stream": middle, "norm2": normalised}.get(vit.blocks[index].adaptformer.reads)
            if read is None:
                read = layer_norm(middle, beside["norm.weight"], beside["norm.bias"], 1e-5)
            hidden = (read @ beside["down.weight"].T + beside["down.bias"]).clamp_min(0)
            x = x + scale * (hidden @ beside["up.weight"].T + beside["up.bias"])
    return plain.norm(x)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("reads", ["stream", "norm2", "own_norm"])
def test_adaptformer_is_the_formula(small_vit: Build, images, reads: str, start: int) -> None:
    method = AdaptFormer(bottleneck=5, scale=0.7, reads=reads, start_block=start)
    vit, plain, images = adapted(small_vit, method), small_vit().double(), images.double()
    with torch.no_grad():
        got = vit.forward_features(images)
        moved = (got - plain.forward_features(images)).abs().max().item()
    error = (got - adaptformer_by_hand(vit, plain, images, 0.7)).abs().max().item()
    print(f"{reads}, from block {start}: differs from the loop by {error:.1e}, moved {moved:.1e}")
    assert error <= 1e-11
    assert moved > 0.1


def test_adaptformer_starts_as_published(small_vit: Build) -> None:
    method, vit = AdaptFormer(), small_vit()
    assert (method.bottleneck, method.scale, method.dropout) == (64, 0.1, 0.1)
    adapt(method, vit)
    for block in vit.blocks:
        beside = block.adaptformer
        bound = 1 / math.sqrt(32)  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan in)
        assert 0.9 * bound < beside.down.weight.abs().max() <= bound
        assert not any(p.any() for p in (beside.down.bias, beside.up.weight, beside.up.bias))
        assert beside.branch is None


def test_adaptformer_drops_hidden_units_in_training_only(small_vit: Build, images) -> None:
    vit = small_vit()
    adapt(AdaptFormer(bottleneck=400, dropout=0.25, start_block=3), vit)
    beside, x = vit.blocks[3].adaptformer, torch.randn(7, 32)
    with torch.no_grad():
        beside.down.bias.fill_(10)  # every unit is on
        beside.up.weight[:] = torch.eye(400)[:32]
        assert torch.equal(beside(x), beside(x))
        hidden = beside(x)
        beside.train()
        dropped = beside(x)
        assert torch.equal(vit.eval()(images), vit(images))
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.1)
    assert torch.allclose(dropped[kept], hidden[kept] / 0.75)


def test_adaptformer_keeps_nothing_between_passes(small_vit: Build, images) -> None:
    vit = adapted(small_vit, AdaptFormer(bottleneck=5)).train()
    vit.set_grad_checkpointing(True)
    vit.forward_features(images.double()).sum().backward()
    assert all(block.adaptformer.branch is None for block in vit.blocks)


@pytest.mark.parametrize("model", ["vit_relpos_small_patch16_224", "beitv2_base_patch16_224"])
def test_adaptformer_fits_other_blocks_with_a_norm_before_the_mlp(model: str) -> None:
    vit = timm.create_model(model, img_size=32, embed_dim=24, depth=2, num_heads=2).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = vit.forward_features(images)
    adapt(AdaptFormer(bottleneck=2), vit)
    assert torch.equal(vit.forward_features(images), expected)


@pytest.mark.parametrize("kind", ["post norm", "parallel"])
def test_adaptformer_refuses_other_blocks(kind: str) -> None:
    from timm.models import vision_transformer

    blocks = {
        "post norm": vision_transformer.ResPostBlock,
        "parallel": vision_transformer.ParallelScalingBlock,
    }
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, block_fn=blocks[kind])
    keys = list(vit.state_dict())
    with pytest.raises(NotApplicable, match="no norm2 before its mlp"):
        adapt(AdaptFormer(), vit)
    assert list(vit.state_dict()) == keys


@torch.no_grad()
def rein_by_hand(vit: nn.Module, plain: nn.Module, images: Tensor, start: int) -> list[Tensor]:
    """Outputs of all blocks, token by token."""
    rein, x, outputs = dict(vit.named_parameters()), embedded(plain, images), []
    prefix, width = plain.num_prefix_tokens, x.shape[-1]
    for index, block in enumerate(plain.blocks):
        x = block(x).clone()
        if index >= start:
            tokens = rein["rein.tokens_a"][index - start] @ rein["rein.tokens_b"][index - start]
            values = functional.linear(
                tokens, rein["rein.token_linear.weight"], rein["rein.token_linear.bias"]
            )
            for image in range(len(x)):
                for place in range(prefix, x.shape[1]):
                    f = x[image, place].clone()
                    powers = (tokens @ f / math.sqrt(width)).exp()
                    drawn = f + sum(
                        powers[token] / powers.sum() * values[token]
                        for token in range(1, len(tokens))  # token 0 takes its share and gives none
                    )
                    change = rein["rein.feature_linear.weight"] @ drawn
                    change = change + rein["rein.feature_linear.bias"]
                    x[image, place] = f + rein["rein.scale"] * change
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("start", [0, 2])
def test_rein_is_the_formula(small_vit: Build, images, start: int) -> None:
    method = Rein(tokens=4, rank=3, scale=0.1, start_block=start)
    vit, plain, images = adapted(small_vit, method), small_vit().double(), images[:2].double()
    expected = rein_by_hand(vit, plain, images, start)
    with torch.no_grad():
        final, taps = vit.forward_intermediates(images, indices=4, output_fmt="NLC")
        moved = (final - plain.forward_features(images)).abs().max().item()
        error = (final - plain.norm(expected[-1])).abs().max().item()
    print(f"from block {start}: differs from the loop by {error:.1e}, moved {moved:.1e}")
    assert error <= 1e-11
    assert moved > 0.05
    for tap, states in zip(taps, expected, strict=True):
        assert torch.allclose(tap, states[:, vit.num_prefix_tokens :], atol=1e-11)


def test_rein_leaves_prefix_tokens_alone(small_vit: Build, images) -> None:
    vit, plain = adapted(small_vit, Rein(start_block=3)), small_vit().double()
    with torch.no_grad():
        got, before = (v.forward_features(images.double()) for v in (vit, plain))
    prefix = plain.num_prefix_tokens
    assert torch.equal(got[:, :prefix], before[:, :prefix])
    assert not torch.allclose(got[:, prefix:], before[:, prefix:], atol=1e-2)


def test_rein_starts_as_published(small_vit: Build, images) -> None:
    method, vit = Rein(), small_vit()
    expected = vit.forward_features(images)
    adapt(method, vit)
    assert vit.rein.tokens_a.shape == (4, 100, 16)
    assert vit.rein.tokens_b.shape == (4, 16, 32)
    bound = math.sqrt(6 / (3 * 8 * 8 + math.sqrt(32 * 16)))
    for tokens in (vit.rein.tokens_a, vit.rein.tokens_b):
        assert 0.99 * bound < tokens.abs().max() <= bound
        assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert vit.rein.scale.item() == pytest.approx(1e-3)
    assert vit.rein.feature_linear.weight.abs().max() <= 1 / math.sqrt(32)
    error = (vit.forward_features(images) - expected).abs().max().item()
    print(f"start differs by {error:.1e}")
    assert 1e-5 < error < 2e-2
    with torch.no_grad():
        vit.rein.scale.zero_()
        assert torch.equal(vit.forward_features(images), expected)


def test_rein_decays_its_linears_alone(small_vit: Build) -> None:
    vit, method = small_vit(), Rein()
    adapt(method, vit)
    rules = {
        n.split(".")[1]: method.decay(n) for n in dict(vit.rein.named_parameters(prefix="rein"))
    }
    none, to_zero = "none", "to_zero"
    assert rules == {
        "tokens_a": none,
        "tokens_b": none,
        "scale": none,
        "token_linear": to_zero,
        "feature_linear": to_zero,
    }


def test_shallow_prompts_are_a_row_of_their_own(small_vit: Build, images) -> None:
    named, by_field = METHODS["vpt-shallow"](prompts=3), VPT(prompts=3, deep=False)
    outputs = []
    for method in (named, by_field):
        vit = small_vit()
        torch.manual_seed(1)
        adapt(method, vit)
        outputs.append(vit(images))
    assert torch.equal(*outputs)
    assert named != by_field
    assert not named.deep


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (AdaptFormer, {"bottleneck": 0}),
        (AdaptFormer, {"dropout": 1.0}),
        (AdaptFormer, {"reads": "norm1"}),
        (Rein, {"tokens": 1}),
        (Rein, {"rank": 0}),
    ],
)
def test_fields_are_checked(kind: type, fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        kind(**fields)
