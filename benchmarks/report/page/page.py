"""Writes the page: sections, charts and pictures into one HTML file that needs nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.environment import REPOSITORY
from benchmarks.record import write_atomically
from benchmarks.report.findings import findings
from benchmarks.report.page import data, gallery
from benchmarks.report.page.charts import Chart, charts, vl_convert
from benchmarks.report.page.data import Empty, Section
from benchmarks.report.protocols import SAYS

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        charts: name of the table -> its charts.
        galleries: name of the table -> streets, and why there are none.
    """

    profile: str
    mode: str
    sections: list[Section]
    empty: list[Empty]
    charts: dict[str, list[Chart]]
    galleries: dict[str, tuple[list[gallery.Exhibit], str]]


def make_report(profile: str, folders: Sequence[Path], mode: str, data_root: Path | None) -> Report:
    """Read the records of a profile and make everything of them.

    Args:
        profile: of the tables.
        folders: of records.
        mode: recipe mode.
        data_root: folder of the data sets for the gallery; None for the protocols' own.

    Raises:
        UserError: no table has the profile.
    """
    made = data.sections(profile, folders, mode)
    held = [section for section in made if isinstance(section, Section)]
    drawn, galleries = {}, {}
    for section in held:
        places = dict(section.table.places)
        shown = {digest: _shown(path) for digest, path in places.items()}
        own = section.protocol.data_root
        root = data_root or (REPOSITORY / own if own else None)
        drawn[section.spec.name] = charts(section, places, shown)
        galleries[section.spec.name] = gallery.exhibits(section, places, root)
    empty = [section for section in made if isinstance(section, Empty)]
    return Report(profile, mode, held, empty, drawn, galleries)


def _shown(path: Path) -> str:
    """A path as a reader of another machine may see it."""
    resolved = path.resolve()
    # Not an absolute path: it would say whose machine this was.
    if resolved.is_relative_to(REPOSITORY):
        return resolved.relative_to(REPOSITORY).as_posix()
    return os.path.relpath(path)


def write_page(report: Report, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: a library is missing, or the file cannot be written.
    """
    env = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        # A name that the template misspells is an error here, and no gap in the page.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["embedded"] = _embedded
    env.filters["number"] = _number
    text = env.get_template("page.html.j2").render(
        report=report,
        cards=data.cards(),
        links=data.published_links,
        environments=data.environments,
        protocols=data.protocols,
        trials_of=data.trials_of,
        says=SAYS,
        findings=findings,
        legend=gallery.legend,
        gallery_words=gallery.words,
        shown_first=gallery.shown_first,
        shown=_shown,
        library=Markup(_library()),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
    )
    write_atomically(path, lambda file: file.write(text.encode()))


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    # The end of a script element inside its text would end it: the library holds such strings.
    return vl_convert().javascript_bundle().replace("</script", "<\\/script")


def _embedded(value: Any) -> Markup:
    """JSON inside a script element: no tag or comment ends or begins there."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def _number(value: float | None, pattern: str = ".1f") -> str:
    return "-" if value is None else format(value, pattern)
