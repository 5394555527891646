"""The command `pictures`: what a detector found, beside what is there."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments
from benchmarks.commands.arguments import DataRoot
from benchmarks.errors import UserError
from benchmarks.record import Record
from benchmarks.tasks import load_protocol


def pictures(
    record: Annotated[Path, typer.Argument(help="A detection record (.json).")],
    out: Annotated[Path | None, typer.Option(help="Default: RECORD without its .json.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many of each domain.")] = 8,
    data_root: DataRoot = None,
) -> None:
    """Draw what RECORD found beside what is there: one contact sheet per domain."""
    from benchmarks.detection.pictures import write_sheets

    protocol = Record.load(record).protocol
    try:
        data_root = data_root or arguments.data_root(load_protocol(protocol), None)
    except UserError as error:
        raise UserError(f"{error}; say where the data are with --data-root") from None
    for file in write_sheets(record, data_root, out or record.with_suffix(""), images):
        print(file)
