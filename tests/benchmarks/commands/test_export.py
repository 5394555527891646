"""Export: peft and timm compute from the written files what the trained backbone computes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_vits import build_vit
from torch import nn
from toy_task import BACKBONE, FakeTask, take_place
from toy_task import protocol as toy_protocol

from baselines import METHODS
from baselines.hf_peft import HFPeft
from benchmarks import __main__ as command_line
from benchmarks import run
from benchmarks.artifacts import load_trained
from benchmarks.backbones import load_backbone
from benchmarks.cell import make_cell
from benchmarks.record import Record
from benchmarks.segmentation.settings import SegmentationProtocol
from soma import LowRankLinear, Method, adapt, split_qkv
from soma.export import NotExportable, export_folded, export_peft
from soma.low_rank import LowRank

pytestmark = pytest.mark.usefixtures("one_thread")

LOW_RANK = [name for name, kind in METHODS.items() if issubclass(kind, LowRank)]
LENGTHS = [name for name in LOW_RANK if METHODS[name].magnitude]
ELSE = [name for name in METHODS if name not in LOW_RANK]


def trained(
    method: Method, vit: nn.Module | None = None
) -> tuple[Method, nn.Module, dict[str, torch.Tensor]]:
    """An adapted backbone whose learning tensors have moved, and the state before."""
    vit = build_vit("class token") if vit is None else vit
    plain = {name: value.clone() for name, value in vit.state_dict().items()}
    torch.manual_seed(1)
    placed = adapt(method, vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(0.03 * torch.randn_like(parameter))
    return placed, vit, plain


def output(vit: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.forward_features(images)


def through_peft(folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(build_vit("class token", split=False), str(folder)).eval()


@pytest.mark.parametrize("targets", [("q", "k", "v", "proj", "fc1", "fc2"), ("q", "v", "fc1")])
@pytest.mark.parametrize("name", LOW_RANK)
def test_peft_computes_the_same(name, targets, images, tmp_path: Path) -> None:
    # Biases learn wherever peft has a place for them, which its DoRA has not.
    fields = {"rank": 8, "alpha": 6.0, "targets": targets, "train_bias": name not in LENGTHS}
    method, vit, plain = trained(METHODS[name](start_block=1, **fields))
    expected = output(vit, images)
    export_peft(vit, plain, tmp_path / "peft")
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    model = through_peft(tmp_path / "peft")
    errors = [(output(model.base_model.model, images) - expected).abs().max().item()]
    errors.append((output(model.merge_and_unload(), images) - expected).abs().max().item())

    export_folded(method, vit, tmp_path / "plain.safetensors")
    fresh = build_vit("class token", split=False)
    moved = (output(fresh, images) - expected).abs().max().item()
    fresh.load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
    errors.append((output(fresh, images) - expected).abs().max().item())
    print(name, targets, "peft, merged, folded", [f"{error:.1e}" for error in errors])
    assert moved > 1e-2
    assert max(errors) <= 1e-5


def test_ranks_and_names_in_the_file(tmp_path: Path) -> None:
    _, vit, plain = trained(METHODS["soma"](rank=4, alpha=8.0, start_block=2))
    export_peft(vit, plain, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    fused = "base_model.model.blocks.3.attn.qkv"
    assert tensors[f"{fused}.lora_A.weight"].shape == (24, 32)  # q, k, v, each start and end
    b = tensors[f"{fused}.lora_B.weight"]
    assert b.shape == (96, 24)
    assert b[:32, 8:].abs().max() == b[32:64, :8].abs().max() == 0
    assert tensors["base_model.model.blocks.3.mlp.fc1.lora_A.weight"].shape == (8, 32)
    loaded = peft.PeftConfig.from_pretrained(str(tmp_path))
    ranks = [loaded.rank_pattern.get(name, loaded.r) for name in loaded.target_modules]
    assert sorted(ranks) == [8] * 6 + [24] * 2
    assert config["lora_bias"]
    assert config["target_modules"][0] == "blocks.2.attn.qkv"


@pytest.mark.parametrize("name", ELSE)
def test_what_is_not_low_rank_is_refused(name: str, tmp_path: Path) -> None:
    _, vit, plain = trained(METHODS[name]())
    with pytest.raises(NotExportable):
        export_peft(vit, plain, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_what_peft_has_no_place_for_is_refused(tmp_path: Path) -> None:
    _, vit, plain = trained(METHODS[LENGTHS[0]](train_bias=True))
    with pytest.raises(NotExportable, match="biases were trained"):
        export_peft(vit, plain, tmp_path)

    _, vit, plain = trained(METHODS["lora"]())
    with torch.no_grad():
        vit.norm.weight.add_(1)
    with pytest.raises(NotExportable, match=r"norm\.weight was trained"):
        export_peft(vit, plain, tmp_path)

    _, vit, plain = trained(METHODS["soma"]())
    plain["blocks.1.mlp.fc1.weight"] += 1e-2
    with pytest.raises(NotExportable, match=r"blocks\.1\.mlp\.fc1\.weight is not the pretrained"):
        export_peft(vit, plain, tmp_path)

    class Other(LowRankLinear):
        """A user's own layer may compute anything."""

    _, vit, plain = trained(METHODS["lora"]())
    vit.blocks[1].mlp.fc1.__class__ = Other
    with pytest.raises(NotExportable, match=r"blocks\.1\.mlp\.fc1 is a Other"):
        export_peft(vit, plain, tmp_path)
    assert not list(tmp_path.iterdir())


