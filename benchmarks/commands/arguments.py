"""Arguments of the command line: the options that commands share, and texts as values."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol

RUNS, REFERENCE = Path("results/runs"), REPOSITORY / "results" / "reference"
Seeds = Annotated[str, typer.Option(help="Such as 0,1,2; default: the protocol's.")]
Methods = Annotated[str, typer.Option(help="Such as soma,lora; default: the table's.")]
Profile = Annotated[str, typer.Option(help="Which protocol of the table: mini, smoke, ...")]
PlacementName = Annotated[str, typer.Option(help="Adapted blocks: default, both, or a name.")]
Mode = Annotated[str, typer.Option("--recipe", help="Recipe mode of the protocol.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="recipe.FIELD=VALUE or method.FIELD=VALUE; repeatable.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; workers take GPUs in turn.")]
Devices = Annotated[int, typer.Option(min=1, help="Of them on each node, sharing each batch.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines; srun or torchrun starts the processes.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Two steps and one image, rendered; time, memory, gaps.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data sets.")]
Out = Annotated[Path, typer.Option(help="Folder of the records.")]


def data_root(protocol: Protocol, given: Path | None) -> Path:
    """The folder of the data sets: as given, else the protocol's own.

    Raises:
        UserError: neither is there.
    """
    root = known_root(protocol, given)
    if root is None:
        raise UserError(f"{protocol.name} reads real data: say where with --data-root")
    return root


def known_root(protocol: Protocol, given: Path | None) -> Path | None:
    """The folder of the data sets: as given, else the protocol's own, if it has one."""
    if given is None and protocol.data_root is not None:
        return REPOSITORY / protocol.data_root
    return given


def announce(protocol: Protocol) -> None:
    """Say on stderr which engine a run takes, where there is a choice.

    Raises:
        UserError: the protocol asks for one that is not installed.
    """
    if protocol.engine_reason:
        print(protocol.engine_reason, file=sys.stderr)


def placements(protocol: Protocol, asked: str) -> tuple[str, ...]:
    """Placements by "both", "default" or names; none for ""."""
    if asked == "both":
        return tuple(protocol.placements)
    return (protocol.default_placement,) if asked == "default" else names(asked)


def names(text: str) -> tuple[str, ...]:
    """The parts of "a,b"; none for "". A comma inside parentheses parts nothing."""
    parts = re.split(r",(?![^()]*\))", text)
    return tuple(name.strip() for name in parts if name.strip())


def reals(text: str, option: str) -> tuple[float, ...]:
    """The different numbers in "1e-4,0.05"; none for "".

    Raises:
        UserError: not numbers.
    """
    try:
        return tuple(dict.fromkeys(float(name) for name in names(text)))
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers such as 1e-4,3e-4") from None


def numbers(text: str) -> tuple[int, ...]:
    """The seeds in "0,1,2"; none for "".

    Raises:
        UserError: not whole numbers.
    """
    try:
        return tuple(int(name) for name in names(text))
    except ValueError:
        raise UserError(f"--seeds {text}: expected whole numbers such as 0,1,2") from None
