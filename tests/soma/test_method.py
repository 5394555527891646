import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import torchvision
from torch import nn

from baselines.adaptformer import AdaptFormer
from baselines.hf_peft import HFPeft
from baselines.rein import Rein
from baselines.svf import SVF
from baselines.vpt import VPT
from soma import (
    AdapterError,
    LowRankLinear,
    Method,
    NotApplicable,
    NotFoldable,
    SoMA,
    adapt,
    load_adapter,
    merge_qkv,
    save_adapter,
    split_qkv,
)

Build = Callable[..., nn.Module]
SIX = {"attn.qkv.q", "attn.qkv.k", "attn.qkv.v", "attn.proj", "mlp.fc1", "mlp.fc2"}


@dataclass(frozen=True, kw_only=True)
class Everything(Method):
    source: ClassVar[str] = "test"

    def trains(self, name: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("start", "blocks", "index"),
    [(0, 9, 0), (0.0, 9, 0), (1 / 3, 24, 8), (1 / 3, 9, 3), (1 / 3, 4, 1), (0.5, 9, 5), (8, 9, 8)],
)
def test_start_block_becomes_an_index(start, blocks, index) -> None:
    vit = nn.Module()
    vit.blocks = nn.ModuleList(nn.Identity() for _ in range(blocks))
    placed = Everything(start_block=start).placed(vit)
    assert placed.start_block == index
    assert isinstance(placed.start_block, int)


@pytest.mark.parametrize("start", [4, 9, 0.99])
def test_start_block_past_the_end(small_vit: Build, start) -> None:
    with pytest.raises(ValueError, match="has 4 blocks"):
        adapt(Everything(start_block=start), small_vit())


@pytest.mark.parametrize("start", [0, 1, 3])
def test_nothing_before_the_start_block_learns(small_vit: Build, start: int) -> None:
    vit = small_vit()
    placed = adapt(Everything(start_block=start), vit)
    assert placed == Everything(start_block=start)
    for name, parameter in vit.named_parameters():
        early = name.startswith(tuple(f"blocks.{i}." for i in range(start)))
        embedding = not name.startswith(("blocks.", "norm."))
        assert parameter.requires_grad == (start == 0 or not (early or embedding)), name


@pytest.mark.parametrize("end", [2, 0.5])
def test_nothing_from_the_end_block_on_is_adapted(small_vit: Build, end: int | float) -> None:
    vit = small_vit()
    placed = adapt(SoMA(rank=2, start_block=1, end_block=end), vit)
    assert placed.end_block == 2
    learns = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    assert learns == {
        f"blocks.1.{linear}.{tensor}" for linear in SIX for tensor in ("lora_a", "lora_b", "bias")
    }
    assert '"end_block": 2' in vit.adaptation.method


def test_fields_that_came_later_are_not_described_at_their_default(small_vit: Build) -> None:
    vit = small_vit()
    assert not {"end_block", "subtract"} & SoMA().described_fields().keys()
    assert SoMA(subtract=False).described_fields()["subtract"] is False
    for wrong in ({"end_block": 1}, {"end_block": 5}, {"end_block": 0}, {"end_block": 1.5}):
        with pytest.raises(ValueError, match="end_block"):
            adapt(SoMA(rank=2, **{"start_block": 1, **wrong}), vit)


def test_soma_with_its_start_added_and_with_none(small_vit: Build) -> None:
    plain = small_vit()
    for components, exact in (("minor", False), ("zero", True)):
        vit, method = small_vit(), SoMA(rank=2, components=components, subtract=False)
        adapt(method, vit)
        assert method.exact_start == exact
        for name, module in vit.named_modules():
            if isinstance(module, LowRankLinear):
                assert torch.equal(module.weight, plain.get_submodule(name).weight)
                assert bool(module.lora_b.any()) != exact


def test_soma_as_the_paper_defines_it(small_vit: Build) -> None:
    vit = small_vit()
    plain = copy.deepcopy(vit)
    placed = adapt(SoMA(rank=2), vit)
    assert placed.start_block == 1  # a third of 4, rounded
    assert placed.annealed_decay
    learns = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    assert learns == {
        f"blocks.{block}.{linear}.{tensor}"
        for block in (1, 2, 3)
        for linear in SIX
        for tensor in ("lora_a", "lora_b", "bias")
    }
    for name, module in vit.named_modules():
        if isinstance(module, LowRankLinear):
            weight = plain.get_submodule(name).weight.detach().double()
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            largest_of_minor = s[-2]
            residual = module.weight.detach().double()
            assert torch.linalg.matrix_rank(residual, atol=largest_of_minor / 2) == len(s) - 2
            assert (residual @ vh[-2:].T).norm() < 1e-5  # the minor directions are taken out
            assert (u[:, -2:].T @ residual).norm() < 1e-5


