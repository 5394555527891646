"""What lies beside a record: arrays, weights, predictions; and models that start from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import methods
from benchmarks.backbones import BACKBONE, load_backbone
from benchmarks.cell import protocol_semantics
from benchmarks.errors import UserError
from benchmarks.methods import make_method, method_semantics
from benchmarks.protocol import RANDOM
from benchmarks.record import Evaluation, LossPoint, Parameters, Record, write_atomically
from benchmarks.tasks import load_protocol
from benchmarks.train import History
from soma.checkpoint import load_adapter, save_adapter
from soma.method import Method

LOSS_POINTS = 20


def parameters(model: nn.Module) -> Parameters:
    """Counts of the backbone's parameters and of the rest of the model, the head."""
    backbone = list(model.backbone.parameters())
    total = sum(parameter.numel() for parameter in backbone)
    return Parameters(
        backbone_trainable=sum(
            parameter.numel() for parameter in backbone if parameter.requires_grad
        ),
        backbone_total=total,
        head=sum(parameter.numel() for parameter in model.parameters()) - total,
    )


def evaluations(history: History) -> list[Evaluation]:
    """What was scored, in the order of the iterations."""
    items = sorted(history.evaluations.items())
    return [Evaluation(iteration=iteration, domains=domains) for iteration, domains in items]


def losses(history: History) -> list[LossPoint]:
    """At most `LOSS_POINTS` losses, evenly spaced, the first and the last among them."""
    if not history.losses:
        return []
    places = np.linspace(0, len(history.losses) - 1, LOSS_POINTS).round().astype(int)
    chosen = sorted(set(places.tolist()))
    return [LossPoint(iteration=place, loss=history.losses[place]) for place in chosen]


def write_results(
    path: Path, arrays: Mapping[str, np.ndarray], files: Mapping[str, Callable[[Path], None]]
) -> None:
    """Write beside the record at `path` what an evaluation keeps.

    Args:
        path: of the record.
        arrays: of any shape; they go into one .npz, if there are any.
        files: ending of the name, such as ".night.json.gz" -> function that writes the file.

    Raises:
        UserError: one of them cannot be written.
    """
    if arrays:
        write_arrays(path.with_suffix(".npz"), arrays)
    for ending, write in files.items():
        write(path.with_suffix(ending))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz of arrays of any shape, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def write_weights(path: Path, model: nn.Module, method: Method) -> None:
    """Write a .safetensors: what differs from the pretrained backbone, and the head.

    `soma.load_adapter` reads the backbone's part; the head's names are those in the model.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    state = model.state_dict()
    head = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    try:
        save_adapter(model.backbone, path, method, extra=head)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose --out") from None


@dataclass(frozen=True)
class Trained:
    """A backbone as it was at the end of a run; `plain` is its state dict before the method."""

    record: Record
    method: Method
    vit: nn.Module
    plain: dict[str, Tensor]


def load_trained(path: Path, protocol: str = "", method: str = "") -> Trained:
    """The backbone of the record at `path`, adapted, with q, k and v apart.

    Args:
        path: a record, with its weights beside it under the same name and .safetensors.
        protocol: name or path of its protocol, where that is not built in.
        method: its `path/to/file.py:Class`, where it is not built in.

    Raises:
        UserError: the run left no weights, or protocol, backbone or method are no longer those of
            the record.
    """
    record, weights = Record.load(path), path.with_suffix(".safetensors")
    if record.status != "done":
        raise UserError(f"{path}: nothing was trained, the cell is {record.status}")
    if not weights.is_file():
        raise UserError(f"{weights}: the weights of the record are missing; run its cell again")
    held_fixed = load_protocol(protocol or record.protocol)
    backbone = protocol_semantics(held_fixed)["backbone"]
    if backbone != record.cell["protocol"]["backbone"]:
        raise UserError(f"{path}: its backbone is no longer that of {held_fixed.name}")
    if held_fixed.backbone.weights == RANDOM:
        raise UserError(f"{path}: its backbone is random; there is no plain one to adapt elsewhere")
    spec = _spec(record, method, path)
    made = make_method(spec, record.cell["method"]["fields"])
    now = method_semantics(spec, made)
    for key, words in (("code_sha256", "code"), ("packages", "packages")):
        then = record.cell["method"].get(key)
        if then != now.get(key):
            raise UserError(f"{path}: recorded with other {words} ({then}, not {now.get(key)})")
    # Weights for which the protocol states no hash have to be those of the record all the same.
    stated = {"sha256": record.data[BACKBONE]} if BACKBONE in record.data else {}
    vit = load_backbone(held_fixed.backbone.model_copy(update=stated))
    # Copied now: methods change pretrained weights in place.
    plain = {name: value.clone() for name, value in vit.state_dict().items()}
    try:
        placed = load_adapter(made, vit, weights)
    except (ValueError, SafetensorError) as error:
        words = str(error).removeprefix(f"{weights}: ")
        raise UserError(
            f"{weights}: not the weights of this record: {words}; run its cell again"
        ) from None
    return Trained(record, placed, vit, plain)


def _spec(record: Record, given: str, path: Path) -> str:
    """The name under which the method of a record is made."""
    if given:
        return given
    recorded = record.cell["method"]
    if "code_sha256" in recorded:
        option = f"--method path/to/file.py:{recorded['name']}"
        raise UserError(f"{path}: its method is a user's own; say where it is with {option}")
    # The fields of the record say which tuner, and how.
    return f"{methods.HF}{recorded['fields']['tuner']}" if "packages" in recorded else record.method


def warm_start(model: nn.Module, method: Method, record: Path) -> Method:
    """Adapt the pretrained backbone of a model, and set backbone and head to a first stage's end.

    Args:
        model: with its pretrained backbone, not adapted yet.
        method: as it was in the first stage.
        record: path of the first stage's record.

    Returns:
        The method with `start_block` as an index, as `adapt` does.

    Raises:
        ValueError: another method, backbone or head than the first stage's.
    """
    weights = record.with_suffix(".safetensors")
    placed = load_adapter(method, model.backbone, weights)
    head = {name for name in model.state_dict() if not name.startswith("backbone.")}
    tensors = {name: value for name, value in load_file(weights).items() if name in head}
    if missing := head - tensors.keys():
        raise ValueError(f"{weights}: no tensor {min(missing)} of the head")
    try:
        # The backbone's part is in already, in the form of an adapter.
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f"{weights}: {' '.join(str(error).split())}") from None
    return placed
