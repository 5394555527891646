"""Adapters on disk: only what differs from the pretrained weights. Needs the package safetensors.

What differs is what learned, and the buffers: the starting values of subtracted factors are kept as
such, so that loading rebuilds the residual weight from them and the pretrained one. A second SVD
would not do: its signs, and its basis where singular values repeat, depend on library and device.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from soma.low_rank import LowRankLinear
from soma.method import Method, adapt


def adapter_state(vit: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of what differs from the pretrained weights, sharing their memory."""
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    return {name: value for name, value in vit.state_dict().items() if name not in frozen}


def save_adapter(
    vit: nn.Module,
    path: str | Path,
    method: Method | None = None,
    *,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter of an adapted, unfolded backbone; whole or not at all.

    Args:
        vit: the backbone after `adapt`.
        path: a safetensors file.
        method: what it was adapted with. Its fields go into the file and are compared on loading.
        extra: further tensors for the same file, a head's for instance, under other names than the
            adapter's.

    Raises:
        ValueError: a name in `extra` is one of the adapter's.
    """
    path = Path(path)
    tensors = adapter_state(vit)
    if both := tensors.keys() & (extra or {}).keys():
        raise ValueError(f"extra: {min(both)} is a tensor of the adapter")
    metadata = {"adapter": json.dumps(sorted(tensors))}
    if method is not None:
        metadata["method"] = _describe(method, vit)
    if backbone := getattr(vit, "weights_sha256", None):
        metadata["weights_sha256"] = backbone
    write_tensors(path, tensors | dict(extra or {}), metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_adapter(method: Method, vit: nn.Module, path: str | Path) -> Method:
    """Adapt a backbone that holds its pretrained weights with the values of a saved adapter.

    Returns:
        The method with `start_block` as an index, as `adapt` does.

    Raises:
        ValueError: another method, other fields, another backbone, or a file that is no adapter.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if "adapter" not in metadata:
            raise ValueError(f"{path}: not written by save_adapter")
        _compare(path, "method", metadata.get("method"), _describe(method, vit))
        backbone = getattr(vit, "weights_sha256", None)
        _compare(path, "backbone", metadata.get("weights_sha256"), backbone)
        tensors = {name: file.get_tensor(name) for name in json.loads(metadata["adapter"])}
    try:
        return apply_adapter(method, vit, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def apply_adapter(method: Method, vit: nn.Module, tensors: Mapping[str, Tensor]) -> Method:
    """Adapt a backbone that holds its pretrained weights with what `adapter_state` gave.

    Returns:
        The method with `start_block` as an index, as `adapt` does.

    Raises:
        ValueError: the tensors are not those of this method on this backbone.
    """
    placed = adapt(method, vit, empty=True)
    expected = adapter_state(vit)
    if differing := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"the adapter does not fit the method: they differ in {differing[0]}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, the method's {tuple(expected[name].shape)}"
            raise ValueError(f"the adapter's {name} has shape {shapes}")
    vit.load_state_dict(dict(tensors), strict=False)
    for module in vit.modules():
        if isinstance(module, LowRankLinear):
            module.subtract_start()  # of the values just read: the empty ones were zero
    return placed


def _describe(method: Method, vit: nn.Module) -> str:
    placed = method.placed(vit)
    return json.dumps({"class": type(method).__name__, **asdict(placed)}, sort_keys=True)


def _compare(path: str | Path, what: str, saved: str | None, given: str | None) -> None:
    if saved and given and saved != given:
        raise ValueError(f"{path}: saved with {what} {saved}, not {given}")
