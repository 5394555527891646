"""The command `status`: what the cells of a sweep are doing."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import console
from benchmarks import status as cells_status
from benchmarks.commands import arguments
from benchmarks.commands.arguments import (
    RUNS,
    Methods,
    Mode,
    Out,
    PlacementName,
    Profile,
    Seeds,
    Settings,
)
from benchmarks.methods import label as label_of
from benchmarks.report.spec import TableSpec, load_table

if TYPE_CHECKING:
    from benchmarks.cell import Cell

_PAUSE = 5.0  # seconds between two looks
_OVER = ("done", "failed", "not applicable", "missing", "cut off", "other version")


def status(
    table: Annotated[
        str, typer.Argument(help="Whose cells; all that are in the folder where none is named.")
    ] = "",
    profile: Profile = "mini",
    placement: PlacementName = "default",
    seeds: Seeds = "",
    methods: Methods = "",
    mode: Mode = "controlled",
    settings: Settings = [],  # noqa: B006 - typer copies it
    out: Out = RUNS,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until all ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Say which cells run, wait, failed or are missing, and when all will be done.

    Exit code 1 where a cell failed.
    """
    arguments.require_folder(out)
    version = None
    if table:
        spec = load_table(table)
        protocol = spec.protocol(profile)
        version = protocol.version
        flags = (methods, seeds, placement, mode, settings)
        wanted = _wanted(spec, arguments.named_of(spec, protocol, *flags), out)
    while True:
        now = datetime.now(UTC)
        cells = cells_status.look(wanted if table else _all(out), version, now)
        title: dict[str, Any] = {
            "table": table,
            "profile": profile if table else "",
            "out": str(out),
        }
        if as_json:
            print(json.dumps(cells_status.as_json(title, cells, now), indent=1))
        else:
            if watch:
                console.clear()
            words = " ".join(filter(None, [table, title["profile"], f"out={out}"]))
            print("\n".join(cells_status.report(words, cells, now)))
        if not watch or all(cell.state in _OVER for cell in cells):
            break
        time.sleep(_PAUSE)
    if any(cell.state == "failed" for cell in cells):
        raise typer.Exit(1)


def _wanted(spec: TableSpec, named: "Sequence[Cell]", out: Path) -> dict[Path, str]:
    """Path of the record -> name, of the cells that a sweep with the same flags has.

    Raises:
        UserError: a cell that no table or record knows has no such method, or not with such fields.
    """
    known = {*map(label_of, spec.methods)}
    for cell in named:
        # Methods bring torch, and this is asked often: a sweep has looked at those of the others.
        if not (spec.rows or cell.label in known or (out / cell.path).parent.is_dir()):
            cell.make_method()
    return {out / cell.path: str(cell) for cell in named}


def _all(out: Path) -> dict[Path, str]:
    """Records below a folder, and where one is being made or was begun."""
    endings = ("", ".progress", ".checkpoint", ".job")
    places = {
        Path(str(file).removesuffix(ending)): None
        for ending in endings
        for file in sorted(out.glob(f"*/*/*/seed*.json{ending}"))
    }
    return {path: "/".join(path.relative_to(out).with_suffix("").parts) for path in places}