HF = {
    "LoRA": {"r": 4},
    "rank-stabilised, biased": {"r": 4, "use_rslora": True, "lora_bias": True, "lora_dropout": 0.1},
    "DoRA": {"r": 4, "use_dora": True},
    "ranks": {"r": 4, "rank_pattern": {"q": 2, "fc2": 6}, "alpha_pattern": {"v": 3}},
}


@pytest.mark.parametrize("options", HF.values(), ids=HF)
def test_lora_of_peft_goes_back_to_peft(options: dict, images, tmp_path: Path) -> None:
    _, vit, plain = trained(HFPeft(tuner="LORA", options=json.dumps(options), start_block=1))
    before = str(vit)
    expected = output(vit, images)
    export_peft(vit, plain, tmp_path)
    assert str(vit) == before
    through = output(through_peft(tmp_path).base_model.model, images)
    fresh = output(build_vit("class token"), images)
    assert (through - expected).abs().max() <= 1e-5
    assert (fresh - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("tuner", "options", "line"),
    [
        ("LORA", {"r": 4, "init_lora_weights": "pissa"}, "weight is not the pretrained one"),
        ("LORA", {"r": 4, "kasa_config": {"beta": 1e-4, "gamma": 1e-3}}, "no low-rank updates"),
        ("OFT", {"oft_block_size": 8}, "no low-rank updates"),
        ("LOHA", {}, "no low-rank updates"),
    ],
)
def test_other_tuners_of_peft_are_refused(tuner, options, line, tmp_path: Path) -> None:
    _, vit, plain = trained(HFPeft(tuner=tuner, options=json.dumps(options)))
    with pytest.raises(NotExportable, match=line):
        export_peft(vit, plain, tmp_path)
    assert not list(tmp_path.iterdir())


SIZES = {"img_size": 32, "patch_size": 8, "num_classes": 0, "depth": 3, "num_heads": 2}
# Attention with biases of q and v beside a fused linear, whose weight it reads.
BESIDE = ("beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3_qkvb")
APART = ("vit_small_patch14_reg4_dinov2", "eva02_large_patch14_224", "vit_small_patch16_dinov3")


