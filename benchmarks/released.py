"""The weights that the authors of SoMA and Rein released, as models of the suite; and back.

A released file holds what was trained, under the names of mmsegmentation and of the two code bases.
Nothing of those is needed here. Source of the names: github.com/ysj9909/SoMA, commit 7ea8c0e, and
w1oves/Rein, commit 7da85bc, with mmdetection 3.3.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from baselines.rein import Rein
from baselines.soma_release import SoMARelease
from benchmarks.artifacts import Trained
from benchmarks.backbones import KERNEL, POSITIONS, content_of, hash_of
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.segmentation.settings import Mask2FormerHead
from soma.backbone import NotApplicable, block_index, depth, linears, parameter_role
from soma.checkpoint import write_whole
from soma.export import NotExportable, factors_of, require_low_rank, with_own_layers
from soma.low_rank import LowRankLinear
from soma.method import Method, adapt

BY_THE_AUTHORS = "chosen by the authors on the targets"
UNKNOWN = "how the authors chose them is not stated"
NO_FILE = "fetch it again, or see docs/released-checkpoints.md"
_PIXELS, _OFFICIAL, _LAYERS = (
    "pixel_decoder.encoder.layers.#",
    "transformer_decoder.layers.#",
    "transformer.decoder.layers.#",
)
_RENAMED = (  # of a head: official | here, # is an index
    ("pixel_decoder.lateral_convs.0.conv", "reduce.0"),
    ("pixel_decoder.lateral_convs.0.gn", "pixel_decoder.adapter_1.1"),
    ("pixel_decoder.input_convs.0.conv", "reduce.3"),
    ("pixel_decoder.input_convs.1.conv", "reduce.2"),
    ("pixel_decoder.input_convs.2.conv", "reduce.1"),
    ("pixel_decoder.input_convs.#.gn", "pixel_decoder.input_projections.#.1"),
    ("pixel_decoder.output_convs.0.conv", "pixel_decoder.layer_1.0"),
    ("pixel_decoder.output_convs.0.gn", "pixel_decoder.layer_1.1"),
    ("pixel_decoder.mask_feature", "pixel_decoder.mask_projection"),
    ("pixel_decoder.level_encoding.weight", "pixel_decoder.level_embed"),
    (f"{_PIXELS}.self_attn", f"{_PIXELS}.self_attn"),
    (f"{_PIXELS}.norms.0", f"{_PIXELS}.self_attn_layer_norm"),
    (f"{_PIXELS}.norms.1", f"{_PIXELS}.final_layer_norm"),
    (f"{_PIXELS}.ffn.layers.0.0", f"{_PIXELS}.fc1"),
    (f"{_PIXELS}.ffn.layers.1", f"{_PIXELS}.fc2"),
    (f"{_OFFICIAL}.self_attn.attn", f"{_LAYERS}.self_attn"),
    (f"{_OFFICIAL}.cross_attn.attn", f"{_LAYERS}.cross_attn"),
    (f"{_OFFICIAL}.norms.0", f"{_LAYERS}.cross_attn_layer_norm"),
    (f"{_OFFICIAL}.norms.1", f"{_LAYERS}.self_attn_layer_norm"),
    (f"{_OFFICIAL}.norms.2", f"{_LAYERS}.final_layer_norm"),
    (f"{_OFFICIAL}.ffn.layers.0.0", f"{_LAYERS}.fc1"),
    (f"{_OFFICIAL}.ffn.layers.1", f"{_LAYERS}.fc2"),
    ("transformer_decoder.post_norm", "transformer.decoder.layernorm"),
    ("mask_embed.0", "transformer.decoder.mask_predictor.mask_embedder.0.0"),
    ("mask_embed.2", "transformer.decoder.mask_predictor.mask_embedder.1.0"),
    ("mask_embed.4", "transformer.decoder.mask_predictor.mask_embedder.2.0"),
    ("cls_embed", "class_predictor"),
    ("query_embed", "transformer.queries_embedder"),
    ("query_feat", "transformer.queries_features"),
    ("level_embed", "transformer.level_embed"),
)
# Query, key and value of self-attention are rows of one matrix there, three linears here.
_FUSED = re.compile(r"transformer\.decoder\.layers\.\d+\.self_attn\.in_proj_(weight|bias)")
_PART = re.compile(r"(transformer\.decoder\.layers\.\d+\.self_attn\.)([qkv])_proj\.(weight|bias)")
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_REIN = {
    "reins.learnable_tokens_a": "rein.tokens_a",
    "reins.learnable_tokens_b": "rein.tokens_b",
    "reins.scale": "rein.scale",
    "reins.mlp_token2feat.weight": "rein.token_linear.weight",
    "reins.mlp_token2feat.bias": "rein.token_linear.bias",
    "reins.mlp_delta_f.weight": "rein.feature_linear.weight",
    "reins.mlp_delta_f.bias": "rein.feature_linear.bias",
}
_LINK = ("transform.weight", "transform.bias", "merge.weight", "merge.bias")
_DETECTOR = ("query_head.", "bbox_head.", "rpn_head.", "roi_head.", "neck.")


@dataclass(frozen=True)
class Released:
    """What a released file holds, under the names of the suite.

    Attributes:
        file: where it lies.
        sha256: of the file.
        state_dict: key under which the weights were; "" for none.
        method: with rank and first block as in the file.
        learnt: name in the adapted backbone -> what was trained.
        frozen: name in the backbone -> what has to be the base's.
        head: name in the head -> tensor.
        selection: how these weights were chosen.
        size: side in pixels of the crops that they were trained on; None where nothing says.
    """

    file: Path
    sha256: str
    state_dict: str
    method: Rein | SoMARelease
    learnt: dict[str, Tensor]
    frozen: dict[str, Tensor]
    head: dict[str, Tensor]
    selection: str
    size: int | None


def read(file: Path) -> Released:
    """A released file of SoMA or Rein, every tensor of it understood; nothing is unpickled.

    Raises:
        UserError: it is none, is damaged, or holds a tensor that has no place.
    """
    tensors, key, about = _tensors(file)
    head, backbone = {}, {}
    for name, value in tensors.items():
        if name.startswith("decode_head."):
            head[name.removeprefix("decode_head.")] = value
        elif name.startswith("backbone."):
            backbone[name] = value
        elif name.startswith(_DETECTOR):
            raise UserError(
                f"{file}: {name} is of a Co-DETR detector, which no protocol here has; take "
                "weights of segmentation (docs/released-checkpoints.md)"
            )
        else:
            raise UserError(f"{file}: {name:.100} is of no backbone and no head; {NO_FILE}")
    short = {name.removeprefix("backbone.").removeprefix("model."): name for name in backbone}
    parts = {name: backbone[whole] for name, whole in short.items()}
    if any(name.startswith("reins.") for name in parts):
        method, learnt, frozen = _rein(file, parts, head)
        selection = UNKNOWN
    elif any(_FACTOR.fullmatch(name) for name in parts):
        method, learnt, frozen = _soma(file, parts)
        selection = BY_THE_AUTHORS
    else:
        raise UserError(
            f"{file}: holds neither SoMA's factors (lora_A, lora_B) nor Rein's tokens (reins); "
            "write the path of a backbone's plain weights into a protocol, as backbone.weights"
        )
    try:
        renamed = head_from_official(head)
    except KeyError as error:
        raise UserError(
            f"{file}: decode_head.{error.args[0]:.100} has no place in a Mask2Former; {NO_FILE}"
        ) from None
    size = about.get("crop") if isinstance(about.get("crop"), int) else _size_of(file)
    chosen = about.get("selection")
    return Released(
        file=file,
        sha256=hash_of(file),
        state_dict=key,
        method=method,
        learnt=learnt,
        frozen=frozen,
        head=renamed,
        selection=chosen if isinstance(chosen, str) else selection,
        size=size,
    )


def _tensors(file: Path) -> tuple[dict[str, Tensor], str, Mapping[str, Any]]:
    """Tensors by name, the key under which they lay, and what the suite's own export says."""
    content = content_of(
        file, "write a file with the tensors alone, as SoMA's tools/extract_soma_weights.py does"
    )
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file}: holds no tensors by name; {NO_FILE}")
    inner, key, about = content, "", {}
    if "ema_state_dict" in content and "state_dict" not in content:
        raise UserError(
            f"{file}: holds ema_state_dict alone, which is the weights without averaging; the "
            "released ones lie under state_dict"
        )
    if isinstance(content.get("state_dict"), Mapping):
        if unknown := content.keys() - {"state_dict", "ema_state_dict", "meta"}:
            raise UserError(
                f"{file}: holds {min(map(str, unknown)):.60} beside state_dict; {NO_FILE}"
            )
        inner, key = content["state_dict"], "state_dict"
        meta = content.get("meta")
        about = meta.get("exported", {}) if isinstance(meta, Mapping) else {}
    for name, value in inner.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise UserError(
                f"{file}: {name!s:.60} is no tensor, which is all that it may hold; {NO_FILE}"
            )
        if value.dtype not in (torch.float32, torch.float64):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{file}: {name} is {kind}, released weights are float32; {NO_FILE}")
        if not value.isfinite().all():
            raise UserError(f"{file}: {name} is not finite (NaN or infinite); fetch it again")
    return dict(inner), key, about if isinstance(about, Mapping) else {}


