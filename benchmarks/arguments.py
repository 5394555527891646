"""Arguments of the command line as values."""

import importlib
from pathlib import Path

from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol


def data_root(protocol: Protocol, given: Path | None) -> Path:
    """The folder of the data sets: as given, else the protocol's own.

    Raises:
        UserError: neither is there.
    """
    if given is None and protocol.data_root is None:
        raise UserError(f"{protocol.name} reads real data: say where with --data-root")
    return given if given is not None else REPOSITORY / str(protocol.data_root)


def fingerprints(protocol: Protocol, data_root: Path) -> dict[str, str]:
    """Fingerprint of every domain that a protocol reads.

    Raises:
        UserError: a data set is missing or incomplete.
    """
    from benchmarks.run import TASKS  # brings torch

    return importlib.import_module(TASKS[protocol.task]).fingerprints(protocol, data_root)


def placements(protocol: Protocol, asked: str) -> tuple[str, ...]:
    """Placements by "both", "default" or names; none for ""."""
    if asked == "both":
        return tuple(protocol.placements)
    return (protocol.default_placement,) if asked == "default" else names(asked)


def names(text: str) -> tuple[str, ...]:
    """The parts of "a,b"; none for ""."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers(text: str) -> tuple[int, ...]:
    """The seeds in "0,1,2"; none for "".

    Raises:
        UserError: not whole numbers.
    """
    try:
        return tuple(int(name) for name in names(text))
    except ValueError:
        raise UserError(f"--seeds {text}: expected whole numbers such as 0,1,2") from None
