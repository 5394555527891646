"""Released weights: names, bits and scores of a stand-in that the suite makes of its own model."""

import importlib.util
import json
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file
from tiny_worlds import write_world
from torch import Tensor, nn

from baselines import METHODS
from baselines.rein import Rein
from baselines.soma_release import SoMARelease
from benchmarks import __main__ as command_line
from benchmarks import released
from benchmarks.artifacts import write_weights
from benchmarks.backbones import hash_of, load_backbone
from benchmarks.cell import make_cell
from benchmarks.protocol import Backbone
from benchmarks.record import Imported
from benchmarks.segmentation import predictions
from benchmarks.segmentation.settings import SegmentationProtocol
from benchmarks.segmentation.task import build
from benchmarks.tasks import load_protocol
from soma import Method, adapt, merge_qkv
from soma.export import NotExportable

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TINY_HEAD = {"hidden": 32, "feedforward": 48, "encoder_feedforward": 40, "encoder_layers": 2}
TINY_HEAD |= {"decoder_layers": 2, "attention_heads": 4, "queries": 20, "points": 64}
TINY = ("vit_tiny_patch16_224", TINY_VIT, [0, 1, 2, 3], TINY_HEAD)
# DINOv2-S under the head of SoMA's own configuration.
SMALL = ("vit_small_patch14_dinov2", {"img_size": 64, "patch_size": 16}, [2, 5, 8, 11], {})


def protocol_at(folder: Path, sizes: tuple[str, dict, list, dict], seed: int = 0) -> Path:
    """A protocol file, with the random weights of its base backbone beside it."""
    name, args, features, head = sizes
    torch.manual_seed(seed)
    spec = Backbone(name=name, args=args, weights="random", features=features)
    vit = load_backbone(spec)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    merge_qkv(vit)
    weights = folder / f"base{seed}.safetensors"
    save_file(vit.state_dict(), weights)
    plain = load_protocol("soma_gtav").model_dump(mode="json", exclude_unset=True)
    patch = args["patch_size"]
    plain |= {
        "name": f"toy{seed}",
        "data_root": str(folder / "data"),
        "backbone": {**spec.model_dump(mode="json"), "weights": str(weights)}
        | {"sha256": hash_of(weights)},
        "head": plain["head"] | head,
        "augment": plain["augment"] | {"crop": 64},
        "recipe": plain["recipe"] | {"loader_workers": 0},
        "window": {"size": 4 * patch, "stride": 2 * patch},
        "targets": [{"domain": "bdd100k", "card": "bdd100k", "split": "val", "size": [32, 48]}],
    }
    path = folder / f"toy{seed}.yaml"
    path.write_text(json.dumps(plain))
    return path


def trained(protocol: SegmentationProtocol, method: Method, dtype: torch.dtype) -> tuple:
    """A model in which all that learns has moved, its method, and the base's state dict."""
    torch.manual_seed(1)
    model = build(protocol).to(dtype).eval()
    plain = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    # Factors that stay in the weight are zero, then noise, without a decomposition.
    placed = adapt(method, model.backbone, empty=isinstance(method, SoMARelease))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model, placed, plain


