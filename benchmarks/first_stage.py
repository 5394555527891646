"""Training in two stages: a cell that goes on from what another protocol trained for the same row.

The first stage's model is that of its last iteration, of the same method, placement, mode and seed,
and lies in the same folder of records.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from benchmarks.cell import Cell
from benchmarks.errors import UserError
from benchmarks.record import Record
from soma.checkpoint import load_adapter
from soma.method import Method


def record_of_first(cell: Cell, out: Path) -> Path | None:
    """Where the record of a cell's first stage lies; None for a cell of one stage."""
    first = cell.protocol.starts_from
    return out / first / cell.path.relative_to(cell.protocol.name) if first else None


def reading(cells: Iterable[Cell], data: Mapping[str, str], out: Path) -> tuple[Cell, ...]:
    """The cells on data with these fingerprints, each knowing which model it goes on from.

    Raises:
        UserError: a first stage has no record in `out`, or left no model.
    """
    return tuple(replace(cell, data=dict(data), first=_digest(cell, out)) for cell in cells)


def _digest(cell: Cell, out: Path) -> str:
    path = record_of_first(cell, out)
    if path is None:
        return ""
    first = cell.protocol.starts_from
    words = f"{cell}: goes on from {first}"
    if not path.is_file():
        how = f"python -m benchmarks run {first} {cell.method} --seed {cell.seed} --out {out}"
        raise UserError(f"{words}, which has no record {path}; train that first: {how}")
    record = Record.load(path)
    if record.status != "done":
        raise UserError(f"{words}, but {path} is {record.status}")
    if not path.with_suffix(".safetensors").is_file():
        raise UserError(f"{words}, but the weights beside {path} are missing; run its cell again")
    return record.digest


def go_on(model: nn.Module, method: Method, record: Path) -> Method:
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
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f"{weights}: {' '.join(str(error).split())}") from None
    return placed