def _size_of(file: Path) -> int | None:
    """Side of the crops by the name of a file: SoMA's without one are of 512 pixels."""
    if match := re.search(r"(\d{3,4})x\1", file.name):
        return int(match[1])
    return 512 if file.name.startswith("soma_dinov2-L_") else None


Parts = dict[str, Tensor]


def _soma(file: Path, parts: Mapping[str, Tensor]) -> tuple[SoMARelease, Parts, Parts]:
    """The public code adds B A to the pretrained weight: its configurations have alpha = rank."""
    ranks, start = {}, None
    for name, value in parts.items():
        if match := _FACTOR.fullmatch(name):
            ranks[name] = value.shape[0 if match[2] == "A" else -1] if value.ndim == 2 else None
            block = block_index(name)
            if block is None:
                raise UserError(f"{file}: {name} is a factor outside the blocks; {NO_FILE}")
            start = block if start is None else min(start, block)
    # The most frequent, so that the message names the factor that is odd and not the first.
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    for name, rank in ranks.items():
        if rank != common or not rank:
            raise UserError(
                f"{file}: {name} has rank {rank}, the other factors {common}; {NO_FILE}"
            )
    learnt, frozen = {}, {}
    for name, value in parts.items():
        own = _here(name)
        adapted = parameter_role(own) is not None and block_index(own) >= start
        if _FACTOR.fullmatch(name) or (adapted and own.endswith(".bias")):
            learnt[own] = value
        # No image passes it, and timm has none.
        elif name != "mask_token":
            frozen[own] = value
    # The scale alpha / rank is 1 in all official configurations, and no file says it.
    return SoMARelease(rank=common, alpha=common, start_block=start), learnt, frozen