def test_needs_are_checked_before_anything_changes() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Tokens(Everything):
        needs: ClassVar[frozenset[str]] = frozenset({"token_sequence"})

    grid = nn.Module()
    grid.blocks = nn.ModuleList([nn.Linear(2, 2)])
    grid.requires_grad_(False)
    with pytest.raises(NotApplicable, match="token_sequence"):
        adapt(Tokens(), grid)
    assert not grid.blocks[0].weight.requires_grad
    adapt(Everything(), grid)
    assert grid.blocks[0].weight.requires_grad


def test_fused_qkv_is_refused_with_the_mend(small_vit: Build) -> None:
    vit = small_vit(split=False)
    with pytest.raises(NotApplicable, match=r"q, k, v; call split_qkv\(vit\) first"):
        adapt(SoMA(rank=2), vit)
    assert not any(isinstance(module, LowRankLinear) for module in vit.modules())


FAMILIES = {
    "low rank": SoMA(rank=2),
    "spectral": SVF(),
    "peft": HFPeft(tuner="LORA", options='{"r": 2}'),
}


@pytest.mark.parametrize("second", [*FAMILIES, "full"])
@pytest.mark.parametrize("first", [*FAMILIES, "full", "vpt"])
def test_adapting_twice_is_refused(small_vit: Build, first: str, second: str) -> None:
    methods = FAMILIES | {"full": Everything(), "vpt": VPT(prompts=2)}
    vit = small_vit()
    adapt(methods[first], vit)
    before = copy.deepcopy(vit)
    with pytest.raises(ValueError, match=r"adapted already, by [\w.]+; start from a fresh one"):
        adapt(methods[second], vit)
    assert str(vit) == str(before)
    learns = [parameter.requires_grad for parameter in vit.parameters()]
    assert learns == [parameter.requires_grad for parameter in before.parameters()]


