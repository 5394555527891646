"""Pretrained vision transformers: built by timm, weights from a file whose hash is checked."""

from __future__ import annotations

from pathlib import Path

import timm
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from benchmarks import weights
from benchmarks.errors import UserError
from benchmarks.protocol_parts import HUB, RANDOM, Backbone
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
    return {BACKBONE: weights.hash_of(_file(spec))}


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
    return weights.from_hub(spec.name) if spec.weights == HUB else FOLDER / spec.weights


def checked(file: Path, expected: str | None) -> str:
    """SHA-256 (hex) of a weights file, which has to be the expected one where that is stated.

    Raises:
        UserError: it is another one, or the file cannot be read.
    """
    found = weights.hash_of(file)
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
            state = weights.fitted(state, vit, spec.resize)
        vit.load_state_dict(state, strict=True)
    except _NO_FIT as error:
        raise UserError(
            f"{file}: does not hold the weights of {spec.name} with these arguments ({error}); "
            "correct backbone.args or backbone.resize of the protocol"
        ) from error
