"""Pretrained vision transformers: built by timm, weights from a file whose hash is checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from benchmarks.errors import UserError
from benchmarks.protocol_parts import Backbone
from soma.backbone import split_qkv

FOLDER = Path(__file__).resolve().parent
RANDOM = "random"


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
        file = FOLDER / spec.weights
        vit.weights_sha256 = _checked(file, spec.sha256)
        _load(vit, file, spec.name)
    split_qkv(vit)
    return vit


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


def _checked(file: Path, expected: str | None) -> str:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file}: backbone weights cannot be read ({error.strerror}); restore the file, or "
            "make the mini backbone with: python -m benchmarks mini pretrain"
        ) from error
    if found != expected:
        raise UserError(
            f"{file}: its SHA-256 is {found[:16]}..., the protocol wants {str(expected)[:16]}...; "
            "restore the file, or write the new hash into the protocol and raise its version"
        )
    return found


def _load(vit: nn.Module, file: Path, name: str) -> None:
    try:
        vit.load_state_dict(load_file(file), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{file}: does not hold the weights of {name} with these arguments ({error}); correct "
            "backbone.args of the protocol"
        ) from error