def stand_in(model: nn.Module, method: Method, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    made = released.to_official(method, model.backbone, plain, model.head.state_dict())
    return made.tensors


def again(protocol: SegmentationProtocol, file: Path, dtype: torch.dtype) -> tuple:
    torch.manual_seed(2)
    model = build(protocol).to(dtype).eval()
    plain = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    return model, released.apply(released.read(file), model, protocol.name), plain


def relative(model: nn.Module, other: nn.Module, dtype: torch.dtype) -> float:
    """Largest difference of the mask and class logits of all layers."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)).to(dtype)
    worst = 0.0
    with torch.no_grad():
        (masks, classes), (masks2, classes2) = (
            m.head(m.feature_maps(images)) for m in (model, other)
        )
        for one, two in [*zip(masks, masks2, strict=True), (classes, classes2)]:
            worst = max(worst, ((one - two).abs().max() / one.abs().max()).item())
    return worst


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SegmentationProtocol:
    return load_protocol(protocol_at(tmp_path_factory.mktemp("small"), SMALL))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SegmentationProtocol:
    return load_protocol(protocol_at(tmp_path_factory.mktemp("tiny"), TINY))


def official_head(layers: int = 6, decoders: int = 9, width: int = 384) -> dict[str, tuple]:
    """Names and shapes of mmdetection's head in SoMA's configuration, written from its modules."""
    c, made = 256, {}

    def norm(name: str) -> None:
        made.update({f"{name}.weight": (c,), f"{name}.bias": (c,)})

    def linear(name: str, out: int, into: int, kernel: tuple = ()) -> None:
        made.update({f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)})

    made["pixel_decoder.lateral_convs.0.conv.weight"] = (c, width, 1, 1)
    made["pixel_decoder.output_convs.0.conv.weight"] = (c, c, 3, 3)
    made["pixel_decoder.level_encoding.weight"] = (3, c)
    norm("pixel_decoder.lateral_convs.0.gn")
    norm("pixel_decoder.output_convs.0.gn")
    linear("pixel_decoder.mask_feature", c, c, (1, 1))
    for level in range(3):
        linear(f"pixel_decoder.input_convs.{level}.conv", c, width, (1, 1))
        norm(f"pixel_decoder.input_convs.{level}.gn")
    for layer in range(layers):
        at = f"pixel_decoder.encoder.layers.{layer}"
        linear(f"{at}.self_attn.sampling_offsets", 192, c)
        linear(f"{at}.self_attn.attention_weights", 96, c)
        linear(f"{at}.self_attn.value_proj", c, c)
        linear(f"{at}.self_attn.output_proj", c, c)
        linear(f"{at}.ffn.layers.0.0", 1024, c)
        linear(f"{at}.ffn.layers.1", c, 1024)
        norm(f"{at}.norms.0")
        norm(f"{at}.norms.1")
    for layer in range(decoders):
        at = f"transformer_decoder.layers.{layer}"
        for kind in ("self_attn", "cross_attn"):
            made[f"{at}.{kind}.attn.in_proj_weight"] = (3 * c, c)
            made[f"{at}.{kind}.attn.in_proj_bias"] = (3 * c,)
            linear(f"{at}.{kind}.attn.out_proj", c, c)
        linear(f"{at}.ffn.layers.0.0", 2048, c)
        linear(f"{at}.ffn.layers.1", c, 2048)
        for index in range(3):
            norm(f"{at}.norms.{index}")
    norm("transformer_decoder.post_norm")
    for index in (0, 2, 4):
        linear(f"mask_embed.{index}", c, c)
    linear("cls_embed", 20, c)
    made |= {"query_embed.weight": (100, c), "query_feat.weight": (100, c)}
    return made | {"level_embed.weight": (3, c)}


def test_a_released_file_gives_the_scores_of_its_model(small, tmp_path: Path) -> None:
    model, placed, plain = trained(small, SoMARelease(rank=16, start_block=4), torch.float32)
    tensors = stand_in(model, placed, plain)
    head = {name: tuple(value.shape) for name, value in tensors.items() if "decode_head." in name}
    assert head == {f"decode_head.{name}": shape for name, shape in official_head().items()}
    assert len(head) == 292
    assert len(tensors) - len(head) == 2 * 6 * 8 + 8 * 12 + 2  # factors, biases
    assert tensors["backbone.model.blocks.4.attn.q.lora_A.weight"].shape == (16, 384)
    tensors["backbone.model.mask_token"] = torch.zeros(1, 384)
    torch.save({"state_dict": tensors, "ema_state_dict": {}}, tmp_path / "file.pth")
    file = released.read(tmp_path / "file.pth")
    other = build(small).eval()
    moved = relative(model, other, torch.float32)
    read = released.apply(file, other, small.name)
    assert (read.rank, read.alpha, read.start_block) == (16, 16, 4)
    for dtype, bound in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        error = relative(model.to(dtype), other.to(dtype), dtype)
        print(f"import of a stand-in, {dtype}: {error:.1e} relative, before {moved:.1e}")
        assert error <= bound
        assert moved > 0.1


def test_parts_that_look_alike_go_where_they_belong() -> None:
    """The places that shapes do not tell apart, by the official modules."""
    wide = torch.arange(3.0)[:, None].repeat(1, 4).reshape(12, 1).expand(12, 4)
    layer, mine = "transformer_decoder.layers.1", "transformer.decoder.layers.1"
    head = {f"{layer}.self_attn.attn.in_proj_weight": wide, "level_embed.weight": torch.ones(1)}
    made = released.head_from_official(head)
    for index, role in enumerate("qkv"):
        assert (made[f"{mine}.self_attn.{role}_proj.weight"] == index).all()
    pairs = {
        f"{layer}.norms.0.bias": f"{mine}.cross_attn_layer_norm.bias",
        f"{layer}.norms.1.bias": f"{mine}.self_attn_layer_norm.bias",
        f"{layer}.norms.2.bias": f"{mine}.final_layer_norm.bias",
        "pixel_decoder.encoder.layers.0.norms.0.weight": (
            "pixel_decoder.encoder.layers.0.self_attn_layer_norm.weight"
        ),
        "pixel_decoder.input_convs.0.conv.weight": "reduce.3.weight",
        "pixel_decoder.input_convs.2.conv.weight": "reduce.1.weight",
        "pixel_decoder.input_convs.0.gn.weight": "pixel_decoder.input_projections.0.1.weight",
        "mask_embed.2.bias": "transformer.decoder.mask_predictor.mask_embedder.1.0.bias",
        "level_embed.weight": "transformer.level_embed.weight",
        "pixel_decoder.level_encoding.weight": "pixel_decoder.level_embed",
        "query_embed.weight": "transformer.queries_embedder.weight",
        "query_feat.weight": "transformer.queries_features.weight",
    }
    for theirs, ours in pairs.items():
        assert list(released.head_from_official({theirs: torch.ones(1)})) == [ours]
        assert released.official(f"head.{ours}") == f"decode_head.{theirs}"
    for unknown in ("cls_embedding.weight", "class_predictor.weight", "loss.weight"):
        with pytest.raises(KeyError):
            released.head_from_official({unknown: torch.ones(1)})


@pytest.mark.parametrize("name", ["soma-release", "soma", "pissa", "hf:LoRA", "rein"])
def test_export_and_import_are_inverse(tiny, name: str, tmp_path: Path) -> None:
    if name.startswith("hf:"):
        from baselines.hf_peft import HFPeft

        method: Method = HFPeft(tuner="LORA", options='{"r": 3, "lora_alpha": 6}', start_block=1)
    elif name == "rein":
        method = Rein(tokens=20, rank=3)
    else:
        method = METHODS[name](rank=3, alpha=3.0, start_block=1)
    model, placed, plain = trained(tiny, method, torch.float64)
    tensors = stand_in(model, placed, plain)
    torch.save({"state_dict": tensors}, tmp_path / "file.pth")
    other, read, base = again(tiny, tmp_path / "file.pth", torch.float64)
    assert relative(model, other, torch.float64) <= 1e-9
    twice = stand_in(other, read, base)
    assert twice.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in twice.items())
    if name in ("soma-release", "rein"):
        mine, its = model.state_dict(), other.state_dict()
        assert mine.keys() == its.keys()
        assert all(torch.equal(value, its[key]) for key, value in mine.items())


def test_queries_of_rein_are_those_that_its_link_makes(tiny, tmp_path: Path) -> None:
    model, placed, plain = trained(tiny, Rein(tokens=20, rank=3), torch.float64)
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    link = {"transform": (drawn(32, 32), drawn(32)), "merge": (drawn(32, 96), drawn(32))}
    weight, bias = drawn(32, 32), drawn(32)
    (project, offset), (mix, shift) = link["transform"], link["merge"]
    rein = model.backbone.rein
    projected = [(a @ b) @ project.T + offset for a, b in zip(rein.tokens_a, rein.tokens_b)]  # noqa: B905
    queries = shift.repeat(20, 1)
    for unit in range(32):  # three numbers of a unit are neighbours in the input of `merge`
        values = torch.stack([block[:, unit] for block in projected])
        for place, value in enumerate((values.max(0).values, values.mean(0), values[-1])):
            queries = queries + value[:, None] * mix[:, 3 * unit + place]
    with torch.no_grad():
        model.head.transformer.queries_embedder.weight.copy_(queries)
        model.head.transformer.queries_features.weight.copy_(queries @ weight.T + bias)
    tensors = stand_in(model, placed, plain)
    del tensors["decode_head.query_embed.weight"], tensors["decode_head.query_feat.weight"]
    for name, (w, b) in link.items():
        tensors |= {f"backbone.reins.{name}.weight": w, f"backbone.reins.{name}.bias": b}
    tensors |= {"decode_head.querys2feat.weight": weight, "decode_head.querys2feat.bias": bias}
    torch.save(tensors, tmp_path / "dinov2_rein_and_head.pth")  # bare, as in Rein's repository
    other, read, _ = again(tiny, tmp_path / "dinov2_rein_and_head.pth", torch.float64)
    assert isinstance(read, Rein)
    assert relative(model, other, torch.float64) <= 1e-9
    assert "not stated" in released.read(tmp_path / "dinov2_rein_and_head.pth").selection


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("dora", {}, "lengths of rows"),
        ("lora", {"targets": ("q", "v")}, "adapts all six linears of a block, blocks.1"),
        ("full", {}, "adds no low-rank updates"),
        ("rein", {"tokens": 20}, "tokens in every block"),
    ],
)
def test_what_the_official_code_has_no_place_for_is_refused(tiny, name, fields, words) -> None:
    model, placed, plain = trained(tiny, METHODS[name](start_block=1, **fields), torch.float32)
    with pytest.raises(NotExportable, match=words):
        stand_in(model, placed, plain)


Mutation = Callable[[dict[str, Any]], Any]


def without(name: str) -> Mutation:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_tensor(name: str, *shape: int) -> Mutation:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


def seventeen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {
        f"decode_head.cls_embed.{leaf}": tensors[f"decode_head.cls_embed.{leaf}"][:19]
        for leaf in ("weight", "bias")
    }


AT, BIAS = "backbone.model.blocks.2.attn", "backbone.model.blocks.0.mlp.fc1.bias"
MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "missing factor": (without(f"{AT}.q.lora_A.weight"), f"{AT}.q.lora_A.weight is missing"),
    "missing role": (
        lambda tensors: {k: v for k, v in tensors.items() if "fc2.lora" not in k},
        "fc2.lora_A.weight is missing (4 in all)",
    ),
    "missing trained bias": (without(f"{AT}.q.bias"), f"{AT}.q.bias is missing"),
    "missing bias of the base": (without(BIAS), f"{BIAS} is missing, which tells the base"),
    "missing in the head": (
        without("decode_head.transformer_decoder.layers.1.self_attn.attn.in_proj_bias"),
        "transformer_decoder.layers.1.self_attn.attn.in_proj_bias is missing",
    ),
    "extra": (with_tensor("backbone.model.blocks.1.attn.q.gain", 32), "attn.q.gain has no place"),
    "extra in the head": (
        with_tensor("decode_head.transformer_decoder.layers.7.norms.0.bias", 32),
        "decode_head.transformer_decoder.layers.7.norms.0.bias has no place in the model of toy0",
    ),
    "a name of the suite": (
        with_tensor("decode_head.class_predictor.bias", 20),
        "decode_head.class_predictor.bias has no place in a Mask2Former",
    ),
    "extra elsewhere": (with_tensor("auxiliary_head.conv.bias", 2), "of no backbone and no head"),
    "Co-DETR": (with_tensor("query_head.label_embedding.weight", 8, 3), "of a Co-DETR detector"),
    "shape": (
        with_tensor("decode_head.mask_embed.0.weight", 32, 31),
        "decode_head.mask_embed.0.weight has shape (32, 31), in the model of toy0 (32, 32)",
    ),
    "18 classes": (seventeen, "18 classes and void where there are 19"),
    "one rank": (with_tensor(f"{AT}.k.lora_A.weight", 4, 32), "has rank 4, the other factors 3"),
    "rank of no factor": (with_tensor(f"{AT}.k.lora_A.weight", 0, 32), "has rank 0"),
    "factor of one axis": (with_tensor(f"{AT}.k.lora_A.weight", 3), "has rank None"),
    "another base": (
        lambda tensors: tensors | {BIAS: tensors[BIAS] + 2**-20},
        f"trained on another base than that of toy0: 1 of 22 frozen tensors differ, {BIAS}",
    ),
    "residual weights": (
        lambda tensors: tensors | {f"{AT}.q.weight": torch.ones(32, 32)},
        f"1 of 23 frozen tensors differ, {AT}.q.weight",
    ),
    "larger base": (with_tensor(BIAS, 3072), "is (3072,), the base of toy0 has (128,)"),
    "no adapter": (
        lambda tensors: {k: v for k, v in tensors.items() if "lora" not in k},
        "neither SoMA's factors",
    ),
    "integers": (
        lambda tensors: tensors | {BIAS: torch.ones(128, dtype=torch.int64)},
        "released weights are float32",
    ),
    "NaN": (lambda tensors: tensors | {BIAS: torch.full((128,), torch.nan)}, "is not finite"),
    "text": (lambda tensors: tensors | {BIAS: "a"}, "is a str, no tensor"),
    "raw weights alone": (lambda tensors: {"ema_state_dict": tensors}, "weights without averaging"),
    "beside": (
        lambda tensors: {"state_dict": tensors, "optimizer": {}},
        "holds optimizer beside state_dict",
    ),
    "list": (lambda tensors: [*tensors.values()], "holds a list, no tensors by name"),
    "nothing": (lambda _: {}, "holds a dict, no tensors by name"),
    "pickled object": (lambda tensors: {"state_dict": tensors, "meta": Path}, "never unpickled"),
}


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The tensors of a stand-in for the tiny protocol, and its world."""
    model, placed, plain = trained(tiny, SoMARelease(rank=3, alpha=3, start_block=2), torch.float32)
    write_world(Path(tiny.data_root), "bdd100k", "val", count=2)
    return stand_in(model, placed, plain)


def run(*words: object) -> int:
    return command_line.main([*map(str, words)])


def import_(file: Path, protocol: SegmentationProtocol, *words: object) -> int:
    root = Path(protocol.data_root)
    yaml = root.parent / f"{protocol.name}.yaml"
    return run("import", file, "--protocol", yaml, "--data-root", root, *words)


@pytest.mark.parametrize(("change", "words"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_wrong_file_is_one_line(change, words, file, tiny, tmp_path: Path, capsys) -> None:
    torch.save(change(dict(file)), tmp_path / "wrong.pth")
    assert import_(tmp_path / "wrong.pth", tiny, "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert words in line
    assert "wrong.pth" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_another_protocol_or_size_is_one_line(
    file, tiny, tmp_path: Path, capsys
) -> None:
    torch.save({"state_dict": file}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    soma = "soma_dinov2-L_gsu2cbm_1024x1024_best.pth"
    made = {
        "cut.pth": (content[: len(content) // 2], "damaged, or no file of weights"),
        "empty.pth": (b"", "empty"),
        "page.pth": (b"<!DOCTYPE html><p>Not found", "a web page, no file of weights"),
        "code.pth": (pickle.dumps(print, 2), "never unpickled"),
        "a b.pth": (content, "rename the file"),
        soma: (content, "trained on crops of 1024 pixels, toy0 is for 64"),
        "soma_dinov2-L_g2cbm_best.pth": (content, "trained on crops of 512 pixels, toy0 is for 64"),
    }
    for name, (data, words) in made.items():
        (tmp_path / name).write_bytes(data)
        assert import_(tmp_path / name, tiny, "--out", tmp_path / "out") == 2, name
        line = capsys.readouterr().err
        assert words in line, name
        assert line.count("\n") == 1
    for name, words in (("mini_sdgod", "has not"), ("mini_gtav", "has not")):
        assert run("import", tmp_path / "whole.pth", "--protocol", name) == 2
        assert words in capsys.readouterr().err
    assert import_(tmp_path / "absent.pth", tiny) == 2
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_was_scored_and_invents_no_training(
    file, tiny, tmp_path: Path, capsys
) -> None:
    name = "soma_dinov2-L_gsu2cbm_1024x1024_best.pth"
    torch.save({"state_dict": file, "ema_state_dict": {}}, tmp_path / name)
    out = tmp_path / "out"
    assert import_(tmp_path / name, tiny, "--any-size", "--out", out) == 0
    assert "chosen by the authors on the targets" in capsys.readouterr().out
    (path,) = out.rglob("*.json")
    record = Imported.load(path)
    record.check()
    assert record.sha256 == hash_of(tmp_path / name)
    assert (
        path == out / "toy0" / "imported" / name.removesuffix(".pth") / f"{record.sha256[:16]}.json"
    )
    assert (record.kind, record.state_dict, record.rank) == ("imported", "state_dict", 3)
    assert (record.start_block, record.base_checked, record.method) == (2, 22, "soma-release")
    assert record.domains["bdd100k"].images == 2
    learnt = [name for name in file if "lora" in name]
    learnt += [
        f"{AT.replace('2', n)}.{role}.bias" for n in "23" for role in ("q", "k", "v", "proj")
    ]
    learnt += [
        f"backbone.model.blocks.{n}.mlp.{role}.bias" for n in "23" for role in ("fc1", "fc2")
    ]
    assert record.parameters.backbone_trainable == sum(file[name].numel() for name in learnt)
    invented = {"seed", "recipe", "losses", "cost", "placement", "budget"}
    held = json.loads(path.read_text())
    assert not invented & held.keys()
    assert not {"seed", "recipe", "recipe_mode", "placement"} & held["cell"].keys()
    root, drawn = Path(tiny.data_root), path.with_suffix("") / "pictures_bdd100k.png"
    assert run("pictures", path, "--data-root", root) == 0
    assert capsys.readouterr().out == f"{drawn}\n"
    assert len(predictions.read(path.with_suffix(".bdd100k.png"))) == 2
    assert run("verify", path, "--root", root) == 0
    assert "scored again as its run did: bdd100k" in capsys.readouterr().out
    assert run("show", path, "--images", "bdd100k") == 0
    assert capsys.readouterr().out.count("\n") == 3
    path.with_suffix(".bdd100k.png").unlink()
    assert run("pictures", path, "--data-root", root) == 2
    assert "kept no predictions; import the file again" in capsys.readouterr().err
    edits = {"sha256": "0" * 64, "rank": 4, "start_block": 1, "selection": "last", "file": "a.pth"}
    edits |= {"label": "soma", "base_checked": 1, "protocol_version": 9, "data": {}}
    for key, value in edits.items():
        with pytest.raises(ValueError, match=key if key != "data" else "data is"):
            record.model_copy(update={key: value}).check()


def test_a_cell_goes_out_and_comes_back(tiny, tmp_path: Path, capsys) -> None:
    cell = make_cell(tiny, "soma-release", seed=0, placement="all", data={"bdd100k": "f00d"})
    model, placed, _ = trained(tiny, cell.make_method(), torch.float32)
    path = tmp_path / "runs" / cell.path
    domain = {"role": "target", "metrics": {"mIoU": 1.0}, "images": 2}
    last = [{"iteration": 40000, "domains": {"bdd100k": domain}}]
    cell.record("done", evaluations=last).write(path)
    write_weights(path.with_suffix(".safetensors"), model, placed)
    yaml = Path(tiny.data_root).parent / "toy0.yaml"
    file = tmp_path / "file.pth"
    assert run("export", path, file, "--to", "mmseg", "--protocol", yaml) == 0
    assert "rank = 16, start_lora_idx = 0" in capsys.readouterr().err
    other, _, _ = again(tiny, file, torch.float32)
    its = other.state_dict()
    assert all(torch.equal(value, its[key]) for key, value in model.state_dict().items())
    read = released.read(file)
    assert read.selection.startswith(f"trained by the suite, record {cell.digest[:12]}")
    assert read.size == 64


def test_the_comparison_with_the_official_code_says_what_it_lacks(capsys) -> None:
    if importlib.util.find_spec("mmseg"):
        pytest.skip("mmsegmentation is installed: run scripts/compare_with_mmseg.py")
    main = runpy.run_path(str(ROOT / "scripts" / "compare_with_mmseg.py"))["main"]
    assert main(["a", "b", "c", "d"]) == 2
    assert "mmseg not installed; nothing was compared" in capsys.readouterr().out
