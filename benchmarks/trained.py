"""The adapted backbone of a record, rebuilt from the weights beside it."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from benchmarks import method_names
from benchmarks.backbones import BACKBONE, load_backbone
from benchmarks.cell import make_method, method_semantics, protocol_semantics
from benchmarks.errors import UserError
from benchmarks.protocol import load_protocol
from benchmarks.protocol_parts import RANDOM
from benchmarks.record import Record
from soma.checkpoint import load_adapter
from soma.method import Method


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
    stated = {"sha256": record.data[BACKBONE]} if BACKBONE in record.data else {}
    vit = load_backbone(held_fixed.backbone.model_copy(update=stated))
    plain = {name: value.clone() for name, value in vit.state_dict().items()}
    try:
        placed = load_adapter(made, vit, weights)
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{weights}: not the weights of this record: {error}") from None
    return Trained(record, placed, vit, plain)


def _spec(record: Record, given: str, path: Path) -> str:
    """The name under which the method of a record is made."""
    if given:
        return given
    recorded = record.cell["method"]
    if "code_sha256" in recorded:
        mend = f"--method path/to/file.py:{recorded['name']}"
        raise UserError(f"{path}: its method is a user's own; say where it is with {mend}")
    # The fields of the record say which tuner, and how.
    return (
        f"{method_names.HF}{recorded['fields']['tuner']}"
        if "packages" in recorded
        else record.method
    )
