"""The command `report`: every table of a profile on one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments
from benchmarks.commands.arguments import REFERENCE, DataRoot, Mode, Profile
from benchmarks.errors import UserError

PAGE = Path("results/tables/report.html")


def report(
    profile: Profile = "mini",
    records: Annotated[
        list[Path], typer.Option(help="Folder, repeatable; default: the committed reference.")
    ] = [],  # noqa: B006 - typer copies it
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    figures: Annotated[
        Path | None, typer.Option(help="Folder: the charts as SVG and PDF instead of a page.")
    ] = None,
    mode: Mode = "controlled",
    data_root: DataRoot = None,
) -> None:
    """Write all tables of a profile as one HTML page that opens without a server or a network."""
    folders = records or [REFERENCE]
    for folder in folders:
        arguments.require_folder(folder)
    from benchmarks.report.page.charts import write_figures
    from benchmarks.report.page.page import make_report, write_page

    made = make_report(profile, folders, mode, data_root)
    for section in made.empty:
        print(f"{section.spec.name}: {section.problem}", file=sys.stderr)
    if not made.sections:
        raise UserError(f"{', '.join(map(str, folders))}: no table of profile {profile} has rows")
    if figures:
        named = {f"{table}.{c.key}": c for table, own in made.charts.items() for c in own}
        print(f"Written: {len(write_figures(figures, named))} files in {figures}")
        return
    write_page(made, out)
    print(f"Written: {out} ({out.stat().st_size / 1e6:.2f} MB)")
