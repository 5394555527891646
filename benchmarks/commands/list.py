"""The command `list`: names of methods, protocols, tables and data sets."""

from typing import Annotated

import typer

from benchmarks import console
from benchmarks.errors import UserError, closest


def list_(
    what: Annotated[str, typer.Argument(help="methods, protocols, tables, datasets")],
) -> None:
    """List what there is: one name first on each line."""
    if what not in console.LISTS:
        raise UserError(f"list {what}: no such list{closest(what, console.LISTS)}")
    for name, words in console.LISTS[what]():
        print(f"{name:<20} {words}".rstrip())
