"""Adapters on disk: only what differs from the pretrained weights. Needs the package safetensors.

What differs is what learned, and the buffers: the starting values of subtracted factors are kept as
such, so that loading rebuilds the residual weight from them and the pretrained one. A second SVD
would not do: its signs, and its basis where singular values repeat, depend on library and device.
"""

import json
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from soma.backbone import fingerprint, head_names
from soma.low_rank import LowRankLinear
from soma.method import Adaptation, Method, NotApplicable, adapt_as_noted, adaptation_of


class AdapterError(ValueError):
    """An adapter file that cannot be read, or is not of this method on this backbone."""


def adapter_state(vit: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of what differs from the pretrained weights, sharing their memory.

    A tensor that several layers share (VeRA's random matrices) is there once, under the first name.
    """
    every = vit.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in every if not parameter.requires_grad}
    left_out = frozen | head_names(vit)
    state, seen = {}, set[Hashable]()
    for name, value in vit.state_dict().items():
        place = value.data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype
        if name not in left_out and place not in seen:
            state[name] = value
            # The meta device has no memory that could be shared: its pointers are all zero.
            if value.data_ptr():
                seen.add(place)
    return state


def save_adapter(
    vit: nn.Module,
    path: str | Path,
    method: Method | None = None,
    *,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter of an adapted, unfolded backbone; whole or not at all.

    The file names the method with its fields, and holds fingerprints of the pretrained weights and
    of all tensors in it, which are compared on loading.

    Args:
        vit: the backbone after `adapt`.
        path: a safetensors file.
        method: what it was adapted with, to be sure of it.
        extra: further tensors of any shape for the same file, a head's for instance, under other
            names than the adapter's.

    Raises:
        AdapterError: the backbone is not adapted.
        ValueError: it is adapted with another method, or a name in `extra` is one of the adapter's.
    """
    adaptation: Adaptation | None = getattr(vit, "adaptation", None)
    if adaptation is None:
        raise AdapterError(f"{path}: the backbone is not adapted, so there is no adapter to save")
    if method is not None:
        _require_same_method(adaptation.method, method.described(vit))
    tensors = adapter_state(vit)
    if both := tensors.keys() & (extra or {}).keys():
        raise ValueError(f"extra: {min(both)} is a tensor of the adapter")
    everything = tensors | dict(extra or {})
    about = {
        "method": adaptation.method,
        "weights": adaptation.weights,
        "content": fingerprint(everything),
        "tensors": sorted(tensors),
    }
    write_tensors(Path(path), everything, {"adapter": json.dumps(about)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; equal content gives equal bytes.

    Tensors may have any shape, and share memory. `metadata` has one entry at most: safetensors
    writes several in another order each time.
    """
    apart, storages = {}, set[int]()
    for name, value in tensors.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        # Safetensors refuses views.
        apart[name] = value.clone() if place in storages else value
        storages.add(place)
    write_whole(path, lambda temporary: save_file(apart, temporary, metadata=metadata))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make the file `path` by `write`, which gets the path of a temporary one beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file: a rename is atomic within a file system, not across two.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp lets nobody else read it, and others are to read what is kept.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_adapter(method: Method, vit: nn.Module, path: str | Path) -> Method:
    """Adapt a backbone that holds its pretrained weights with the values of a saved adapter.

    Returns:
        The method with `start_block` as an index, as `adapt` does.

    Raises:
        AdapterError: another method, other fields, another backbone, or a file that is missing,
            damaged or no adapter; the backbone is unchanged then.
    """
    saved, tensors = _read(path)
    try:
        note = adaptation_of(method, vit)
        # Before the weights: of two differences this one tells the user more.
        _require_same_method(saved.method, note.method)
        if saved.weights != note.weights:
            raise ValueError(
                f"made on pretrained weights {saved.weights[:12]}..., this backbone holds "
                f"{note.weights[:12]}...; load those weights, and split q, k and v, before the "
                "adapter"
            )
        with _unchanged_on_error(vit):
            placed = adapt_as_noted(method, vit, note, empty=True)
            _fill(vit, tensors)
    except (NotApplicable, ValueError) as error:
        raise AdapterError(f"{path}: {error}") from None
    return placed


def _read(path: str | Path) -> tuple[Adaptation, dict[str, Tensor]]:
    """What a file says of its adapter, and the adapter's tensors."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["adapter"])
            everything = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        saved, content = Adaptation(about["method"], about["weights"]), about["content"]
        names = list(about["tensors"])
    except (KeyError, TypeError, json.JSONDecodeError):
        raise AdapterError(f"{path}: not written by save_adapter") from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise AdapterError(f"{path}: damaged, or no safetensors file ({error})") from None
    if content != fingerprint(everything) or not everything.keys() >= set(names):
        raise AdapterError(f"{path}: damaged, its tensors are not those that were saved")
    tensors = {name: everything[name] for name in names}
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise AdapterError(f"{path}: {broken[0]} is not finite (NaN or infinite)")
    return saved, tensors


def _fill(vit: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the values of `adapter_state` into a backbone that was adapted without any."""
    state, expected = vit.state_dict(), adapter_state(vit)
    # What the user let learn besides is loaded too.
    if differing := sorted((expected.keys() - tensors) | (tensors.keys() - state.keys())):
        raise ValueError(f"the adapter does not fit the method: they differ in {differing[0]}")
    for name, value in tensors.items():
        if value.shape != state[name].shape:
            shapes = f"{tuple(value.shape)}, the method's {tuple(state[name].shape)}"
            raise ValueError(f"the adapter's {name} has shape {shapes}")
    # Not strict: the pretrained rest is in place and not in the file. Names were compared above.
    vit.load_state_dict(dict(tensors), strict=False)
    for module in vit.modules():
        if isinstance(module, LowRankLinear):
            # Now, of the values just read: those that it was made with were zero.
            module.subtract_start()


@contextmanager
def _unchanged_on_error(vit: nn.Module) -> Iterator[None]:
    """Modules, hooks, tensors and what learns are as before where the block raises."""
    modules = [
        (module, {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()})
        for module in vit.modules()
    ]
    tensors = [
        (tensor, tensor.data, tensor.detach().clone(), tensor.requires_grad)
        for tensor in (*vit.parameters(), *vit.buffers())
    ]
    try:
        yield
    # An interrupt must not leave half an adapter either.
    except BaseException:
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        for tensor, memory, values, learns in tensors:
            # Both: a tensor may have been written into, or been given other memory.
            memory.copy_(values)
            tensor.data = memory
            tensor.requires_grad_(learns)
        raise


def _require_same_method(saved: str, given: str) -> None:
    if saved != given:
        then, now = json.loads(saved), json.loads(given)
        kinds = f"{then['class']} with {_difference(then, now)}"
        raise ValueError(f"saved with {kinds}, not {now['class']} with {_difference(now, then)}")


def _difference(fields: dict[str, Any], other: dict[str, Any]) -> str:
    """The fields that another method has not, or has with other values."""
    differing = [f"{k} {v}" for k, v in fields.items() if k != "class" and other.get(k) != v]
    return ", ".join(differing) or "the same fields"
