"""Tuners of Hugging Face peft as methods: names, factors as ours, and what every method must do."""

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_vits import build_vit
from torch import nn
from toy_records import toy_protocol

from baselines import METHODS
from baselines.hf_peft import HFPeft
from benchmarks import __main__ as command_line
from benchmarks import methods
from benchmarks.cell import make_cell
from benchmarks.commands import arguments
from benchmarks.errors import UserError
from benchmarks.methods import make_method
from soma import LowRankLinear, NotApplicable, NotFoldable, adapt, load_adapter, save_adapter
from soma.backbone import linears

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
KIND = "registers and layer scale"
# One of each family, and all that share, hide or freeze tensors in their own way.
TUNERS = {
    "LoRA": "LoRA(r=3)",
    "DoRA": "LoRA(r=3, use_dora=True)",
    "PiSSA": "LoRA(r=3, init_lora_weights=pissa)",
    "MiCA": "LoRA(r=3, init_lora_weights=mica)",
    "LoHa": "LoHa(r=3)",
    "LoKr": "LoKr(r=3)",
    "IA3": "IA3",
    "OFT": "OFT(oft_block_size=8)",
    "BOFT": "BOFT(boft_block_size=4)",
    "HRA": "HRA(r=2)",
    "MiSS": "MiSS(r=4)",
    "VeRA": "VeRA(r=16)",
    "VB-LoRA": "VBLoRA(vector_length=8, num_vectors=16, topk=2)",
    "RandLoRA": "RandLoRA(r=8)",
    "TinyLoRA": "TinyLoRA",
    "SHiRA": "SHiRA(r=2)",
    "FourierFT": "FourierFT(n_frequency=20)",
    "FourierFT from zero": "FourierFT(n_frequency=20, init_weights=True)",
    "C3A": "C3A(block_size=8)",
    "RoAd": "RoAd(group_size=8)",
    "Lily": "Lily(r=3)",
    "PaRa": "DEFT(r=3, decomposition_method=qr, para=True)",
    "KaSA": "LoRA(r=3, kasa_config={'beta': 0.0001, 'gamma': 0.001})",
}
INEXACT = {"VB-LoRA", "FourierFT", "C3A", "PaRa", "KaSA"}


def make(tuner: str, **fields: Any) -> HFPeft:
    return make_method(f"hf:{TUNERS[tuner]}", {"start_block": 2} | fields)


