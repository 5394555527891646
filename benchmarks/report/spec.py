"""What a table shows: rows, columns, reference row and published numbers, read from YAML."""

import csv
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Annotated

from pydantic import Field

from benchmarks import yaml_files
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Protocol
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import Strict

FOLDER = REPOSITORY / "benchmarks" / "tables"
PUBLISHED = REPOSITORY / "results" / "published.csv"
# Columns besides the domains: mean of the unseen ones, of all, and of held-out source data.
AVERAGE, AVERAGE_ALL, SOURCE = "avg", "avg_all", "source"


class PublishedSpec(Strict):
    """How rows of results/published.csv map to this table.

    Attributes:
        domains: column key (a domain, avg or avg_all) -> name in the file's `domain` column.
        where: file column -> value, for every row.
        methods: table row -> selections, each file column -> value. All values have to match
            exactly.
    """

    domains: dict[str, str]
    where: dict[str, str] = Field(default_factory=dict)
    methods: dict[str, tuple[dict[str, str], ...]]


class TableSpec(Strict):
    """One table; `benchmarks/tables/*.yaml`.

    Attributes:
        protocols: profile -> protocol.
        metric: key in the records' metrics, percent.
        domains: target domain -> heading, in column order; Avg is their mean.
        sources: test split of a source -> heading, shown before them and in a second average, over
            all.
        reference: row that differences are taken to.
        methods: rows in order.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]  # of files too: no way into other folders
    title: str
    protocols: Annotated[dict[str, str], Field(min_length=1)]
    metric: str
    domains: Annotated[dict[str, str], Field(min_length=1)]
    sources: dict[str, str] = Field(default_factory=dict)
    reference: str
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    published: PublishedSpec | None = None

    @property
    def headings(self) -> dict[str, str]:
        """Column key -> heading, in order."""
        count = len(self.sources) + len(self.domains)
        everywhere = {AVERAGE_ALL: f"Avg of {count}"} if self.sources else {}
        averages = {AVERAGE: "Avg", **everywhere}
        return {**self.sources, **self.domains, **averages, SOURCE: "source, held out"}

    def protocol(self, profile: str) -> Protocol:
        """The protocol of a profile.

        Raises:
            UserError: the table has no such profile, or its columns are not the protocol's targets.
        """
        if profile not in self.protocols:
            known = closest(profile, self.protocols)
            raise UserError(f"{self.name}: no profile {profile!r}{known}")
        protocol = load_protocol(self.protocols[profile])
        for role, key, columns in (
            ("target", "domains", self.domains),
            ("source", "sources", self.sources),
        ):
            scored = {domain.domain for domain in protocol.scored.get(role, ())}
            if scored != set(columns):
                odd = ", ".join(sorted(scored ^ set(columns)))
                raise UserError(
                    f"{self.name}: {key}: differ from the {role}s of {protocol.name}: {odd}"
                )
        return protocol


@dataclass(frozen=True)
class Published:
    """Published numbers.

    `values` is method -> key -> (text, footnote letter); `footnotes` by letter.
    """

    values: dict[str, dict[str, tuple[str, str]]]
    footnotes: dict[str, str]


def load_table(name: str | Path) -> TableSpec:
    """A table by its name in `benchmarks/tables`, or by a path that ends in .yaml.

    Raises:
        UserError: unknown name, unknown key or wrong value.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        path = FOLDER / f"{name}.yaml"
    if not isfile(path):  # Path.is_file raises where a name is too long to be one
        known = closest(str(name), (file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"no table {str(name)!r}{known}")
    return yaml_files.validate(TableSpec, yaml_files.read(path), str(path))


def published(spec: PublishedSpec | None, path: Path = PUBLISHED) -> Published:
    """The published numbers of a table; one footnote per source and published protocol.

    Raises:
        UserError: the file is missing, or a selection matches no row, or two rows for one column.
    """
    if spec is None:
        return Published({}, {})
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    keys = {name: key for key, name in spec.domains.items()}
    values: dict[str, dict[str, tuple[str, str]]] = {}
    letters: dict[str, str] = {}
    for method, selections in spec.methods.items():
        entry = values.setdefault(method, {})
        for selection in selections:
            wanted = spec.where | selection
            chosen = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
            chosen = [row for row in chosen if row["domain"] in keys]
            if not chosen:
                raise UserError(f"{path.name}: no row for {method}: {wanted}")
            for row in chosen:
                key = keys[row["domain"]]
                if key in entry:
                    raise UserError(
                        f"{path.name}: two rows for {method}, {row['domain']}: {wanted}"
                    )
                letter = letters.setdefault(_source(row), chr(ord("a") + len(letters)))
                entry[key] = (row["value"], letter)
    return Published(values, {letter: text for text, letter in letters.items()})


def _source(row: dict[str, str]) -> str:
    """Where a published number comes from and what it was measured on."""
    checked = "" if row["verified"] == "yes" else f"; verified: {row['verified']}"
    return (
        f"{row['source']}: {row['metric']} on the real data, {row['backbone']}, {row['head']}; "
        f"{row['protocol']}{checked}"
    )