def _rein(
    file: Path, parts: Mapping[str, Tensor], head: dict[str, Tensor]
) -> tuple[Rein, Parts, Parts]:
    """Rein's tokens; the queries that it makes of them become constants of `head`."""
    learnt = {}
    frozen = {_here(name): value for name, value in parts.items() if not name.startswith("reins.")}
    link = {}
    for name, value in parts.items():
        if name in _REIN:
            learnt[_REIN[name]] = value
        elif name.removeprefix("reins.") in _LINK:
            link[name.removeprefix("reins.")] = value
        elif name.startswith("reins."):
            raise UserError(f"{file}: {name} is no part of Rein with low-rank tokens; {NO_FILE}")
    needed = {*_REIN.values()} if not link else {*_REIN.values(), *_LINK}
    if missing := needed - learnt.keys() - link.keys():
        raise UserError(f"{file}: Rein's {min(missing)} is missing; {NO_FILE}")
    a, b = learnt["rein.tokens_a"], learnt["rein.tokens_b"]
    if a.ndim != 3 or b.ndim != 3 or a.shape[::2] != b.shape[:2]:
        raise UserError(
            f"{file}: tokens of shapes {tuple(a.shape)} and {tuple(b.shape)} do not multiply; "
            f"{NO_FILE}"
        )
    if link:
        try:
            _linked_queries(a @ b, link, head)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{file}: the link from Rein's tokens to the queries does not fit "
                f"({' '.join(str(error).split())[:150]}); {NO_FILE}"
            ) from None
    return Rein(tokens=a.shape[1], rank=a.shape[2]), learnt, frozen