def output(vit: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.forward_features(images)


def train(vit: nn.Module, images: torch.Tensor) -> None:
    optimizer = torch.optim.Adam([p for p in vit.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        features = vit.forward_features(images)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (features * weights).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("tuner", TUNERS)
def test_conforms(tuner: str, images: torch.Tensor, tmp_path: Path) -> None:
    vit = build_vit(KIND)
    expected, before = output(vit, images), {n: p.clone() for n, p in vit.named_parameters()}
    keys = list(vit.state_dict())
    torch.manual_seed(3)
    method = adapt(make(tuner), vit)
    start = (output(vit, images) - expected).abs().max().item()
    assert (start <= 1e-4) == method.exact_start == (tuner not in INEXACT)

    names = {name for name, _ in vit.named_parameters()}
    assert before.keys() <= names
    assert not any(".base_layer." in name for name in vit.state_dict())
    learning = {name for name, p in vit.named_parameters() if p.requires_grad}
    assert learning == names - before.keys()
    assert all(name.startswith(("blocks.2.", "blocks.3.")) for name in learning)
    assert not any(module.training for module in vit.modules())

    state = {name: value.clone() for name, value in vit.state_dict().items()}
    train(vit, images)
    for name, value in vit.state_dict().items():
        assert torch.equal(value, state[name]) == (name not in learning), name
    for name, parameter in vit.named_parameters():
        assert name not in learning or parameter.grad.abs().max() > 0, name
    trained = output(vit, images)

    for twin in (copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))):
        assert torch.equal(output(twin, images), trained)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert torch.equal(output(vit, images), trained)
        assert not torch.equal(output(twin, images), trained)

    save_adapter(vit, tmp_path / "adapter.safetensors", method)
    fresh = build_vit(KIND)
    torch.manual_seed(99)  # nothing of the start may be drawn again
    assert load_adapter(make(tuner), fresh, tmp_path / "adapter.safetensors") == method
    loaded = (output(fresh, images) - trained).abs().max().item()
    assert loaded <= 1e-6

    if tuner == "Lily":
        with pytest.raises(NotFoldable, match="does not merge LILY"):
            method.fold(vit)
        return
    method.fold(vit)
    folded = (output(vit, images) - trained).abs().max().item()
    print(f"{tuner}: start {start:.1e}, loaded {loaded:.1e}, folded {folded:.1e}")
    assert folded <= 1e-4
    assert list(vit.state_dict()) == keys
    assert all(type(module) is nn.Linear for _, _, _, module in linears(vit))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("lora", {}),
        ("dora", {"use_dora": True}),
        ("pissa", {"init_lora_weights": "pissa"}),
        ("mica", {"init_lora_weights": "mica"}),
    ],
)
def test_agrees_with_ours_on_the_same_factors(ours: str, theirs: dict, images) -> None:
    first, second = build_vit(KIND), build_vit(KIND)
    mine = adapt(METHODS[ours](rank=4, alpha=6, start_block=1, train_bias=True), first)
    options = json.dumps({"r": 4, "lora_alpha": 6} | theirs)
    other = adapt(HFPeft(tuner="LoRA", options=options, start_block=1, train_bias=True), second)
    pairs = []
    for name, layer in first.named_modules():
        if not isinstance(layer, LowRankLinear):
            continue
        bridge = second.get_submodule(name)
        a, b = bridge.lora_A["default"].weight, bridge.lora_B["default"].weight
        if ours in ("pissa", "mica"):  # the start is a split of the same weight
            scale = layer.scale if ours == "pissa" else 0
            weight = (
                bridge.weight + scale * b @ a - layer.weight - scale * layer.lora_b @ layer.lora_a
            )
            assert weight.abs().max() <= 1e-5
        with torch.no_grad():
            layer.lora_a.add_(0.1 * torch.randn_like(layer.lora_a))
            a.copy_(layer.lora_a)
            b.copy_(layer.lora_b)
            bridge.weight.copy_(layer.weight)
            if layer.lora_magnitude is not None:
                magnitude = bridge.lora_magnitude_vector["default"].weight
                layer.lora_magnitude.add_(0.1 * torch.randn_like(layer.lora_magnitude))
                magnitude.copy_(layer.lora_magnitude)
                pairs.append((layer.lora_magnitude, magnitude))
        pairs += [(layer.lora_a, a), (layer.bias, bridge.bias)]
        pairs += [(layer.lora_b, b)] if layer.lora_b.requires_grad else []
    learn = [sum(p.numel() for p in vit.parameters() if p.requires_grad) for vit in (first, second)]
    assert learn[0] == learn[1]
    assert mine.trains("blocks.1.mlp.fc1.bias") == other.trains("blocks.1.mlp.fc1.bias")

    outputs = [vit.forward_features(images) for vit in (first, second)]
    weights = torch.randn_like(outputs[0])
    for features in outputs:
        (features * weights).sum().backward()
    errors = [(outputs[0] - outputs[1]).abs().max().item()]
    largest = max(p.grad.abs().max() for p, _ in pairs)
    errors += [((p.grad - q.grad).abs().max() / largest).item() for p, q in pairs]
    print(f"{ours}: outputs differ by {errors[0]:.1e}, gradients by {max(errors[1:]):.1e}")
    assert max(errors) <= 1e-5


def test_shared_tensors_stay_shared_in_copies(images: torch.Tensor) -> None:
    vit = build_vit(KIND)
    adapt(make("VB-LoRA"), vit)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(vit)))
    bank = [name for name, _ in twin.named_parameters() if "vector_bank" in name]
    assert len(bank) == 1
    with torch.no_grad():
        twin.get_parameter(bank[0]).zero_()
    last = twin.blocks[3].mlp.fc2
    assert last.vblora_vector_bank["default"].abs().max() == 0
    assert vit.get_parameter(bank[0]).abs().max() > 0


def test_gains_do_not_decay() -> None:
    vit = build_vit(KIND)
    method = adapt(make("DoRA"), vit)
    rules = {n.split(".")[-3]: method.decay(n) for n, p in vit.named_parameters() if "lora_" in n}
    assert rules == {"lora_A": "to_zero", "lora_B": "to_zero", "lora_magnitude_vector": "none"}


def test_trained_biases_are_those_of_the_targets() -> None:
    vit = build_vit(KIND)
    adapt(make("IA3", targets=("v", "fc2"), train_bias=True), vit)
    learning = {name for name, p in vit.named_parameters() if p.requires_grad}
    linear = ("attn.qkv.v", "mlp.fc2")
    expected = {
        f"blocks.{b}.{n}.{t}" for b in (2, 3) for n in linear for t in ("bias", "ia3_l.default")
    }
    assert learning == expected


