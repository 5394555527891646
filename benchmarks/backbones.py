"""Pretrained vision transformers: built by timm, weights from a file whose hash is checked."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models import clean_state_dict
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.errors import UserError
from benchmarks.protocol import HUB, RANDOM, Backbone
from soma.backbone import split_qkv

FOLDER = Path(__file__).resolve().parent
BACKBONE = "backbone"  # among the fingerprints of a record: its weights, stated nowhere else
# What torch and safetensors raise for a file that they cannot read.
_DAMAGED = (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError, UnpicklingError)
# What timm and torch raise for weights of something else.
_NO_FIT = (RuntimeError, AttributeError, KeyError, TypeError, ValueError)
# Not of the features: learnt for pre-training, computed anew, or a projection behind them.
_LEFT_OUT = ("mask_token", "periods", "bias_mask", "relative_position_index", "proj")


def load_backbone(spec: Backbone) -> nn.Module:
    """The backbone with its weights in, q, k and v as separate linears, no classifier.

    The attribute `weights_sha256` of the returned module is the hash of the weights file, or
    "random" where the protocol asks for random weights (drawn from torch's global generator).

    Raises:
        UserError: unknown model or argument; missing, damaged or other weights file; keys or
            shapes that do not fit.
    """
    vit = _build(spec)
    if spec.weights == RANDOM:
        vit.weights_sha256 = RANDOM
    else:
        file = _file(spec)
        vit.weights_sha256 = checked(file, spec.sha256)
        _load(vit, file, spec)
    split_qkv(vit)
    return vit


def fingerprint(spec: Backbone) -> dict[str, str]:
    """{BACKBONE: hash of the weights} where the protocol states none, so that a record does.

    Raises:
        UserError: the weights cannot be fetched.
    """
    if spec.weights == RANDOM or spec.sha256 is not None:
        return {}
    return {BACKBONE: hash_of(_file(spec))}


def _build(spec: Backbone) -> nn.Module:
    args = {"num_classes": 0, "dynamic_img_size": True, **spec.args}
    try:
        try:
            return timm.create_model(spec.name, pretrained=False, **args)
        except TypeError as error:
            # BEiT, SAM and others take images of one size and have no such argument.
            if "dynamic_img_size" in spec.args or "'dynamic_img_size'" not in str(error):
                raise
            del args["dynamic_img_size"]
            return timm.create_model(spec.name, pretrained=False, **args)
    except (RuntimeError, TypeError) as error:
        odd = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        why = f"it takes no argument {odd[1]!r}" if odd else error
        raise UserError(
            f"backbone {spec.name} with {dict(spec.args)}: timm cannot build it ({why}); correct "
            "backbone.name or backbone.args of the protocol"
        ) from error


def _file(spec: Backbone) -> Path:
    return from_hub(spec.name) if spec.weights == HUB else FOLDER / spec.weights


def checked(file: Path, expected: str | None) -> str:
    """SHA-256 (hex) of a weights file, which has to be the expected one where that is stated.

    Raises:
        UserError: it is another one, or the file cannot be read.
    """
    actual = hash_of(file)
    if expected not in (None, actual):
        raise UserError(
            f"{file}: its SHA-256 is {actual[:16]}..., the protocol wants {expected[:16]}...; "
            "restore the file, or write the new hash into the protocol and raise its version"
        )
    return actual


def _load(vit: nn.Module, file: Path, spec: Backbone) -> None:
    """Every tensor has to come from the file: none stays random because a name differs."""
    content = _read(file)
    try:
        if spec.resize is not None:
            content = fitted(content, vit, spec.resize)
        vit.load_state_dict(content, strict=True)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except _NO_FIT as error:
        instead = _instead(content) or "correct backbone.args or backbone.resize of the protocol"
        raise UserError(
            f"{file}: does not hold the weights of {spec.name} with these arguments "
            f"({' '.join(str(error).split())[:300]}); {instead}"
        ) from error
    for name, value in vit.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"{file}: {name} is not finite (NaN or infinite); fetch the file again")


def _read(file: Path) -> dict[str, object]:
    """What a file of weights holds, by name; timm's usual wrappings are taken off.

    Raises:
        UserError: it holds no weights, or objects that only unpickling would read.
    """
    with_hash = "write a file with the tensors alone (torch.save or safetensors), and its SHA-256"
    content = content_of(file, f"{with_hash} into the protocol")
    if isinstance(content, Mapping):
        inner = content.get("state_dict", content.get("model", content))
        if isinstance(inner, Mapping) and inner:
            return dict(clean_state_dict(inner))
    raise UserError(
        f"{file}: holds no tensors by name, so no weights; fetch the weights (a state dict) and "
        "write their path as backbone.weights"
    )


def content_of(file: Path, instead: str) -> object:
    """What a .safetensors file, or one of torch.save, holds; nothing is unpickled.

    Args:
        file: to be read onto the CPU.
        instead: the way out where it holds objects that only unpickling would read.

    Raises:
        UserError: it does, or it is damaged, empty, missing, or no file of weights.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        words = " ".join(str(error).split())
        if "Unsupported global" in words or "Unsupported class" in words:
            objects = words.partition("GLOBAL ")[2].partition(" was not")[0] or "objects"
            raise UserError(
                f"{file}: holds {objects} beside the tensors, which is never unpickled; {instead}"
            ) from None
        if isinstance(error, OSError) and error.strerror:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); give the path of a file of weights"
            ) from None
        start = file.read_bytes()[:64].lstrip().lower()
        kind = "damaged, or no file of weights"
        kind = (
            "a web page, no file of weights" if start.startswith((b"<!doctype", b"<html")) else kind
        )
        kind = kind if start else "empty"
        raise UserError(f"{file}: {kind}; fetch it again") from None