def _linked_queries(tokens: Tensor, link: Mapping[str, Tensor], head: dict[str, Tensor]) -> None:
    """Put the queries that Rein makes of its tokens (blocks, count, width) into `head`.

    They depend on no image. Of every dimension of the projected tokens stand side by side: largest
    over the blocks, mean over them, and the last block's.
    """
    projected = functional.linear(tokens, link["transform.weight"], link["transform.bias"])
    three = torch.stack([projected.amax(0), projected.mean(0), projected[-1]], dim=-1)
    queries = functional.linear(three.flatten(-2), link["merge.weight"], link["merge.bias"])
    weight, bias = (head.pop(f"querys2feat.{leaf}") for leaf in ("weight", "bias"))
    if given := {"query_embed.weight", "query_feat.weight"} & head.keys():
        raise KeyError(f"{min(given)} is given as well")
    head["query_embed.weight"] = queries
    head["query_feat.weight"] = functional.linear(queries, weight, bias)


def _here(name: str) -> str:
    """The suite's name of a tensor of a backbone."""
    if name in _REIN:
        return _REIN[name]
    if match := _FACTOR.fullmatch(name):
        name = f"{match[1]}.lora_{match[2].lower()}"
    return re.sub(r"^(blocks\.\d+\.attn)\.([qkv])\.", r"\1.qkv.\2.", name)


def official(name: str) -> str:
    """The official name of a tensor of a model of the suite, adapted by SoMA's code or Rein.

    Raises:
        KeyError: it has none.
    """
    part, _, name = name.partition(".")
    if part == "head":
        if match := _PART.fullmatch(name):
            name = f"{match[1]}in_proj_{match[3]}"
        return f"decode_head.{_renamed(name, back=True)}"
    for theirs, ours in _REIN.items():
        if name == ours:
            return f"backbone.{theirs}"
    name = re.sub(r"\.lora_([ab])$", lambda match: f".lora_{match[1].upper()}.weight", name)
    return f"backbone.model.{name.replace('.attn.qkv.', '.attn.')}"


def _renamed(name: str, back: bool = False) -> str:
    """The suite's name of a tensor of an official head, or with `back` the opposite.

    Raises:
        KeyError: there is none.
    """
    for theirs, ours in _RENAMED:
        old, new = (ours, theirs) if back else (theirs, ours)
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        if match := re.match(rf"{pattern}(?=\.|$)", name):
            end = name[match.end() :]
            return (new.replace("#", match[1]) if "#" in old else new) + end
    raise KeyError(name)