@pytest.mark.parametrize("first", [*FAMILIES, "full"])
def test_a_folded_backbone_is_adapted_again(small_vit: Build, images, first: str) -> None:
    vit = small_vit()
    placed = adapt((FAMILIES | {"full": Everything()})[first], vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    placed.fold(vit)
    trained = vit(images)
    adapt(SoMA(rank=2), vit)
    assert torch.allclose(vit(images), trained, atol=1e-4)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def doubled(vit: nn.Module) -> None:
    vit.blocks[2].mlp.fc1.__class__ = Doubled


def patched(vit: nn.Module) -> None:
    linear = vit.blocks[2].mlp.fc1
    linear.forward = lambda x: 2 * nn.functional.linear(x, linear.weight, linear.bias)


def tied(vit: nn.Module) -> None:
    vit.blocks[2].mlp.fc1.weight = vit.blocks[1].mlp.fc1.weight


def convolved(vit: nn.Module) -> None:
    vit.blocks[2].mlp.fc1 = nn.Conv1d(4, 4, 1)


CHANGES = {
    "subclass": (doubled, r"Doubled or has a forward of its own"),
    "own forward": (patched, r"Linear or has a forward of its own"),
    "hook": (lambda vit: vit.blocks[2].mlp.fc1.register_forward_hook(print), "carries hooks"),
    "pre-hook": (lambda vit: vit.blocks[2].mlp.fc1.register_forward_pre_hook(print), "hooks"),
    "gradient hook": (
        lambda vit: vit.blocks[2].mlp.fc1.register_full_backward_hook(print),
        "carries hooks",
    ),
    "weight_norm": (
        lambda vit: nn.utils.parametrizations.weight_norm(vit.blocks[2].mlp.fc1),
        "computes its weight",
    ),
    "spectral_norm, old": (
        lambda vit: nn.utils.spectral_norm(vit.blocks[2].mlp.fc1),
        "computes its weight",
    ),
    "more tensors": (
        lambda vit: vit.blocks[2].mlp.fc1.register_buffer("gain", torch.ones(1)),
        "holds gain besides weight and bias",
    ),
    "no linear": (convolved, r"is a torch\.nn\.modules\.conv\.Conv1d"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_plain_linear_is_refused_by_name(small_vit: Build, family, change) -> None:
    make, line = CHANGES[change]
    vit = small_vit()
    make(vit)
    before = copy.deepcopy(vit)
    with pytest.raises(NotApplicable, match=rf"^blocks\.2\.mlp\.fc1 .*{line}"):
        adapt(FAMILIES[family], vit)
    assert str(vit) == str(before)
    learns = [parameter.requires_grad for parameter in vit.parameters()]
    assert learns == [parameter.requires_grad for parameter in before.parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_are_refused_by_name(small_vit: Build, family: str) -> None:
    vit = small_vit()
    tied(vit)
    names = r"blocks\.1\.mlp\.fc1\.weight and blocks\.2\.mlp\.fc1\.weight are one tensor"
    with pytest.raises(NotApplicable, match=names):
        adapt(FAMILIES[family], vit)


def test_a_method_that_adds_modules_must_define_fold(small_vit: Build) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Adds(Everything):
        def attach(self, vit: nn.Module) -> None:
            vit.added = nn.Linear(1, 1)

    Everything().fold(small_vit())
    with pytest.raises(NotFoldable, match="Adds"):
        Adds().fold(small_vit())


class Undecorated(SoMA):
    rank: int = 4


@dataclass(frozen=True, kw_only=True)
class Below(Undecorated):
    alpha: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Untyped(SoMA):
    rank = 4


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (
            Undecorated,
            r"Undecorated is no dataclass.* write @dataclass\(frozen=True, kw_only=True\)",
        ),
        (Below, "Undecorated is no dataclass"),
        (Untyped, r"Untyped\.rank is a field without a type.* write rank: <type>"),
    ],
)
def test_a_class_whose_fields_would_be_ignored_is_refused(kind: type[Method], line: str) -> None:
    with pytest.raises(TypeError, match=line):
        kind()


def held() -> nn.Module:
    model = nn.Module()
    model.backbone = timm.create_model("vit_tiny_patch16_224", **TINY)
    model.head = nn.Linear(32, 2)
    return model


def hugging_face(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
BUILD_ONE = "build the model with timm.create_model, which has ViT, DINOv2"
OTHERS = {
    "Hugging Face ViT": (lambda: hugging_face("ViT"), BUILD_ONE),
    "Hugging Face DINOv2": (lambda: hugging_face("Dinov2"), BUILD_ONE),
    "torchvision ViT": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64),
        f"torchvision.models.vision_transformer.VisionTransformer has no `blocks` .*{BUILD_ONE}",
    ),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4]),
        BUILD_ONE,
    ),
    "timm Swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 1),
        ),
        BUILD_ONE,
    ),
    "a model that holds a ViT": (
        held,
        "is no vision transformer, but holds one: adapt its backbone",
    ),
    "compiled": (lambda: torch.compile(held().backbone), "holds one: adapt its _orig_mod"),
    "in parallel": (lambda: nn.DataParallel(held().backbone), "holds one: adapt its module"),
    "no network of blocks": (lambda: nn.Linear(2, 2), BUILD_ONE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_vit_of_timm_is_not_applicable(name: str, tmp_path: Path) -> None:
    make, line = OTHERS[name]
    vit = make()
    keys, learns = list(vit.state_dict()), [p.requires_grad for p in vit.parameters()]
    for method in (*FAMILIES.values(), Everything(), VPT(prompts=2), AdaptFormer(), Rein()):
        with pytest.raises(NotApplicable, match=line):
            adapt(method, vit)
    for work in (split_qkv, merge_qkv):
        with pytest.raises(NotApplicable, match=line):
            work(vit)
    other = timm.create_model("vit_tiny_patch16_224", **TINY)
    adapt(Everything(), other)
    save_adapter(other, tmp_path / "adapter.safetensors")
    with pytest.raises(AdapterError, match=line):
        load_adapter(Everything(), vit, tmp_path / "adapter.safetensors")
    assert list(vit.state_dict()) == keys
    assert [p.requires_grad for p in vit.parameters()] == learns


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        ("hiera_tiny_224", {"AdaptFormer": "embed_dim", "VPT": "token_seq", "Rein": "token_seq"}),
        ("naflexvit_base_patch16_gap", {"VPT": "patch_size", "Rein": "patch_size"}),
        (
            "tnt_s_patch16_224",
            {
                "SoMA": "no linear",
                "AdaptFormer": "no norm2",
                "VPT": "patch_size",
                "Rein": "patch_size",
            },
        ),
        ("xcit_nano_12_p16_224", {"VPT": "convolves"}),  # its patch size is one number
        ("vit_relpos_small_patch16_224", {"VPT": "position bias"}),
    ],
)
def test_backbones_that_lack_something_are_not_applicable(model: str, needs: dict) -> None:
    for method in (SoMA(rank=4), VPT(prompts=2), AdaptFormer(), Rein()):
        with torch.device("meta"):
            vit = timm.create_model(model)
        split_qkv(vit)
        if (words := needs.get(type(method).__name__)) is None:
            adapt(method, vit)
            assert not [
                name for name, _ in vit.named_parameters() if "rel_pos.mlp.fc1.lora" in name
            ]
        else:
            with pytest.raises(NotApplicable, match=words):
                adapt(method, vit)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("method", [SoMA(rank=2), Everything(), SVF()], ids=str)
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
)
def test_a_classifier_stays_as_the_user_left_it(name, method, learns, tmp_path: Path) -> None:
    def build(classes: int) -> nn.Module:
        torch.manual_seed(0)
        vit = timm.create_model(name, **TINY)
        vit.reset_classifier(classes)
        split_qkv(vit)
        return vit.eval()

    vit, path = build(5), tmp_path / "adapter.safetensors"
    heads = [p for key, p in vit.named_parameters() if key.startswith("head")]
    for parameter in heads:
        parameter.requires_grad_(learns)
    adapt(method, vit)
    assert {parameter.requires_grad for parameter in heads} == {learns}
    with torch.no_grad():
        for parameter in heads:
            parameter.add_(1)
    save_adapter(vit, path, extra={"head": heads[0]})
    fresh = build(3)  # the adapter is of the backbone alone
    load_adapter(method, fresh, path)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(fresh.forward_features(image), vit.forward_features(image))