def test_a_name_says_tuner_and_arguments() -> None:
    spec = "hf:LoRA(use_dora=true, r=4, init_lora_weights=pissa, rank_pattern={'q': 2})"
    tuner, values = methods.hf(spec)
    assert tuner == "LORA"
    assert values == {
        "init_lora_weights": "pissa",
        "r": 4,
        "rank_pattern": {"q": 2},
        "use_dora": True,
    }
    assert make_method("hf:vera", {}) == make_method("hf:VeRA()", {})
    assert arguments.names("soma, hf:VeRA(r=4,d_initial=0.2),hf:OFT") == (
        "soma",
        "hf:VeRA(r=4,d_initial=0.2)",
        "hf:OFT",
    )


def test_labels_are_safe_and_differ() -> None:
    label = methods.label
    assert label("hf:OFT") == "hf-OFT"
    assert label("hf:VeRA(r=64, d_initial=0.1)") == "hf-VERA-d_initial=0.1-r=64"
    odd = [label(f"hf:LoRA(rank_pattern={{'{word}': 3}})") for word in ("a/b", "a:b", "../c")]
    assert len(set(odd)) == 3
    assert all(name.startswith("hf-LORA-") and name.isascii() for name in odd)
    assert not any(set(name) & set("/:\\()'[] ") for name in odd)
    assert label("lora") == "lora"
    assert label("some/where/mine.py:Mine") == "mine.Mine"


def test_a_cell_knows_arguments_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(spec: str) -> Any:
        return make_cell(toy_protocol(), spec, seed=0, data={"gtav": "aa"})

    one = cell("hf:VeRA(r=16)")
    assert str(one.path) == "toy/all/hf-VERA-r=16/seed0.json"
    method = one.resolved["method"]
    assert method["name"] == "hf"
    assert method["fields"]["tuner"] == "VERA"
    assert json.loads(method["fields"]["options"]) == {"r": 16}
    assert method["packages"].keys() == {"peft"}
    assert cell("hf:vera(r=16)").digest == one.digest
    assert cell("hf:VeRA(r=17)").digest != one.digest
    assert cell("hf:VeRA").digest != one.digest
    assert "packages" not in cell("lora").resolved["method"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert cell("hf:VeRA(r=16)").digest != one.digest


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:", "expected hf:NAME"),
        ("hf:LoRA(4)", "expected hf:NAME"),
        ("hf:LoRA(r=", "expected hf:NAME"),
        ("hf:LoRA(r=__import__('os'))", "expected hf:NAME"),
        ("hf:Nonsense", "NONSENSE: no tuner of linears; known: ADAMSS, BEFT"),
        ("hf:PROMPT_TUNING", "no tuner of linears"),
        ("hf:LoRA(rank=4)", "LORA takes no argument 'rank'"),
        ("hf:LoRA(bias=all)", "LORA takes no argument 'bias'"),
        (
            "hf:LoRA(init_lora_weights=true, use_dora=true, lora_bias=true)",
            "not supported for DoRA",
        ),
        ("hf:LoRA(r=4, r=8)", "r is given twice"),
        ("hf:LoRA(inference_mode=true)", "LORA takes no argument 'inference_mode' here"),
        ("hf:OFT(inference_mode=false)", "OFT takes no argument 'inference_mode' here"),
        ("hf:VeRA(peft_type=VERA)", "VERA takes no argument 'peft_type' here; what learns is set"),
        ("hf:LoRA(modules_to_save=[norm1])", "LORA takes no argument 'modules_to_save' here"),
        ("hf:LoRA(target_parameters=['a'])", "LORA takes no argument 'target_parameters' here"),
        ("hf:LoRA(init_lora_weights=eva)", "init_lora_weights=eva needs data"),
        ("hf:LoRA(init_lora_weights=corda, corda_config={})", "init_lora_weights=corda needs"),
        ("hf:LoRA(init_lora_weights=lora_ga)", "init_lora_weights=lora_ga needs data"),
        ("hf:LoRA(eva_config={'rho': 2.0})", "peft warns: `eva_config` specified but will be"),
        ("hf:VeRA(r=16, save_projection=False)", "VERA: peft warns: Specified to not save"),
    ],
)
def test_what_cannot_be_made_is_one_line(spec: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_method(spec, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("OFT(oft_block_size=7)", r"peft warns: Invalid `oft_block_size` \(7\)! Adjusted"),
        ("LoRA(fan_in_fan_out=True)", "peft warns: fan_in_fan_out is set to True but"),
        ("LoRA(r=64, init_lora_weights=pissa)", r"r = 64, but peft takes 32 for blocks\.\d\.attn"),
        ("LoRA(r=4, init_lora_weights=olora, rank_pattern={'fc2': 40})", "r = 40, .* takes 32 .*2"),
        ("LoRA(lora_alpha=0)", "nothing would learn"),
        ("FourierFT(n_frequency=20, scaling=0)", "nothing would learn"),
        ("LoRA(lora_dropout=1.0)", "nothing would learn"),
        ("LoRA(qalora_group_size=8)", "peft ignores qalora_group_size"),
        ("LoHa(r=3, use_effective_conv2d=True)", "peft ignores use_effective_conv2d"),
        ("MiSS(r=4, mini_r=2)", "peft ignores mini_r"),
        ("LoRA(rank_pattern={'fc3': 4})", "rank_pattern: 'fc3' is the name of no linear"),
        ("LoRA(alpha_pattern={'blocks.0.attn.proj': 4})", "alpha_pattern: .* is the name of no"),
        ("LoRA(rank_pattern={'fc2': 4, 'mlp.fc2': 6})", "'fc2' and 'mlp.fc2' both mean"),
    ],
)
def test_what_peft_changes_or_ignores_is_refused(spec: str, words: str) -> None:
    vit = build_vit(KIND)
    with pytest.raises(ValueError, match=words):
        adapt(make_method(f"hf:{spec}", {"start_block": 2}), vit)
    assert str(vit) == str(build_vit(KIND))