def head_from_official(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A head of mmdetection's Mask2Former under the suite's names.

    Raises:
        KeyError: one of its names is none of such a head.
    """
    made = {}
    for theirs, value in head.items():
        name = _renamed(theirs)
        if match := _FUSED.fullmatch(name):
            above, parts = name.rpartition(".")[0], value.chunk(3) if value.ndim else ()
            for role, part in zip("qkv", parts, strict=False):
                made[f"{above}.{role}_proj.{match[1]}"] = part
        else:
            made[name] = value
    return made


def apply(released: Released, model: nn.Module, where: str) -> Method:
    """Give a model, with its pretrained backbone in, the weights of a released file.

    Args:
        released: as `read` gives it.
        model: of a protocol with a Mask2Former head; changed in place.
        where: name of the protocol, for messages.

    Returns:
        The method with `start_block` as an index, as `adapt` does.

    Raises:
        UserError: the file was trained on another base, or a tensor is missing, left over or of
            another shape.
    """
    vit, file = model.backbone, released.file
    if released.method.start_block >= depth(vit):
        raise UserError(
            f"{file}: adapts block {released.method.start_block}, the backbone of {where} has "
            f"{depth(vit)}; choose the protocol with the backbone of the file"
        )
    _require_base(released, vit, where)
    try:
        method = adapt(released.method, vit, empty=True)
    except (NotApplicable, ValueError) as error:
        raise UserError(f"{file}: not for the backbone of {where}: {error}") from None
    expected = {
        f"backbone.{name}": parameter
        for name, parameter in vit.named_parameters()
        if parameter.requires_grad
    } | {f"head.{name}": value for name, value in model.head.state_dict().items()}
    given = {f"backbone.{name}": value for name, value in released.learnt.items()}
    given |= {f"head.{name}": value for name, value in released.head.items()}
    _require_fits(expected, given, released, where)
    # Not strict: the pretrained rest is in place, and names were compared above.
    model.load_state_dict(given, strict=False)
    return method


def _require_base(released: Released, vit: nn.Module, where: str) -> None:
    """What did not learn tells which backbone a file was trained on.

    Raises:
        UserError: another one than `vit`.
    """
    base, file = vit.state_dict(), released.file
    if isinstance(released.method, SoMARelease):
        biases = {name for name in base if name.endswith(".bias")} - released.learnt.keys()
        if missing := biases - released.frozen.keys():
            name = official(f"backbone.{min(missing)}")
            raise UserError(f"{file}: {name} is missing, which tells the base; {NO_FILE}")
    differing = []
    for name, value in released.frozen.items():
        theirs = official(f"backbone.{name}")
        if name not in base:
            raise UserError(f"{file}: {theirs} has no place in the backbone of {where}; {NO_FILE}")
        if value.shape != base[name].shape:
            raise UserError(
                f"{file}: {theirs} is {tuple(value.shape)}, the base of {where} has "
                f"{tuple(base[name].shape)}; choose the protocol with the base of the file"
            )
        value = value.to(base[name])
        # Resized by another implementation of the same formula, which rounds otherwise.
        resized = name in (POSITIONS, KERNEL)
        same = torch.allclose(value, base[name], atol=1e-6) if resized else None
        if not (torch.equal(value, base[name]) if same is None else same):
            differing.append(theirs)
    if differing:
        raise UserError(
            f"{file}: trained on another base than that of {where}: {len(differing)} of "
            f"{len(released.frozen)} frozen tensors differ, {differing[0]} for one; choose the "
            "protocol with the base of the file"
        )


def _require_fits(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], released: Released, where: str
) -> None:
    """Raises UserError: a tensor is missing, left over or of another shape than the model's."""
    file = released.file
    if missing := sorted(official(name) for name in expected.keys() - given.keys()):
        raise UserError(f"{file}: {missing[0]} is missing ({len(missing)} in all); {NO_FILE}")
    if extra := sorted(official(name) for name in given.keys() - expected.keys()):
        raise UserError(f"{file}: {extra[0]} has no place in the model of {where}; {NO_FILE}")
    for name, value in given.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, in the model of {where} {tuple(expected[name].shape)}"
            classes = (
                f": {len(value) - 1} classes and void where there are {len(expected[name]) - 1}"
                if name.startswith("head.class_predictor") and value.ndim
                else ""
            )
            raise UserError(f"{file}: {official(name)} has shape {shapes}{classes}; {NO_FILE}")


def require_scorable(released: Released, protocol: Protocol, any_size: bool) -> None:
    """Refuse a protocol that the file was not made for.

    Raises:
        UserError: another task, head or, unless `any_size`, another size of crops.
    """
    if not isinstance(getattr(protocol, "head", None), Mask2FormerHead):
        raise UserError(
            f"{protocol.name}: {released.file} holds a Mask2Former head for segmentation, which "
            "this protocol has not; soma_gtav has it, for one"
        )
    crop = protocol.augment.crop
    if released.size not in (None, crop) and not any_size:
        raise UserError(
            f"{released.file}: trained on crops of {released.size} pixels, {protocol.name} is for "
            f"{crop}; choose a protocol of that size (soma_gsu_1024 for one), or score it at the "
            "other size with --any-size"
        )


def export_mmseg(trained: Trained, weights: Path, destination: Path) -> str:
    """Write a trained model as `read` and the official code take it.

    Args:
        trained: of the record.
        weights: the file beside the record, which holds the head.
        destination: a file.

    Returns:
        What the official configuration has to say for it.

    Raises:
        NotExportable: the official code has no place for what was trained.
    """
    held, prefix = load_file(weights), "head."
    head = {n.removeprefix(prefix): v for n, v in held.items() if n.startswith(prefix)}
    made = to_official(trained.method, trained.vit, trained.plain, head)
    about = {
        "record": trained.record.digest,
        "crop": trained.record.cell["protocol"]["augment"]["crop"],
        "selection": f"trained by the suite, record {trained.record.digest[:12]}, last iteration",
    }
    content = {"state_dict": made.tensors, "meta": {"exported": about}}
    write_whole(destination, lambda file: torch.save(content, file))
    if isinstance(trained.method, Rein):
        return (
            "configuration: link_token_to_query=False in the backbone's reins, and the head of "
            "SoMA's configuration (Mask2FormerHead), since the queries were learnt"
        )
    return (
        f"configuration: rank = {made.rank}, start_lora_idx = {made.start}; merge the file with "
        "the base by tools/merge_soma_weights.py first"
    )


@dataclass(frozen=True)
class OfficialWeights:
    """A trained model under the official names.

    Attributes:
        tensors: what the released files hold, by their names.
        rank: of the factors; the official configuration needs it, with an alpha of the same.
        start: first adapted block.
    """

    tensors: dict[str, Tensor]
    rank: int
    start: int


@torch.no_grad()
def to_official(
    method: Method, vit: nn.Module, plain: Mapping[str, Tensor], head: Mapping[str, Tensor]
) -> OfficialWeights:
    """What `read` and the official code take: the way back.

    Factors that were subtracted become [B, -B0] and [A; A0], of twice the rank, since the official
    code adds B A to the pretrained weight. Rein's queries stay what was learnt: its official model
    is the one without the link from tokens to queries.

    Args:
        method: that adapted `vit`.
        vit: the adapted, unfolded backbone.
        plain: its state dict from before it was adapted.
        head: of the model, under the suite's names.

    Raises:
        NotExportable: the official code has no place for what was trained, or for the head.
    """
    if type(vit).__name__ != "VisionTransformer":
        raise NotExportable(f"SoMA's code has no {type(vit).__name__}")
    if isinstance(method, Rein):
        if method.start_block:
            raise NotExportable("Rein's code has tokens in every block; train with placement all")
        made = {official(f"backbone.{name}"): vit.get_parameter(name) for name in _REIN.values()}
        rank, start = method.rank, 0
    else:
        made, rank, start = _official_factors(vit, plain)
    try:
        for name, value in head.items():
            match = _PART.fullmatch(name)
            if match is None:
                made[official(f"head.{name}")] = value
            elif match[2] == "q":
                three = [head[f"{match[1]}{role}_proj.{match[3]}"] for role in "qkv"]
                made[official(f"head.{name}")] = torch.cat(three)
    except KeyError:
        raise NotExportable("its head is no Mask2Former") from None
    tensors = {name: value.detach().contiguous() for name, value in made.items()}
    return OfficialWeights(tensors, rank, start)


def _official_factors(
    vit: nn.Module, plain: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int, int]:
    vit = with_own_layers(vit)
    layers = {n: m for n, m in vit.named_modules() if isinstance(m, LowRankLinear)}
    require_low_rank(vit, plain, layers)
    made, ranks = {}, set()
    start = min(block_index(name) for name in layers)
    for name, block, _, _ in linears(vit):
        if block < start:
            continue
        if name not in layers:
            raise NotExportable(f"SoMA's code adapts all six linears of a block, {name} is not")
        if layers[name].lora_magnitude is not None:
            raise NotExportable("lengths of rows were trained")
        a, b, scale = factors_of({name: layers[name]})
        made[official(f"backbone.{name}.lora_a")] = a
        # The official code has alpha = rank, so that the scale goes into a factor.
        made[official(f"backbone.{name}.lora_b")] = b * scale
        ranks.add(len(a))
    if len(ranks) > 1:
        raise NotExportable(f"SoMA's code has one rank, not {sorted(ranks)}")
    biases = {n: v for n, v in vit.state_dict().items() if n.endswith(".bias")}
    made |= {official(f"backbone.{name}"): value for name, value in biases.items()}
    return made, ranks.pop(), start
