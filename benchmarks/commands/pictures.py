"""The command `pictures`: what records predicted, beside what is there."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments
from benchmarks.commands.arguments import DataRoot
from benchmarks.errors import UserError
from benchmarks.record import Record, load_kept
from benchmarks.tasks import load_protocol


def pictures(
    records: Annotated[list[Path], typer.Argument(help="Records (.json) of one protocol.")],
    out: Annotated[Path | None, typer.Option(help="Default: RECORD without its .json.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Of each domain (segmentation: up to 4).")] = 8,
    data_root: DataRoot = None,
) -> None:
    """Draw what records predicted beside what is there: a picture per domain, no model is run."""
    loaded = {path: load_kept(path) for path in records}
    first, record = next(iter(loaded.items()))
    for path, other in loaded.items():
        if other.protocol != record.protocol:
            raise UserError(f"{path}: of {other.protocol}, {first} of {record.protocol}")
        if isinstance(other, Record) and other.status != "done":
            raise UserError(f"{path}: no predictions, its cell is {other.status}; run it again")
    try:
        data_root = data_root or arguments.data_root(load_protocol(record.protocol), None)
    except UserError as error:
        raise UserError(f"{error}; say where the data are with --data-root") from None
    # The record's own words: its protocol need not be a built-in one.
    cell = record.cell.get("protocol")
    if isinstance(cell, dict) and cell.get("task") == "segmentation":
        from benchmarks.segmentation.pictures import write_strips as write
    else:
        from benchmarks.detection.pictures import write_sheets as write
    for file in write(loaded, data_root, out or first.with_suffix(""), images):
        print(file)