@pytest.mark.parametrize(
    "spec",
    [
        "LoRA(r=3, lora_alpha=6, lora_dropout=0.1, use_rslora=True)",
        "LoRA(r=4, rank_pattern={'fc2': 6, 'blocks.3.mlp.fc1': 5}, alpha_pattern={'q': 3})",
        "LoRA(r=4, lora_alpha=8, init_lora_weights=orthogonal)",
        "LoHa(r=3, module_dropout=0.1)",
        "OFT(oft_block_size=8, coft=True, eps=0.1)",
        "SHiRA(r=2, random_seed=3)",
        "TinyLoRA(u=32, weight_tying=0.5)",
        "Lily(r=3, stride_A=2)",
    ],
)
def test_what_peft_does_is_not_refused(spec: str) -> None:
    state = torch.get_rng_state()
    vit, plain = build_vit(KIND), build_vit(KIND)
    torch.set_rng_state(state)
    adapt(make_method(f"hf:{spec}", {"start_block": 2}), vit)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    make_method(f"hf:{spec}", {"start_block": 2}).attach_empty(plain)
    assert torch.equal(drawn, torch.get_rng_state())  # looking at the options draws nothing
    pairs = zip(vit.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_lily_shares_between_blocks_as_in_peft() -> None:
    vit = build_vit(KIND)
    adapt(make("Lily", options='{"r": 3, "stride_A": 2}'), vit)
    first, second = vit.blocks[2].mlp.fc1, vit.blocks[3].mlp.fc1
    assert first.lily_A["default"] is second.lily_A["default"]
    assert first.lily_B["default"] is second.lily_B["default"]
    assert first.lily_A["default"] is not vit.blocks[2].mlp.fc2.lily_A["default"]
    assert type(vit.blocks[1].mlp.fc1) is nn.Linear


def test_without_peft_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install peft"):
        make_method("hf:OFT", {})
    assert make_method("lora", {}).rank == 16


def test_backbones_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NotApplicable, match="no linear for the targets q, k, v"):
        adapt(make("LoRA"), build_vit(KIND, split=False))
    vit = build_vit(KIND)
    with pytest.raises(ValueError, match="block size"):
        adapt(HFPeft(tuner="C3A", options='{"block_size": 7}'), vit)
    adapted = build_vit(KIND)
    adapt(METHODS["lora"](rank=2), adapted)
    with pytest.raises(ValueError, match="adapted already"):
        adapt(make("OFT"), adapted)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("r=x", "r = 'x': Input should be a valid integer"),
        ("r=true", "r = True: Input should be a valid integer"),
        ("use_dora=1", "use_dora = 1: Input should be a valid boolean"),
        ("rank_pattern=[4]", r"rank_pattern = \[4\]: Input should be an object"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(arguments: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        make_method(f"hf:LoRA({arguments})", {})


def test_check_of_an_argument_that_peft_refuses_everywhere_is_one_line(capsys) -> None:
    assert command_line.main(["check", "hf:LoRA(r=0)"]) == 2
    assert "`r` should be a positive integer" in capsys.readouterr().err
