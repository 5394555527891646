"""What a table shows: rows, columns, reference row and published numbers, read from YAML."""

import csv
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from benchmarks import methods, yaml_files
from benchmarks.cell import label_of
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Positive, Protocol, RecipeChanges
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


class RowChanges(Strict):
    """What a row changes in its method.

    Attributes:
        fields: of the method.
        recipe: keys of the recipe.
        times: key of the recipe -> factor on the value that the row would have without.
    """

    fields: dict[str, Any] = Field(default_factory=dict)
    recipe: RecipeChanges = RecipeChanges()
    times: dict[str, Positive] = Field(default_factory=dict)


class RowSpec(RowChanges):
    """A row that is a method with something changed, every other thing equal.

    Attributes:
        label: in the table, in the field's words.
        method: its name.
        placement: its name; None for the protocol's default.
        profiles: profile -> changes in the place of the row's own, where lengths or widths differ.
    """

    label: Annotated[str, Field(pattern=r"^[^\n|]{1,60}$")]
    method: str
    placement: str | None = None
    profiles: dict[str, RowChanges] = Field(default_factory=dict)

    def changes(self, protocol: Protocol, mode: str, reference: str) -> dict[str, dict[str, Any]]:
        """The changes as `cell.make_cell` takes them.

        What the protocol sets for the reference, it sets for a row of another method too.

        Raises:
            UserError: a factor on what is no number of the recipe.
        """
        own = self.profiles.get(protocol.profile, self)
        base = protocol.changes_for(reference, mode) if self.method != reference else RowChanges()
        recipe = {
            **base.recipe.model_dump(mode="json", exclude_unset=True),
            **own.recipe.model_dump(mode="json", exclude_unset=True),
        }
        before = protocol.recipe_for(reference, mode).model_dump(mode="json")
        for key, factor in own.times.items():
            if not isinstance(before.get(key), float):
                raise UserError(
                    f"row {self.label}: times.{key}: {protocol.name} has no such number"
                )
            # Four digits: a cell says 0.0003 and not what the product's last bit makes of it.
            recipe[key] = float(f"{before[key] * factor:.4g}")
        return {"method": base.fields | own.fields, "recipe": recipe}


@dataclass(frozen=True)
class Line:
    """One row of a table of factors, as a protocol resolves it.

    Attributes:
        factor: heading of its block.
        label: in the table.
        method: its name.
        changes: as `cell.make_cell` takes them.
        placement: its name.
        key: placement and label of its records.
    """

    factor: str
    label: str
    method: str
    changes: dict[str, dict[str, Any]]
    placement: str
    key: tuple[str, str]


class TableSpec(Strict):
    """One table; `benchmarks/tables/*.yaml`.

    Attributes:
        protocols: profile -> protocol.
        metric: key in the records' metrics, percent.
        domains: target domain -> heading, in column order; Avg is their mean.
        sources: test split of a source -> heading, shown before them and in a second average, over
            all.
        short: key -> heading of a narrow column.
        reference: row that differences are taken to.
        methods: rows in order.
        rows: in their place, factor -> rows that change it and nothing else, one block for each. A
            row that changes nothing under some protocol is the reference.
    """

    # Of files too: it must lead into no other folder.
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    title: str
    protocols: Annotated[dict[str, str], Field(min_length=1)]
    metric: str
    domains: Annotated[dict[str, str], Field(min_length=1)]
    sources: dict[str, str] = Field(default_factory=dict)
    short: dict[str, str] = Field(default_factory=dict)
    reference: str
    methods: tuple[str, ...] = ()
    rows: dict[str, Annotated[tuple[RowSpec, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    published: PublishedSpec | None = None

    @model_validator(mode="after")
    def _has_rows_of_one_kind(self) -> "TableSpec":
        if bool(self.methods) == bool(self.rows):
            raise ValueError("methods: give these, or rows")
        labels = [row.label for rows in self.rows.values() for row in rows]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"rows: two are called {twice[0]!r}; give each its own label")
        return self

    def lines(self, protocol: Protocol, mode: str) -> list[Line]:
        """The rows of a table of factors under a protocol and a recipe mode; none of other tables.

        The first one is the reference, of no factor.

        Raises:
            UserError: a change that does not fit the protocol, or a mode in which trials choose.
        """
        if not self.rows:
            return []
        # Refuses an unknown mode, which the next line would meet as a KeyError.
        protocol.changes_for("", mode)
        if protocol.modes[mode].trials is not None:
            raise UserError(f"{self.name}: no recipe mode {mode}: rows hold the recipe fixed")
        start, own = protocol.default_placement, self.reference
        lines = [Line("", own, own, {}, start, (start, methods.label(own)))]
        for factor, rows in self.rows.items():
            for row in rows:
                placement = row.placement or protocol.default_placement
                changes = row.changes(protocol, mode, own)
                key = placement, label_of(protocol, row.method, mode, changes)
                lines.append(Line(factor, row.label, row.method, changes, placement, key))
        return lines

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


def factor_rows(protocol: Protocol, mode: str) -> set[str]:
    """Labels of records that some table of factors has under a protocol, the methods' own left out.

    Tables of methods do not show them.
    """
    specs = [load_table(path) for path in sorted(FOLDER.glob("*.yaml"))]
    if protocol.modes[mode].trials is not None:
        return set()
    return {
        line.key[1]
        for spec in specs
        if protocol.name in spec.protocols.values()
        for line in spec.lines(protocol, mode)
        # A row may change nothing under this protocol: its records are the method's own.
        if line.key[1] != methods.label(line.method)
    }


def load_table(name: str | Path) -> TableSpec:
    """A table by its name in `benchmarks/tables`, or by a path that ends in .yaml.

    Raises:
        UserError: unknown name, unknown key or wrong value.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        path = FOLDER / f"{name}.yaml"
    # Not `Path.is_file`, which raises where a name is too long to be one.
    if not isfile(path):
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
                # One letter per source, in the order in which rows bring them up.
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
