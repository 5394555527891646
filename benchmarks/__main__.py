"""The command line: `python -m benchmarks --help`.

Heavy modules are imported inside the commands that need them, so that `table` and `list` are quick.
Exit codes: 0 well, 1 a cell failed, 2 the user has to mend something, 130 interrupted.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import (
    arguments,
    bench_commands,
    data_commands,
    listing,
    method_commands,
    run_command,
    sweep_command,
)
from benchmarks.arguments import (
    REFERENCE,
    Methods,
    Mode,
    Profile,
    Seeds,
)
from benchmarks.download.command import download
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.record import load_records, write_atomically

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
mini = typer.Typer(no_args_is_help=True, help="The mini worlds and their backbone.")
app.add_typer(mini, name="mini")


app.command()(run_command.run)
app.command()(sweep_command.sweep)


@app.command()
def table(
    table: str,
    profile: Profile = "mini",
    records: Annotated[Path, typer.Option(help="Default: the committed reference.")] = REFERENCE,
    against: Annotated[Path | None, typer.Option(help="Records to compare row by row.")] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv, tex or json.")] = "md",
    selection: Annotated[str, typer.Option(help="last, source-val, target-oracle.")] = "",
    reference: Annotated[str, typer.Option(help="Row that differences are taken to.")] = "",
    placement: Annotated[str, typer.Option(help="default, both, a name; all recorded.")] = "",
    seeds: Seeds = "",
    methods: Methods = "",
    mode: Mode = "controlled",
    write: Annotated[Path | None, typer.Option(help="Folder for .md, .csv and .tex.")] = None,
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,  # the same flags as sweep
) -> None:
    """Print TABLE from records; trains nothing."""
    from benchmarks import table_spec, tables
    from benchmarks.tables_format import FORMATS, render

    spec = table_spec.load_table(table)
    protocol = spec.protocol(profile)
    if form not in FORMATS:
        raise UserError(f"--format {form}: no such format{closest(form, FORMATS)}")
    protocol.changes_for("", mode)  # an unknown mode would look like a table without records
    for folder in (records, against):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: no such folder of records")
    request = tables.Request(
        mode=mode,
        placements=arguments.placements(protocol, placement) or None,
        seeds=arguments.numbers(seeds) or None,
        methods=arguments.names(methods) or None,
        reference=reference or None,
        selections=arguments.names(selection),
    )
    built = tables.build(
        spec,
        protocol,
        load_records(records, protocol.name, mode),
        table_spec.published(spec.published),
        request,
        load_records(against, protocol.name, mode) if against else None,
    )
    print(render(built, form), end="")
    for ending in ("md", "csv", "tex") if write else ():
        text = render(built, ending).encode()
        write_atomically(write / f"{spec.name}.{ending}", lambda file, text=text: file.write(text))


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, protocols, tables, datasets")],
) -> None:
    """List what there is: one name first on each line."""
    if what not in listing.LISTS:
        raise UserError(f"list {what}: no such list{closest(what, listing.LISTS)}")
    for name, words in listing.LISTS[what]():
        print(f"{name:<20} {words}".rstrip())


app.command()(method_commands.check)
app.command()(method_commands.compare)
app.command()(method_commands.tune)
app.command()(method_commands.export)
app.command()(method_commands.pictures)
app.command()(data_commands.verify)
app.command()(download)
app.add_typer(bench_commands.bench, name="bench")


@mini.command()
def render(root: Annotated[Path, typer.Option()] = REPOSITORY / "data" / "mini") -> None:
    """Render the mini worlds below ROOT, in the layouts of the real data sets."""
    from benchmarks.mini.worlds import render_worlds

    render_worlds(root)


@mini.command()
def sheet(
    root: Annotated[Path, typer.Option()] = REPOSITORY / "data" / "mini",
    out: Annotated[Path, typer.Option()] = REPOSITORY / "results" / "mini",
) -> None:
    """Write contact sheets, class_share.csv and boxes.csv of the worlds rendered below ROOT."""
    from benchmarks.mini import weather_sheet, worlds

    print(worlds.contact_sheet(out), worlds.class_shares(root, out), sep="\n")
    print(weather_sheet.contact_sheet(out), weather_sheet.boxes(root, out), sep="\n")


@mini.command()
def pretrain(
    out: Annotated[Path, typer.Option()] = Path("benchmarks/mini/backbone.safetensors"),
    steps: int = 4000,
    seed: int = 2024,
) -> None:
    """Pre-train the mini backbone, as the shipped one was made."""
    from benchmarks.mini.pretrain import pretrain as make

    make(out, steps=steps, seed=seed)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; what a user can mend is one line."""
    try:
        code = app(argv, prog_name="python -m benchmarks", standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except typer.TyperException as error:  # a wrong flag or a missing argument
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    if code == 130:
        print("interrupted; the same command resumes", file=sys.stderr)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