@pytest.mark.parametrize("targets", [("q", "v", "fc1"), ("proj", "fc1", "fc2")])
@pytest.mark.parametrize("name", [*BESIDE, *APART, "samvit_base_patch16"])
def test_every_family_is_exported_right_or_refused(name, targets, images, tmp_path: Path) -> None:
    def build(split: bool) -> nn.Module:
        torch.manual_seed(0)
        options = {} if name.startswith("sam") else {"dynamic_img_size": True}
        options = {} if name.startswith("beit") else options
        vit = timm.create_model(name, embed_dim=32, **SIZES, **options).eval()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if split:
            split_qkv(vit)
        return vit

    _, vit, plain = trained(METHODS["soma"](rank=3, train_bias=False, targets=targets), build(True))
    if name in BESIDE and "q" in targets:
        line = r"the backbone reads the weight of blocks\.1\.attn\.qkv past peft's layer"
        with pytest.raises(NotExportable, match=line):
            export_peft(vit, plain, tmp_path / "peft")
        assert not (tmp_path / "peft").exists()
        return
    export_peft(vit, plain, tmp_path / "peft")
    model = peft.PeftModel.from_pretrained(build(False), str(tmp_path / "peft")).eval()
    expected = output(vit, images)
    assert (output(model.base_model.model, images) - expected).abs().max() <= 1e-5
    assert (output(build(False), images) - expected).abs().max() > 1e-2


def test_an_embedding_of_patches_may_be_of_several_layers(tmp_path: Path) -> None:
    def build(split: bool) -> nn.Module:
        torch.manual_seed(0)
        sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
        vit = timm.create_model("xcit_tiny_12_p16_224", **sizes).eval()
        if split:
            split_qkv(vit)
        return vit

    _, vit, plain = trained(METHODS["soma"](rank=3), build(True))
    export_peft(vit, plain, tmp_path / "peft")
    model = peft.PeftModel.from_pretrained(build(False), str(tmp_path / "peft")).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    expected = output(vit, images)
    assert (output(model.base_model.model, images) - expected).abs().max() <= 1e-4


OWN = '''
from dataclasses import dataclass
from typing import ClassVar
from baselines.lora import LoRA

@dataclass(frozen=True, kw_only=True)
class Mine(LoRA):
    """A user's own."""
    source: ClassVar[str] = "here"
'''


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains a cell on the toy task, on a backbone from a file; returns the record's path."""
    task = FakeTask("fake_task")
    take_place(task, monkeypatch)
    toy = toy_protocol()
    torch.manual_seed(5)
    vit = load_backbone(toy.backbone)
    torch.manual_seed(5)
    from soma import merge_qkv

    merge_qkv(vit)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    digest = hashlib.sha256((tmp_path / "vit.safetensors").read_bytes()).hexdigest()
    backbone = BACKBONE | {"weights": str(tmp_path / "vit.safetensors"), "sha256": digest}
    values = toy.model_dump(mode="json", exclude_unset=True) | {
        "name": "toy_export",
        "backbone": backbone,
    }
    (tmp_path / "toy_export.yaml").write_text(json.dumps(values))

    def train(method: str, **changes: Any) -> Path:
        protocol = SegmentationProtocol.model_validate(values | changes)
        cell = make_cell(protocol, method, seed=0, placement="all", data={"gtav": "f00d"})
        assert run.run_cell(cell, tmp_path / "runs", tmp_path / "data").status == "done"
        return tmp_path / "runs" / cell.path

    yield train
    torch.use_deterministic_algorithms(False)


def export(*words: object) -> int:
    return command_line.main(["export", *(str(word) for word in words)])


def fused(path: Path) -> nn.Module:
    """The pretrained backbone of the world as timm builds it, with these weights."""
    vit = timm.create_model(
        BACKBONE["name"], num_classes=0, dynamic_img_size=True, **BACKBONE["args"]
    )
    vit.load_state_dict(load_file(path), strict=True)
    return vit.eval()


def test_a_record_becomes_an_adapter_of_peft(world, images, tmp_path: Path, capsys) -> None:
    record = world("soma")
    named = ("--protocol", tmp_path / "toy_export.yaml")
    assert export(record, tmp_path / "out", "--to", "peft", *named) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    expected = output(load_trained(record, str(named[1])).vit.eval(), images)
    plain = fused(tmp_path / "vit.safetensors")
    assert (output(plain, images) - expected).abs().max() > 1e-3
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    error = (output(model.base_model.model, images) - expected).abs().max().item()
    assert export(record, tmp_path / "plain.safetensors", "--to", "folded", *named) == 0
    other = (output(fused(tmp_path / "plain.safetensors"), images) - expected).abs().max().item()
    print(f"a record through peft: {error:.1e}, folded: {other:.1e}")
    assert max(error, other) <= 1e-5


