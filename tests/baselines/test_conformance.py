"""What every method must do; the general part is `python -m benchmarks check`."""

import copy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines import METHODS
from benchmarks.conformance.check import KINDS, PROPERTIES, build_vit, check_method
from soma import AdapterError, Method, adapt, load_adapter, save_adapter

Build = Callable[..., nn.Module]
pytestmark = pytest.mark.usefixtures("one_thread")

SIX = ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj", "mlp.fc1", "mlp.fc2")
LOW_RANK = {f"{linear}.{factor}" for linear in SIX for factor in ("lora_a", "lora_b")}
BIASES = {f"{linear}.bias" for linear in SIX}


def spectral(*learned: str, linears: tuple[str, ...] = SIX) -> set[str]:
    return {f"{linear}.spectral_{name}" for linear in linears for name in learned}


LENGTHS = {f"{linear}.lora_magnitude" for linear in SIX}
SMALL = {"rank": 3, "alpha": 4}
COMPILE = "torch.compile"
# What depends little on the backbone is asked on one kind per method, in turn.
IN_TURN = {
    COMPILE,
    "25 steps, resumed",
    "slope along the gradient",
    "another seed",
    "fold with other numbers",
    "fold without biases",
    "weight decay alone",
    "another image size",
    "training mode",
}
TRACED = ("class token", "rotary and SwiGLU", "grid in windows")
WB = ("weight", "bias")
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
    "salt": ("salt", {"rank": 3}),
    "salt, full relu": ("salt", {"rank": 3, "relu": "full", "also": ()}),
    "salt, normal start": ("salt", {"rank": 3, "init": "normal", "also": ("biases",)}),
    "svf": ("svf", {}),
    "svf, scale": ("svf", {"form": "scale", "targets": ("q", "fc2")}),
    "svf, s-sam": ("svf", {"form": "scale+shift", "relu": True}),
    "svf, top 4": ("svf", {"rank": 4}),
    "vpt": ("vpt", {"prompts": 3}),
    "vpt, shallow": ("vpt", {"prompts": 3, "deep": False}),
    "vpt-shallow": ("vpt-shallow", {"prompts": 3}),
    "adaptformer": ("adaptformer", {"bottleneck": 5}),
    "adaptformer, stream": ("adaptformer", {"bottleneck": 5, "reads": "stream"}),
    "adaptformer, own norm": ("adaptformer", {"bottleneck": 5, "reads": "own_norm"}),
    "rein": ("rein", {"tokens": 5, "rank": 3}),
    "recyclelora": ("recyclelora", {"rank": 5, "sub_rank": 2}),
    "soma": ("soma", SMALL),
    "soma, principal": ("soma", {**SMALL, "components": "principal"}),
    "soma, middle": ("soma", {**SMALL, "components": "middle"}),
    "soma, random": ("soma", {**SMALL, "components": "random"}),
    "soma, from 5": ("soma", {**SMALL, "components": 5}),
    "soma-release": ("soma-release", SMALL),
}
NORMS = {f"norm{index}.{tensor}" for index in (1, 2) for tensor in WB}
BOTTLENECK = {f"adaptformer.{way}.{tensor}" for way in ("down", "up") for tensor in WB}
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
    "salt": spectral("scale", "shift", "x", "y") | NORMS,
    "salt, full relu": spectral("scale", "shift", "x", "y"),
    "salt, normal start": spectral("scale", "shift", "x", "y") | BIASES,
    "svf": spectral("shift"),
    "svf, scale": spectral("scale", linears=("attn.qkv.q", "mlp.fc2")),
    "svf, s-sam": spectral("scale", "shift"),
    "svf, top 4": spectral("shift"),
    "vpt": {"prompts.tokens"},
    "vpt, shallow": {"prompts.tokens"},
    "vpt-shallow": {"prompts.tokens"},
    "adaptformer": BOTTLENECK,
    "adaptformer, stream": BOTTLENECK,
    "adaptformer, own norm": BOTTLENECK | {f"adaptformer.norm.{tensor}" for tensor in WB},
    "rein": set(),
    "recyclelora": LOW_RANK,
    "soma-release": LOW_RANK | BIASES,
} | {case: LOW_RANK | BIASES for case in CASES if case.startswith("soma")}
# Names outside the blocks that learn, and those of them that only do from block 0 on.
OUTSIDE = {
    "bitfit": {"norm.bias"},
    "salt": {"norm.weight", "norm.bias"},
    "rein": {"rein.tokens_a", "rein.tokens_b", "rein.scale"}
    | {f"rein.{linear}_linear.{tensor}" for linear in ("token", "feature") for tensor in WB},
}
EMBEDDINGS = {"bitfit": {"patch_embed.proj.bias"}, "salt": {"pos_embed"}}


