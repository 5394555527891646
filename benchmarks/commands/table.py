"""The command `table`: records as a table."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from benchmarks.commands import arguments
from benchmarks.commands.arguments import REFERENCE, RUNS, Engine, Methods, Mode, Profile
from benchmarks.errors import UserError, closest
from benchmarks.record import write_atomically
from benchmarks.yaml_files import digest_of

if TYPE_CHECKING:
    from benchmarks.report.formats import Layout
    from benchmarks.report.table import Table

Format = Annotated[str, typer.Option("--format", help="text, md, csv, tex, html or json.")]
Write = Annotated[
    Path | None, typer.Option(help="Folder for the table as .md, .csv, .tex and .html.")
]
Notes = Annotated[bool, typer.Option("--notes", help="What numbers mean, published ones, recipes.")]


def table(
    table: str,
    profile: Profile = "mini",
    records: Annotated[
        list[Path], typer.Option(help="Folder, repeatable; default: the committed reference.")
    ] = [],  # noqa: B006 - typer copies it
    against: Annotated[Path | None, typer.Option(help="Records to compare row by row.")] = None,
    form: Format = "text",
    columns: Annotated[
        str, typer.Option(help="Such as n,avg,difference; named as in --format csv.")
    ] = "",
    sort: Annotated[
        str, typer.Option(help="By a column; table: its own order. Text is sorted by avg.")
    ] = "",
    wide: Annotated[bool, typer.Option("--wide", help="All columns, beyond 80 signs.")] = False,
    notes: Notes = False,
    paths: Annotated[bool, typer.Option("--paths", help="The records behind each row.")] = False,
    selection: Annotated[str, typer.Option(help="last, source-val, target-oracle.")] = "",
    reference: Annotated[str, typer.Option(help="Row that differences are taken to.")] = "",
    placement: Annotated[
        str, typer.Option(help="default, both, a name; without it files have all.")
    ] = "",
    seeds: Annotated[
        str, typer.Option(help="Such as 5,6,7; default: the protocol's, and what all rows have.")
    ] = "",
    methods: Methods = "",
    per_class: Annotated[str, typer.Option(help="Scores per class instead, of a domain.")] = "",
    pairs: Annotated[bool, typer.Option("--pairs", help="Say who differs from whom.")] = False,
    mode: Mode = "controlled",
    engine: Engine = "",
    write: Write = None,
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,  # the same flags as sweep
) -> None:
    """Print TABLE from records; trains nothing."""
    from benchmarks.report import per_class as classes
    from benchmarks.report import spec as table_spec
    from benchmarks.report import table as tables
    from benchmarks.report.formats import HINT, MORE, Layout, render
    from benchmarks.report.records import load_records, read_imported, read_records

    spec = table_spec.load_table(table)
    protocol = spec.protocol(profile)
    check_format(form)
    # An unknown mode would look like a table without records.
    protocol.changes_for("", mode)
    folders = records or [REFERENCE]
    _check_folders([*folders, against])
    imported = read_imported(folders, protocol.name)
    released = {record.label for record in imported.values()}
    _check_reference(reference, released)
    if spec.rows:
        rows, placed = arguments.factors_of(spec, methods, placement), ()
    else:
        rows, placed = arguments.names(methods), arguments.placements(protocol, placement)
    request = tables.Request(
        mode=mode,
        placements=placed or None,
        seeds=arguments.numbers(seeds) or None,
        methods=tuple(row for row in rows if row not in released) or None,
        reference=reference or None,
        selections=arguments.names(selection),
        pairs=pairs,
    )
    arguments.check_engine(protocol, engine)
    held = read_records(folders, protocol.name, mode, engine)
    # Before the table is built: an empty one would look like a result.
    if not (held or imported):
        of = f"{protocol.name} ({mode}, engine {engine})" if engine else f"{protocol.name} ({mode})"
        raise UserError(
            f"{', '.join(map(str, folders))}: no records of {of}; `python -m benchmarks sweep "
            f"{table} --profile {profile}` makes them below {RUNS}"
        )
    built = tables.build(
        spec,
        protocol,
        [*held.values()],
        table_spec.published(spec.published),
        request,
        load_records(against, protocol.name, mode, engine) if against else None,
        {record.digest: path for path, record in [*held.items(), *imported.items()]},
    )
    if not pairs:
        built = tables.with_released(
            built,
            [*imported.values()],
            () if spec.rows else rows,
            alone=bool(rows) and released.issuperset(rows),
        )
    layout = Layout(arguments.names(columns), wide, notes, paths)
    # Files have all placements, a terminal the default one: two tables would scroll out of it.
    shown = built if placement or form != "text" else tables.one_placement(built)
    # The levels of a factor, such as ranks, read better in their own order.
    order = sort or ("avg" if form == "text" and not spec.rows else "table")
    if per_class:
        print(classes.render(tables.ordered(shown, order), per_class, form), end="")
        return
    print(render(tables.ordered(shown, order), form, layout), end="")
    if write:
        # One name for every choice, so that no table takes another's place.
        choices = [
            *(spec.name, profile, placement, mode, engine, methods, seeds and f"seeds{seeds}"),
            *(selection, reference and f"minus-{reference}", "pairs" if pairs else "", columns),
            *(sort and f"by-{sort}", _origin(folders, write)),
        ]
        line = written(tables.ordered(built, sort or "table"), layout, write, choices)
        print(f"{line}. {MORE}" if form == "text" else line, file=_beside(form))
    elif form == "text" and not notes:
        print(HINT)


def _beside(form: str) -> TextIO:
    """Where a line goes that is not part of the table: formats for programs stay pure."""
    return sys.stdout if form == "text" else sys.stderr


def _check_folders(folders: Sequence[Path | None]) -> None:
    for folder in folders:
        if folder is not None:
            arguments.require_folder(folder)


def _check_reference(reference: str, released: Collection[str]) -> None:
    if reference in released:
        raise UserError(
            f"--reference {reference}: released weights stand outside of all differences; name a "
            "row of the table"
        )


def check_format(form: str) -> None:
    """Refuse what is no format of tables.

    Raises:
        UserError: it is none.
    """
    from benchmarks.report.formats import FORMATS

    if form not in FORMATS:
        raise UserError(f"--format {form}: no such format{closest(form, FORMATS)}")


def written(table: Table, layout: Layout, folder: Path, choices: Sequence[str]) -> str:
    """Write a table in every format, named by what was chosen; a line that names the files.

    Raises:
        UserError: a file cannot be written.
    """
    from benchmarks.report.formats import WRITTEN, render

    named = [choice for choice in choices if choice not in ("", "default", "controlled")]
    stem = ".".join(map(_in_file_name, named))
    for ending in WRITTEN:
        text = render(table, ending, layout).encode()
        write_atomically(folder / f"{stem}.{ending}", lambda file, text=text: file.write(text))
    return f"Written: {folder / stem}.{{{','.join(WRITTEN)}}}"


def _origin(folders: Sequence[Path], write: Path) -> str:
    """What a file's name says of the records: nothing where they lie beside the tables."""
    places = [folder.resolve() for folder in folders]
    if places == [write.resolve().parent / RUNS.name]:
        return ""
    if places == [REFERENCE.resolve()]:
        return "reference"
    return f"from-{digest_of(sorted(map(str, places)))[:8]}"


def _in_file_name(choice: str) -> str:
    """A choice as it stands in the name of a file; a hash where it is long or holds other signs."""
    plain = "-".join(arguments.names(choice))
    return plain if re.fullmatch(r"[\w.-]{1,60}", plain, re.ASCII) else digest_of(plain)[:8]
