"""What every method must do, on two token layouts."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines import METHODS
from soma import Method, NotFoldable, adapt, load_adapter, merge_qkv, save_adapter

Build = Callable[..., nn.Module]
pytestmark = pytest.mark.usefixtures("one_thread")

SIX = ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj", "mlp.fc1", "mlp.fc2")
LOW_RANK = {f"{linear}.{factor}" for linear in SIX for factor in ("lora_a", "lora_b")}
BIASES = {f"{linear}.bias" for linear in SIX}
LENGTHS = {f"{linear}.lora_magnitude" for linear in SIX}
SMALL = {"rank": 3, "alpha": 4}
CASES = {
    "full": ("full", {}),
    "freeze": ("freeze", {}),
    "bitfit": ("bitfit", {}),
    "lora": ("lora", SMALL),
    "lora, some targets": ("lora", {**SMALL, "targets": ("q", "fc2"), "train_bias": True}),
    "pissa": ("pissa", SMALL),
    "milora": ("milora", SMALL),
    "lora-middle": ("lora-middle", SMALL),
    "lora-middle, from 5": ("lora-middle", {**SMALL, "component_start": 5}),
    "mica": ("mica", SMALL),
    "dora": ("dora", SMALL),
    "dora, norm with gradient": ("dora", {**SMALL, "detach_norm": False}),
    "dude": ("dude", SMALL),
    "edora": ("edora", SMALL),
    "edora, random": ("edora", {**SMALL, "init": "random"}),
    "recyclelora": ("recyclelora", {"rank": 5, "sub_rank": 2}),
    "vpt": ("vpt", {"prompts": 3}),
    "vpt, shallow": ("vpt", {"prompts": 3, "deep": False}),
    "soma": ("soma", SMALL),
    "soma, principal": ("soma", {**SMALL, "components": "principal"}),
    "soma, middle": ("soma", {**SMALL, "components": "middle"}),
    "soma, random": ("soma", {**SMALL, "components": "random"}),
    "soma, from 5": ("soma", {**SMALL, "components": 5}),
    "soma-release": ("soma-release", SMALL),
}
# Names inside an adapted block that learn, None for all.
LEARNS = {
    "full": None,
    "freeze": set(),
    "bitfit": BIASES | {"norm1.bias", "norm2.bias"},
    "lora": LOW_RANK,
    "lora, some targets": {
        f"{linear}.{tensor}"
        for linear in ("attn.qkv.q", "mlp.fc2")
        for tensor in ("lora_a", "lora_b", "bias")
    },
    "pissa": LOW_RANK,
    "milora": LOW_RANK,
    "lora-middle": LOW_RANK,
    "lora-middle, from 5": LOW_RANK,
    "mica": {f"{linear}.lora_a" for linear in SIX},
    "dora": LOW_RANK | LENGTHS,
    "dora, norm with gradient": LOW_RANK | LENGTHS,
    "dude": LOW_RANK | LENGTHS,
    "edora": LENGTHS | {f"{linear}.lora_core" for linear in SIX},
    "edora, random": LENGTHS | {f"{linear}.lora_core" for linear in SIX},
    "recyclelora": LOW_RANK,
    "vpt": {"prompts.tokens"},
    "vpt, shallow": {"prompts.tokens"},
    "soma-release": LOW_RANK | BIASES,
} | {case: LOW_RANK | BIASES for case in CASES if case.startswith("soma")}


def make(case: str, start: int = 1) -> Method:
    name, values = CASES[case]
    return METHODS[name](start_block=start, **values)


def adapted(case: str, vit: nn.Module, start: int = 1) -> Method:
    torch.manual_seed(11)
    return adapt(make(case, start), vit)


def output(vit: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.forward_features(images)


def train(vit: nn.Module, images: torch.Tensor, steps: int = 2) -> None:
    """Steps of Adam on a fixed random linear read-out of all tokens."""
    learning = [parameter for parameter in vit.parameters() if parameter.requires_grad]
    if not learning:
        return
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    for step in range(steps):
        features = vit.forward_features(images)
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        (features * torch.randn(features.shape, generator=generator)).sum().backward()
        optimizer.step()


def test_every_method_is_covered() -> None:
    assert {name for name, _ in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_definition(name: str) -> None:
    kind = METHODS[name]
    assert issubclass(kind, Method)
    assert kind.source
    assert kind.__doc__
    assert kind() == kind()  # every field has a default
    assert hash(kind())
    assert "start_block" in {field.name for field in fields(kind)}


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_start(case: str, start: int, small_vit: Build, images: torch.Tensor) -> None:
    vit = small_vit()
    expected, pretrained = output(vit, images), set(vit.state_dict())
    method = adapted(case, vit, start)
    assert pretrained <= set(vit.state_dict())
    got = output(vit, images)
    assert got.shape == expected.shape
    error = (got - expected).abs().max().item()
    print(f"{case}: start differs by {error:.1e}")
    if method.exact_start:
        assert error <= 1e-4
    elif case.startswith("edora"):  # only the noise in its core, which scales with sigma
        assert 0 < error <= 50 * method.sigma
    else:
        assert error > 1e-3


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_declared_parameters_learn(case: str, start: int, small_vit: Build) -> None:
    vit = small_vit()
    adapted(case, vit, start)
    blocks = [start] if case == "vpt, shallow" else range(start, 4)
    names = {name for name, _ in vit.named_parameters()}
    if LEARNS[case] is None:
        early = tuple(f"blocks.{block}." for block in range(start))
        expected = {
            n for n in names if n.startswith(("blocks.", "norm.")) and not n.startswith(early)
        }
        expected = names if start == 0 else expected
    else:
        expected = {f"blocks.{block}.{tensor}" for block in blocks for tensor in LEARNS[case]}
    if case == "bitfit":  # beside full the only one that learns outside the blocks
        expected |= {"norm.bias"} | ({"patch_embed.proj.bias"} if start == 0 else set())
    assert {name for name, p in vit.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize("case", CASES)
def test_two_steps_move_what_learns_and_nothing_else(case, small_vit, images) -> None:
    vit = small_vit()
    adapted(case, vit)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    train(vit.train(), images)
    learning = {name: p for name, p in vit.named_parameters() if p.requires_grad}
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name]) != (name in learning), name
    for name, parameter in learning.items():
        # Attention is blind to the bias of the keys: its gradient is rounding noise.
        floor = 0 if name.endswith("k.bias") else 1e-4
        assert parameter.grad.abs().max() > floor, name


@pytest.mark.parametrize("case", CASES)
def test_copies_are_whole_and_independent(case: str, small_vit, images) -> None:
    vit = small_vit()
    adapted(case, vit)
    expected = output(vit, images)
    for twin in (copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))):
        assert torch.equal(output(twin, images), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert torch.equal(output(vit, images), expected)
        assert case == "freeze" or not torch.equal(output(twin, images), expected)


@pytest.mark.parametrize("case", CASES)
def test_folding(case: str, small_vit, images) -> None:
    vit = small_vit()
    kinds = {name: type(module) for name, module in vit.named_modules()}
    keys, fused_keys = list(vit.state_dict()), list(small_vit(split=False).state_dict())
    method = adapted(case, vit)
    train(vit, images)
    expected = output(vit, images)
    if case.startswith("vpt"):
        with pytest.raises(NotFoldable):
            method.fold(vit)
        return
    method.fold(vit)
    error = (output(vit, images) - expected).abs().max().item()
    print(f"{case}: folding differs by {error:.1e}")
    assert error <= 1e-4
    assert list(vit.state_dict()) == keys
    assert {name: type(module) for name, module in vit.named_modules()} == kinds
    merge_qkv(vit)
    assert list(vit.state_dict()) == fused_keys
    assert (output(vit, images) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_saving_and_loading(case: str, small_vit, images, tmp_path: Path) -> None:
    vit = small_vit()
    method = adapted(case, vit)
    train(vit, images)
    save_adapter(vit, tmp_path / "adapter.safetensors", method)
    fresh = small_vit()
    torch.manual_seed(99)  # nothing of the start may be drawn again
    assert load_adapter(make(case), fresh, tmp_path / "adapter.safetensors") == method
    error = (output(fresh, images) - output(vit, images)).abs().max().item()
    print(f"{case}: loading differs by {error:.1e}")
    assert error <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides_the_start(case: str, small_vit: Build) -> None:
    first, second = small_vit(), small_vit()
    adapted(case, first)
    adapted(case, second)
    other = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_modes_keep_what_learns(case: str, small_vit) -> None:
    vit = small_vit()  # in eval mode
    adapted(case, vit)
    assert not any(module.training for module in vit.modules())
    learns = [parameter.requires_grad for parameter in vit.parameters()]
    assert vit.train() is vit
    assert vit.eval() is vit
    assert [parameter.requires_grad for parameter in vit.parameters()] == learns


@pytest.mark.parametrize("case", CASES)
def test_checkpointed_blocks_give_the_same_gradients(case: str, small_vit, images) -> None:
    if case == "freeze":
        pytest.skip("nothing learns")
    gradients = []
    for checkpointed in (False, True):
        vit = small_vit().train()
        adapted(case, vit)
        vit.set_grad_checkpointing(checkpointed)
        # Two forward passes before the backward one: no state may leak between them.
        first, second = vit.forward_features(images), vit.forward_features(images.flip(0))
        weight = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        (first * weight + second.square() * weight).sum().backward()
        gradients.append({n: p.grad for n, p in vit.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("case", CASES)
def test_decay_is_a_known_rule(case: str, small_vit) -> None:
    vit = small_vit()
    method = adapted(case, vit)
    rules = {method.decay(n) for n, p in vit.named_parameters() if p.requires_grad}
    assert rules <= {"to_zero", "none", "to_init"}
