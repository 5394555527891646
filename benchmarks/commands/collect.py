"""The command `collect`: records of several machines in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments


def collect(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records.")],
    out: Annotated[Path, typer.Option(help="Folder that takes them; what it holds stays.")],
) -> None:
    """Copy the records of several machines, with what lies beside them, into one folder.

    Records of one cell with other digests are refused.
    """
    from benchmarks.report.records import collect as copy

    for folder in folders:
        arguments.require_folder(folder)
    made, before = copy(folders, out)
    print(f"{made} records copied to {out}, {before} were there before")