def test_a_tuner_of_peft_can_be_folded(world, images, tmp_path: Path, capsys) -> None:
    named = ("--protocol", tmp_path / "toy_export.yaml")
    record = world("hf:VBLoRA(vector_length=8, num_vectors=16, topk=2)")
    assert Record.load(record).method.startswith("hf:VBLoRA(")
    assert export(record, tmp_path / "plain.safetensors", "--to", "folded", *named) == 0
    expected = output(load_trained(record, str(named[1])).vit.eval(), images)
    got = output(fused(tmp_path / "plain.safetensors"), images)
    assert (got - expected).abs().max() <= 1e-5
    assert export(record, tmp_path / "out", "--to", "peft", *named) == 2
    err = capsys.readouterr().err
    assert "no LoRA for peft: " in err
    assert "--to folded" in err
    assert export(world("hf:LoRA(r=3)"), tmp_path / "out", "--to", "peft", *named) == 0
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_a_method_in_a_file_needs_its_place(world, tmp_path: Path, capsys) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}:Mine"
    record = world(own)
    named = ("--protocol", tmp_path / "toy_export.yaml")
    assert export(record, tmp_path / "out", "--to", "peft", *named) == 2
    assert "--method path/to/file.py:Mine" in capsys.readouterr().err
    assert export(record, tmp_path / "out", "--to", "peft", *named, "--method", own) == 0
    (tmp_path / "own.py").write_text(OWN + "\n# changed\n")
    assert export(record, tmp_path / "out", "--to", "peft", *named, "--method", own) == 2
    assert "recorded with other code" in capsys.readouterr().err


def test_bad_input_is_one_line(world, tmp_path: Path, capsys) -> None:
    named = ("--protocol", tmp_path / "toy_export.yaml")
    record, out = world("lora"), tmp_path / "out"
    cases = {
        "--to pickle: no such format; known: folded, mmseg, peft": (record, out, "--to", "pickle"),
        "no protocol 'toy_export'": (record, out, "--to", "peft"),
        "record cannot be read": (tmp_path / "absent.json", out, "--to", "peft", *named),
        "File exists": (record, tmp_path / "own", "--to", "peft", *named),
    }
    (tmp_path / "own").write_text("a file")
    for words, arguments in cases.items():
        assert export(*arguments) == 2
        line = capsys.readouterr().err
        assert words in line
        assert line.count("\n") == 1
    prompts = world("vpt")
    for to, words in (("peft", "no LoRA for peft"), ("folded", "no plain weights: prompts")):
        assert export(prompts, out, "--to", to, *named) == 2
        assert words in capsys.readouterr().err
    record.with_suffix(".safetensors").write_bytes(b"damaged")
    assert export(record, out, "--to", "peft", *named) == 2
    assert "not the weights of this record" in capsys.readouterr().err
    record.with_suffix(".safetensors").unlink()
    assert export(record, out, "--to", "peft", *named) == 2
    assert "run its cell again" in capsys.readouterr().err
    changed = json.loads(record.read_text())
    changed["cell"]["protocol"]["backbone"]["sha256"] = "0" * 64
    record.write_text(json.dumps(changed))
    record.with_suffix(".safetensors").write_bytes(b"")
    assert export(record, out, "--to", "peft", *named) == 2
    assert "its backbone is no longer that of toy_export" in capsys.readouterr().err
    failed = changed | {"status": "failed", "reason": "the loss is nan"}
    record.write_text(json.dumps(failed))
    assert export(record, out, "--to", "peft", *named) == 2
    assert "nothing was trained, the cell is failed" in capsys.readouterr().err
    assert not out.exists()


def test_random_backbones_are_refused(world, tmp_path: Path, capsys) -> None:
    path = tmp_path / "toy_export.yaml"
    values = json.loads(path.read_text()) | {"backbone": BACKBONE}
    path.write_text(json.dumps(values))
    record = world("lora", backbone=BACKBONE)
    assert export(record, tmp_path / "out", "--to", "folded", "--protocol", path) == 2
    assert "its backbone is random" in capsys.readouterr().err
