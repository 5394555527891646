"""Pretrained vision transformers: built by timm, weights from a file whose hash is checked."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.errors import UserError
from benchmarks.protocol import HUB, RANDOM, Backbone
from soma.backbone import split_qkv

FOLDER = Path(__file__).resolve().parent
BACKBONE = "backbone"  # among the fingerprints of a record: its weights, stated nowhere else
# What torch, timm and safetensors raise for a file of something else.
_NO_FIT = (
    *(SafetensorError, RuntimeError, EOFError, OSError),
    *(AttributeError, KeyError, TypeError, ValueError),
)


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
    try:
        return timm.create_model(
            spec.name,
            pretrained=False,
            **{"num_classes": 0, "dynamic_img_size": True, **spec.args},
        )
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"backbone {spec.name} with {dict(spec.args)}: timm cannot build it ({error}); correct "
            "backbone.name or backbone.args of the protocol"
        ) from error


def _file(spec: Backbone) -> Path:
    return from_hub(spec.name) if spec.weights == HUB else FOLDER / spec.weights


def checked(file: Path, expected: str | None) -> str:
    """SHA-256 (hex) of a weights file, which has to be the expected one where that is stated.

    Raises:
        UserError: it is another one, or the file cannot be read.
    """
    found = hash_of(file)
    if expected not in (None, found):
        raise UserError(
            f"{file}: its SHA-256 is {found[:16]}..., the protocol wants {expected[:16]}...; "
            "restore the file, or write the new hash into the protocol and raise its version"
        )
    return found


def _load(vit: nn.Module, file: Path, spec: Backbone) -> None:
    """Every tensor has to come from the file: none stays random because a name differs."""
    try:
        state = load_state_dict(str(file), use_ema=False)  # never unpickles objects
        if spec.resize is not None:
            state = fitted(state, vit, spec.resize)
        vit.load_state_dict(state, strict=True)
    except _NO_FIT as error:
        raise UserError(
            f"{file}: does not hold the weights of {spec.name} with these arguments ({error}); "
            "correct backbone.args or backbone.resize of the protocol"
        ) from error


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
    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


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
        state: under the names of the model's release (DINOv2, DINOv3, CLIP, EVA02) or of timm.
        vit: the backbone, of timm's.
        resize: "converter" resizes patch kernel and position embedding by plain bicubic
            interpolation (see `converted`); "timm" as timm does, with antialiasing, the kernel by
            the pseudo-inverse of the resizing of a patch (FlexiViT, arXiv 2212.08013).

    Raises:
        ValueError: "converter" finds no patch kernel under the name it has with DINOv2.
    """
    if resize == "converter":
        state = converted(state, vit)
    # timm's own translation, which resizes what still has another size.
    state = sys.modules[type(vit).__module__].checkpoint_filter_fn(dict(state), vit)
    classifier = f"{vit.pretrained_cfg['classifier']}."
    return {key: value for key, value in state.items() if not key.startswith(classifier)}


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