def make(case: str, start: int = 1) -> Method:
    name, values = CASES[case]
    return METHODS[name](start_block=start, **values)


def adapted(case: str, vit: nn.Module, start: int = 1) -> Method:
    torch.manual_seed(11)
    return adapt(make(case, start), vit)


def output(vit: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.forward_features(images)


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
@pytest.mark.parametrize("case", [case for case in CASES if not make(case).exact_start])
def test_how_inexact_a_start_is(
    case: str, start: int, small_vit: Build, images: torch.Tensor
) -> None:
    vit = small_vit()
    expected = output(vit, images)
    method = adapted(case, vit, start)
    error = (output(vit, images) - expected).abs().max().item()
    if case.startswith("edora"):  # only the noise in its core, which scales with sigma
        assert 0 < error <= 50 * method.sigma
    else:
        assert error > 1e-3


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_declared_parameters_learn(case: str, start: int, small_vit: Build) -> None:
    vit = small_vit()
    adapted(case, vit, start)
    blocks = [start] if case in ("vpt, shallow", "vpt-shallow") else range(start, 4)
    names = {name for name, _ in vit.named_parameters()}
    if LEARNS[case] is None:
        early = tuple(f"blocks.{block}." for block in range(start))
        expected = {
            n for n in names if n.startswith(("blocks.", "norm.")) and not n.startswith(early)
        }
        expected = names if start == 0 else expected
    else:
        expected = {f"blocks.{block}.{tensor}" for block in blocks for tensor in LEARNS[case]}
    expected |= OUTSIDE.get(case, set())
    expected |= EMBEDDINGS.get(case, set()) if start == 0 else set()
    assert {name for name, p in vit.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_methods_conform(name: str, kind: str) -> None:
    """`check NAME`; the slowest of it on one kind per method, in turn."""
    method = METHODS[name]()
    on_sequences_only = "token_sequence" in method.needs
    choice = TRACED[:2] if on_sequences_only else TRACED
    traced = choice[list(METHODS).index(name) % len(choice)] == kind
    findings = check_method(method, kind, () if traced else IN_TURN)
    refused = findings[0].verdict == "n/a"
    assert refused == (kind == "grid in windows" and on_sequences_only)
    assert [found for found in findings if found.verdict == "fail"] == []
    assert traced == ((COMPILE, "pass") in {(found.property, found.verdict) for found in findings})


@pytest.mark.parametrize("case", [case for case in CASES if case not in METHODS])
def test_variants_conform(case: str) -> None:
    findings = check_method(make(case), "registers and layer scale", {COMPILE, "25 steps, resumed"})
    assert findings[0].verdict == "pass"
    assert [found for found in findings if found.verdict == "fail"] == []


@pytest.mark.parametrize("case", CASES)
def test_folding_is_refused_by_methods_that_add_modules_only(case: str) -> None:
    findings = check_method(make(case), "class token", PROPERTIES.keys() - {"fold"})
    (fold,) = findings[1:]
    refuses = case.startswith(("vpt", "adaptformer", "rein"))
    assert fold.verdict == ("n/a" if refuses else "pass"), fold.measured


@pytest.mark.parametrize("case", METHODS)
def test_an_adapter_is_refused_on_other_weights(case: str, tmp_path: Path) -> None:
    name, values = CASES[case]
    vit, path = build_vit(KINDS[0]), tmp_path / "adapter.safetensors"
    method = adapt(METHODS[name](**values), vit)
    save_adapter(vit, path, method)
    other = build_vit(KINDS[0])
    other.blocks[1].mlp.fc2.weight.data *= 1.01
    before, modules = copy.deepcopy(other.state_dict()), str(other)
    with pytest.raises(AdapterError, match="made on pretrained weights"):
        load_adapter(method, other, path)
    after = other.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert str(other) == modules
    load_adapter(method, build_vit(KINDS[0]), path)


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_stored_as_they_come_back_from_a_file(case: str) -> None:
    name, values = CASES[case]
    vit = build_vit(KINDS[0])
    adapt(METHODS[name](**values), vit)
    assert [key for key, value in vit.state_dict().items() if not value.is_contiguous()] == []