def _instead(content: Mapping[str, object]) -> str:
    """Where in a file the weights are, if they are not where they should be."""
    nests = [key for key, value in content.items() if isinstance(value, Mapping) and value]
    inside = content[nests[0]] if nests else content
    starts = [key.removesuffix(KERNEL) for key in inside if str(key).endswith(f".{KERNEL}")]
    words = [f"its weights lie under the key {nests[0]!r}"] if nests else []
    words += [f"its names start with {starts[0]!r}"] if starts else []
    if not words:
        return ""
    return f"{' and '.join(words)}: write a file without that, and its SHA-256 into the protocol"


KERNEL, POSITIONS = "patch_embed.proj.weight", "pos_embed"


def on_hub(name: str) -> tuple[str, str, str | None]:
    """Repository, file and revision of the weights of a timm model.

    Raises:
        UserError: timm knows no weights of that name on the hub.
    """
    try:
        entry = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag after the dot
        entry = None
    if entry is None or not entry.hf_hub_id:
        raise UserError(
            f"backbone {name}: timm knows no weights of it on the hub; correct backbone.name "
            "(timm.list_pretrained() has those), or write a file as backbone.weights"
        )
    repository, _, revision = entry.hf_hub_id.partition("@")
    return repository, entry.hf_hub_filename or "model.safetensors", revision or None


def from_hub(name: str) -> Path:
    """The weights of a timm model, downloaded once into the cache of the hub's client.

    Raises:
        UserError: timm knows no weights of that name on the hub, or they cannot be fetched.
    """
    repository, file, revision = on_hub(name)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except OSError as error:  # what the client raises derives from it
        raise UserError(
            f"backbone {name}: {file} of {repository} cannot be fetched from the hub "
            f"({' '.join(str(error).split())[:200]}); try again with a network, or fetch it "
            "elsewhere and write its path as backbone.weights"
        ) from None


def in_cache(name: str) -> Path | None:
    """The weights of a timm model where they were downloaded before.

    Raises:
        UserError: timm knows no weights of that name on the hub.
    """
    repository, file, revision = on_hub(name)
    cached = try_to_load_from_cache(repository, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def hash_of(file: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file}: backbone weights cannot be read ({error.strerror}); restore the file, or "
            "make the mini backbone with: python -m benchmarks mini pretrain"
        ) from error


