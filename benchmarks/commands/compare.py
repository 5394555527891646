"""The command `compare`: one method beside the fixed baselines."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import console
from benchmarks.commands import arguments
from benchmarks.commands.arguments import (
    REFERENCE,
    RUNS,
    DataRoot,
    Device,
    Engine,
    Mode,
    Out,
    PlacementName,
    Profile,
    Seeds,
    Settings,
)
from benchmarks.commands.report import PAGE
from benchmarks.commands.table import Format, Notes, Write, check_format, written


def compare(
    method: Annotated[str, typer.Argument(help="A name, path/to/file.py:Class or hf:NAME.")],
    table: Annotated[str, typer.Option(help="The table whose rows are the baselines.")] = "table1",
    profile: Profile = "mini",
    seeds: Seeds = "",
    placement: PlacementName = "default",
    mode: Mode = "controlled",
    settings: Settings = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Cells trained side by side.")] = 2,
    device: Device = "cpu",
    data_root: DataRoot = None,
    out: Out = RUNS,
    engine: Engine = "",
    against: Annotated[Path, typer.Option(help="Records of the fixed baselines.")] = REFERENCE,
    replace: Annotated[
        bool, typer.Option(help="Run again what failed or was recorded before METHOD changed.")
    ] = False,
    form: Format = "text",
    notes: Notes = False,
    write: Write = None,
) -> None:
    """Check METHOD, train its row of TABLE, and say whether it is better or worse.

    The baselines are the committed records, which are never run again.
    """
    from benchmarks.cell import prepare
    from benchmarks.report import compare as comparison
    from benchmarks.report import table as tables
    from benchmarks.report.formats import HINT, WHOLE, Layout, render, wrapped

    check_format(form)
    spec = arguments.table_of_methods(table)
    protocol = arguments.with_engine(spec.protocol(profile), engine)
    if not engine:
        protocol = comparison.with_engine_of(against, protocol, mode)
    cells = arguments.checked(arguments.named(protocol, [method], seeds, placement, mode, settings))
    how = f"python -m benchmarks sweep {table} --profile {profile} --out DIR"
    fixed = comparison.baselines(against, cells, out, how)
    root = arguments.data_root(protocol, data_root)
    cells = prepare(cells, root, out)
    comparison.check_data(fixed, cells, root)
    todo = comparison.missing(fixed, cells, out, replace)
    arguments.announce(protocol)
    if comparison.nonconforming(cells[0], console.say):
        console.say("nothing was trained; `python -m benchmarks check` shows every property")
        raise typer.Exit(1)
    if replace:
        comparison.clear(todo, out)
    arguments.train_missing(todo, out, root, device, workers)
    mine = comparison.records_of(cells, fixed, out)
    built = comparison.build(spec, fixed, cells, mine)
    order = "avg" if form == "text" else "table"
    print(render(tables.ordered(built, order), form, Layout(notes=notes)), end="")
    if form in ("text", "md"):
        words = comparison.verdicts(built, cells[0])
        print(f"\n{wrapped(words) if form == 'text' else words}", end="")
    if form == "text" and not notes:
        print(f"\n{HINT}")
    if write:
        choices = [placement, mode, engine, seeds and f"seeds{seeds}", *settings]
        line = written(
            built, WHOLE, write, ["compare", cells[0].label, spec.name, profile, *choices]
        )
        console.say(line)
    console.say(f"On one page with the baselines: {_report(profile, mode, against, out)}")
    if any(record.status == "failed" for record in mine):
        raise typer.Exit(1)


def _report(profile: str, mode: str, against: Path, out: Path) -> str:
    """The command that writes the page, and where."""
    choices = "" if mode == "controlled" else f" --recipe {mode}"
    folders = " ".join(f"--records {folder}" for folder in dict.fromkeys((_near(against), out)))
    return f"python -m benchmarks report --profile {profile}{choices} {folders}  ->  {PAGE}"


def _near(folder: Path) -> Path:
    """The folder as a path from here, where it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
