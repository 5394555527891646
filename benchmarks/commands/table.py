"""The command `table`: records as a table."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments
from benchmarks.commands.arguments import REFERENCE, Engine, Methods, Mode, Profile, Seeds
from benchmarks.errors import UserError, closest
from benchmarks.record import write_atomically
from benchmarks.yaml_files import digest_of


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
    pairs: Annotated[bool, typer.Option("--pairs", help="Say who differs from whom.")] = False,
    mode: Mode = "controlled",
    engine: Engine = "",
    write: Annotated[Path | None, typer.Option(help="Folder for .md, .csv and .tex.")] = None,
    data_root: Annotated[Path | None, typer.Option(hidden=True)] = None,  # the same flags as sweep
) -> None:
    """Print TABLE from records; trains nothing."""
    from benchmarks.report import spec as table_spec
    from benchmarks.report import table as tables
    from benchmarks.report.formats import FORMATS, render
    from benchmarks.report.records import load_records

    spec = table_spec.load_table(table)
    protocol = spec.protocol(profile)
    if form not in FORMATS:
        raise UserError(f"--format {form}: no such format{closest(form, FORMATS)}")
    protocol.changes_for("", mode)  # an unknown mode would look like a table without records
    for folder in (records, against):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: no such folder of records")
    if spec.rows:
        rows, placed = arguments.factors_of(spec, methods, placement), ()
    else:
        rows, placed = arguments.names(methods), arguments.placements(protocol, placement)
    request = tables.Request(
        mode=mode,
        placements=placed or None,
        seeds=arguments.numbers(seeds) or None,
        methods=rows or None,
        reference=reference or None,
        selections=arguments.names(selection),
        pairs=pairs,
    )
    arguments.check_engine(protocol, engine)
    held = load_records(records, protocol.name, mode, engine)
    if not held:
        of = f"{mode}, engine {engine}" if engine else mode
        raise UserError(
            f"{records}: no records of {protocol.name} ({of}); `python -m benchmarks sweep {table} "
            f"--profile {profile}` makes them below {arguments.RUNS}"
        )
    built = tables.build(
        spec,
        protocol,
        held,
        table_spec.published(spec.published),
        request,
        load_records(against, protocol.name, mode, engine) if against else None,
    )
    print(render(built, form), end="")
    # One name for every choice, so that no table takes another's place.
    choices = [placement, mode, engine, methods, seeds and f"seeds{seeds}", selection]
    choices += [reference and f"minus-{reference}", "pairs" if pairs else ""]
    named = [choice for choice in choices if choice not in ("", "default", "controlled")]
    stem = ".".join([spec.name, profile, *map(_in_file_name, named)])
    for ending in ("md", "csv", "tex") if write else ():
        text = render(built, ending).encode()
        file_name = f"{stem}.{ending}"
        write_atomically(write / file_name, lambda file, text=text: file.write(text))
        print(write / file_name, file=sys.stderr)


def _in_file_name(choice: str) -> str:
    """A choice as it stands in the name of a file; a hash where it is long or holds other signs."""
    plain = "-".join(arguments.names(choice))
    return plain if re.fullmatch(r"[\w.-]{1,60}", plain, re.ASCII) else digest_of(plain)[:8]