def fitted(state: Mapping[str, Tensor], vit: nn.Module, resize: str) -> dict[str, Tensor]:
    """The weights of a release under timm's names, in the patch and image size of `vit`.

    Args:
        state: under the names of the model's release (DINOv2, DINOv3, CLIP, EVA02) or of timm. The
            patch kernel has (width, 3, p, p), the position embedding (1, tokens, width).
        vit: the backbone, of timm's.
        resize: "converter" resizes patch kernel and position embedding by plain bicubic
            interpolation (see `converted`); "timm" as timm does, with antialiasing, the kernel by
            the pseudo-inverse of the resizing of a patch (FlexiViT, arXiv 2212.08013).

    Raises:
        ValueError: "converter" finds no patch kernel under the name it has with DINOv2.
        UserError: a tensor of the release is not taken, a bias for instance.
    """
    if resize == "converter":
        state = converted(state, vit)
    # timm's own translation, which resizes what still has another size.
    translate = sys.modules[type(vit).__module__].checkpoint_filter_fn
    given = {name: _traced(name, value) for name, value in state.items()}
    with redirect_stdout(io.StringIO()):  # it prints
        state = translate(dict(given), vit)
    _require_taken(given, state, vit)
    state = {name: value.detach() for name, value in state.items()}
    classifier = f"{vit.pretrained_cfg['classifier']}."
    return {key: value for key, value in state.items() if not key.startswith(classifier)}


def _traced(name: str, value: object) -> object:
    """A tensor that records what is made of it; timm resizes tables of positions with numpy."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().requires_grad_(not name.endswith("relative_position_bias_table"))


def _require_taken(
    given: Mapping[str, object], taken: Mapping[str, Tensor], vit: nn.Module
) -> None:
    """What a release has in the modules of the backbone must reach it, but for zeros.

    Raises:
        UserError: a tensor, or a part of a bias, would be dropped.
    """
    leaves = {name: value for name, value in given.items() if getattr(value, "requires_grad", 0)}
    sums = [value.float().sum() for value in taken.values() if value.requires_grad]
    gradients = torch.autograd.grad(sums, list(leaves.values()), allow_unused=True) if sums else []
    reach = dict(zip(leaves, gradients, strict=True)) if sums else {}
    used = [name for name, gradient in reach.items() if gradient is not None]
    owners = {name.rpartition(".")[0] for name in used}
    above = {owner[:end] for owner in owners for end, c in enumerate(owner) if c == "."} | owners
    for name, gradient in reach.items():
        value = leaves[name].detach()
        if (mask := given.get(f"{name}_mask")) is not None:  # DINOv3 zeroes the biases of the keys
            value = value * mask.nan_to_num()
        if gradient is not None:
            lost = value.ndim == 1 and value[gradient == 0].any()
        else:
            lost = name.rpartition(".")[0] in above and value.any()
        if lost and not name.endswith(_LEFT_OUT):
            raise UserError(
                f"{name} would be dropped: {type(vit).__name__} with these "
                "arguments has no place for it; choose the model that has (backbone.name, "
                "backbone.args; DINOv3 with biases: ..._qkvb)"
            )


def converted(state: Mapping[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """Patch kernel and position embedding resized to `vit` as Rein and SoMA convert DINOv2.

    Bicubic, corners not aligned, no antialiasing, for the kernel (out, 3, h, w) as for the grid of
    positions (1, prefix + h w, width), of which prefix tokens keep theirs. Source:
    `tools/convert_models/convert_dinov2_sora.py` of github.com/ysj9909/SoMA, commit 7ea8c0e.

    Raises:
        ValueError: no patch kernel under the name it has with DINOv2, EVA02 and timm.
    """
    if KERNEL not in state:
        raise ValueError(f"no {KERNEL}, which resize: converter needs; resize: timm knows others")
    state = dict(state)
    size = vit.patch_embed.patch_size
    state[KERNEL] = functional.interpolate(state[KERNEL].float(), size, mode="bicubic")
    if POSITIONS in state:
        count = state[POSITIONS].shape[1]
        state[POSITIONS] = resample_abs_pos_embed(
            state[POSITIONS],
            vit.patch_embed.grid_size,
            num_prefix_tokens=count - isqrt(count) ** 2,  # fewer than a row of the square grid
            antialias=False,
        )
    return state
