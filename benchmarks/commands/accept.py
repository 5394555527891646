"""The command `accept`: may a submitted method stand in the table?"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import console
from benchmarks.commands.arguments import REFERENCE
from benchmarks.errors import UserError


def accept(
    folder: Annotated[Path, typer.Argument(help="Method file and records/ (docs/submit.md).")],
    table: Annotated[str, typer.Option(help="Default: the first with the protocol.")] = "",
    against: Annotated[Path, typer.Option(help="Records of the fixed baselines.")] = REFERENCE,
) -> None:
    """Check a submitted method and print its row as it would stand in the table.

    Exit code 1 if a property fails; nothing is written or trained.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    from benchmarks import submission
    from benchmarks.report.formats import render
    from benchmarks.report.table import ordered

    given = submission.read(folder)
    faults = submission.check(given, console.say)
    if faults:
        console.say(f"not accepted: {', '.join(dict.fromkeys(name for name, _ in faults))}")
        raise typer.Exit(1)
    built = submission.table_of(given, table, against)
    print(render(ordered(built, "avg"), "text"), end="")
