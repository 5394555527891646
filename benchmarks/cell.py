"""A cell: one protocol, method, placement, recipe mode and seed, resolved to the last value."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import methods, tasks, yaml_files
from benchmarks.data.cards import load_card
from benchmarks.data.files import Absent, excluded
from benchmarks.environment import environment
from benchmarks.errors import UserError
from benchmarks.methods import make_method, method_semantics
from benchmarks.protocol import Protocol, RecipeChanges
from benchmarks.record import Record
from benchmarks.trials import Budget, budget_of
from benchmarks.yaml_files import digest_of

if TYPE_CHECKING:
    from soma.method import Method

# Parts of a protocol that name or choose things; they change no number of a single cell.
_NOT_SEMANTICS = {
    *("title", "note", "data_root", "profile", "selection", "seeds"),
    *("recipe", "recipes", "methods", "placements", "default_placement"),
    "engine",  # which one it came to is a part of the cell
}
# The last two save memory and move numbers by rounding only, as does the number of devices.
_NOT_SEMANTICS_OF_RECIPE = {
    *("checkpoint_every", "loader_workers", "accumulate", "activation_checkpointing")
}
# A comma that no bracket, brace or quote holds.
_COMMA = re.compile(r""",(?=(?:[^"'\[\]{}()]|"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|\([^)]*\))*$)""")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of the grid: `make_cell` says what is asked for, `prepare` makes it whole.

    Attributes:
        protocol: with the recipe of this cell put in, so that tasks read `protocol.recipe`.
        method: built-in name, `path/to/file.py:Class` or `hf:NAME(key=value, ...)`.
        label: name of the method in tables and paths.
        fields: what the method is built with, start block included.
        placement: name of the placement.
        mode: name of the recipe mode.
        seed: of everything that is drawn.
        data: domain -> fingerprint of its files. None until `prepare` has looked: such a cell has
            no digest and cannot be run.
        budget: the trials that chose the recipe, if any did.
        first: digest of the record whose model this cell starts from, "" without a first stage.
        code: of a method in a user's file, read once: every cell of a sweep, in whatever process,
            runs what its digest says.
    """

    protocol: Protocol
    method: str
    label: str
    fields: dict[str, Any]
    placement: str
    mode: str
    seed: int
    data: Mapping[str, str] | None = None
    budget: Budget | None = None
    first: str = ""
    code: bytes = dataclasses.field(default=b"", repr=False)

    def make_method(self) -> "Method":
        """The method of this cell, not yet attached to anything."""
        return make_method(self.method, self.fields, self.code)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the numbers of this cell, as plain JSON values; no paths.

        Raises:
            ValueError: the cell is not prepared.
        """
        if self.data is None:
            raise ValueError(f"{self}: not prepared; the fingerprints of its data are not known")
        engine = self.protocol.engine_here
        return {
            "protocol": protocol_semantics(self.protocol),
            "recipe": self.protocol.recipe.model_dump(
                mode="json", exclude=_NOT_SEMANTICS_OF_RECIPE
            ),
            "recipe_mode": self.mode,
            "method": method_semantics(self.method, self.make_method(), self.code),
            "placement": self.placement,
            "seed": self.seed,
            "data": dict(self.data),
            **({"engine": engine} if engine else {}),
            **({"first_stage": self.first} if self.first else {}),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of `resolved`."""
        return digest_of(self.resolved)

    @cached_property
    def training(self) -> dict[str, Any]:
        """The part of `resolved` that decides the trained weights: no domain that is only scored.

        Raises:
            ValueError: the cell is not prepared.
        """
        read = {domain.domain for domain in self.protocol.source}
        scored = {domain.domain for domain in self.protocol.scored_domains} - read
        protocol = self.resolved["protocol"].items()
        only_scored = set(self.protocol.roles.values())
        return self.resolved | {
            "protocol": {key: value for key, value in protocol if key not in only_scored},
            "data": {
                key: value
                for key, value in self.resolved["data"].items()
                # The hash of a list file goes with its domain.
                if key.removesuffix(".list") not in scored
            },
        }

    @property
    def path(self) -> Path:
        """Where the record lies, relative to the folder of records."""
        folder = self.placement if self.mode == "controlled" else f"{self.placement}+{self.mode}"
        return Path(self.protocol.name) / folder / self.label / f"seed{self.seed}.json"

    def record(self, status: str, reason: str = "", **parts: Any) -> Record:
        """The record of this cell, the reason as one line; `parts` are further fields of `Record`.

        Raises:
            ValueError: the cell is not prepared.
        """
        return Record(
            cell=self.resolved,
            digest=self.digest,
            protocol=self.protocol.name,
            protocol_version=self.protocol.version,
            method=methods.split(self.method)[1],
            label=self.label,
            placement=self.placement,
            recipe=self.mode,
            seed=self.seed,
            status=status,
            # What a library raises may hold escape codes, which no record takes.
            reason="".join(c for c in " ".join(reason.split()) if c.isprintable())[:300],
            environment=environment(),
            data=self.data,
            budget=self.budget,
            **parts,
        )

    def __str__(self) -> str:
        """Words for messages."""
        return f"{self.label} seed {self.seed} ({self.placement})"


def make_cell(
    protocol: Protocol,
    method: str,
    *,
    seed: int,
    placement: str | None = None,
    mode: str = "controlled",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    data: Mapping[str, str] | None = None,
) -> Cell:
    """The cell that is asked for: protocol <- method's part <- recipe mode <- `changes`.

    Args:
        protocol: as loaded.
        method: built-in name, `path/to/file.py:Class` or `hf:NAME(key=value, ...)`.
        seed: of everything that is drawn.
        placement: its name; None for the protocol's default.
        mode: name of the recipe mode.
        changes: what `parse_changes` returns, from the command line. What it says of the data is
            the protocol's part, the same for every row.
        data: domain -> fingerprint of its files; None where `prepare` has still to look.

    Raises:
        UserError: unknown method, field, placement, mode, or a value that does not fit; no trials.
    """
    cell = name_cell(protocol, method, seed=seed, placement=placement, mode=mode, changes=changes)
    cell.make_method()  # wrong names and values show here, before any work
    return dataclasses.replace(cell, data=data)


def name_cell(
    protocol: Protocol,
    method: str,
    *,
    seed: int,
    placement: str | None = None,
    mode: str = "controlled",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Cell:
    """As `make_cell`, without a look at the method itself, which brings torch.

    It says where the record lies; whether there is such a method, with such fields, nobody knows.

    Raises:
        UserError: unknown placement, mode or recipe field; a file that is not there; no trials.
    """
    changes = {kind: dict(part) for kind, part in (changes or {}).items() if part}
    for domain, names in changes.pop("data", {}).items():
        protocol = protocol.excluding(domain, names)
    placement = placement or protocol.default_placement
    placed = protocol.placement(placement)
    budget = budget_of(protocol, method, mode, seed)
    tuned = budget.chosen if budget else {}
    recipe = protocol.recipe_for(method, mode, tuned | changes.get("recipe", {}))
    fields = protocol.changes_for(method, mode).fields | changes.get("method", {})
    for name in ("start_block", "end_block"):
        if name in changes.get("method", {}):
            raise UserError(f"--set method.{name}: the placement decides it; use --placement")
    fields = placed | fields
    label = label_of(protocol, method, mode, changes, tuned)
    return Cell(
        protocol=protocol.model_copy(update={"recipe": recipe}),
        method=method,
        label=label,
        fields=fields,
        placement=placement,
        mode=mode,
        seed=seed,
        budget=budget,
        code=methods.code_of(method),
    )


def label_of(
    protocol: Protocol,
    method: str,
    mode: str,
    changes: Mapping[str, Mapping[str, Any]],
    tuned: Mapping[str, Any] | None = None,
) -> str:
    """The name of a row in tables and paths: the method's, and a hash of what is changed in it.

    A change to what the protocol says anyway is none: such a row is the method's own.

    Args:
        protocol: with the recipe that the changes are made to.
        method: its name.
        mode: of the recipe.
        changes: "method" -> fields, "recipe" -> keys.
        tuned: recipe keys that trials have chosen.
    """
    fields = protocol.changes_for(method, mode).fields
    recipe = protocol.recipe_for(method, mode, dict(tuned or {})).model_dump(mode="json")
    kept = {
        "method": {k: v for k, v in changes.get("method", {}).items() if fields.get(k, ...) != v},
        "recipe": {
            key: value
            for key, value in changes.get("recipe", {}).items()
            if key not in _NOT_SEMANTICS_OF_RECIPE and recipe.get(key) != value
        },
    }
    kept = {kind: part for kind, part in kept.items() if part}
    return methods.label(method) + (f"+{digest_of(kept)[:8]}" if kept else "")


def prepare(cells: Iterable[Cell], data_root: Path, out: Path) -> tuple[Cell, ...]:
    """Whole cells of one protocol: each knows the data it reads and the model it starts from.

    Args:
        cells: as `make_cell` returns them.
        data_root: folder of the data sets.
        out: folder of the records, where those of a first stage lie too.

    Raises:
        UserError: a data set is missing or incomplete, a file of it cannot be read, weights cannot
            be fetched, or the first stage of a cell has no record in `out` or left no model.
    """
    cells = tuple(cells)
    data = fingerprints(cells[0].protocol, data_root) if cells else {}
    if not all(_begun(out / cell.path) for cell in cells):
        # A file that cannot be read would else show after the last step of the training.
        tasks.task_of(cells[0].protocol).check_data(cells[0].protocol, data_root)
    return tuple(
        dataclasses.replace(cell, data=data, first=_first_stage_digest(cell, out)) for cell in cells
    )


def _begun(record: Path) -> bool:
    """Whether a cell has its record, or a checkpoint."""
    return record.exists() or Path(f"{record}.checkpoint").exists()


def fingerprints(protocol: Protocol, data_root: Path) -> dict[str, str]:
    """Fingerprints of all that a protocol reads.

    Domain name -> fingerprint of its files, sources included (see `Card.fingerprint`); where a list
    file says which images belong to a domain, "<domain>.list" names it with its hash. "backbone" is
    the hash of weights for which the protocol states none.

    Raises:
        UserError: a data folder is not as its card says, or weights cannot be fetched.
    """
    from benchmarks.backbones import fingerprint  # brings torch

    prints = {}
    for domain in (*protocol.source, *protocol.scored_domains):
        card = load_card(domain.card, protocol.ground_truth)
        rendered = protocol.data_root is not None
        card.home(data_root, rendered=rendered)
        try:
            of_files = card.fingerprint(data_root, domain.split, exclude=domain.exclude)
        except Absent as error:
            if not rendered:
                raise
            raise UserError(
                f"{data_root}: the mini worlds there lack {domain.domain}; "
                f"python -m benchmarks mini render --root {data_root} adds it"
            ) from error
        prints[domain.domain] = of_files
        if listing := card.listing(data_root, domain.split):
            prints[f"{domain.domain}.list"] = listing
    return prints | fingerprint(protocol.backbone)


def first_stage_record(cell: Cell, out: Path) -> Path | None:
    """Where the record of a cell's first stage lies; None for a cell of one stage."""
    first = cell.protocol.starts_from
    return out / first / cell.path.relative_to(cell.protocol.name) if first else None


def _first_stage_digest(cell: Cell, out: Path) -> str:
    path = first_stage_record(cell, out)
    if path is None:
        return ""
    first = cell.protocol.starts_from
    words = f"{cell}: goes on from {first}"
    if not path.is_file():
        how = f"python -m benchmarks run {first} {cell.method} --seed {cell.seed} --out {out}"
        raise UserError(f"{words}, which has no record {path}; train that first: {how}")
    record = Record.load(path)
    if record.status != "done":
        raise UserError(f"{words}, but {path} is {record.status}")
    if not path.with_suffix(".safetensors").is_file():
        raise UserError(f"{words}, but the weights beside {path} are missing; run its cell again")
    return record.digest


def parse_changes(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`["recipe.lr=1e-3", "method.rank=8"]` as `{"recipe": {"lr": 0.001}, "method": {"rank": 8}}`.

    "data.DOMAIN.exclude=[a, b]" or "data.DOMAIN.exclude=names.txt" is `{"data": {DOMAIN: (a, b)}}`.

    Raises:
        UserError: not of that form, an unknown recipe field, or a file of names that is not there.
    """
    changes: dict[str, dict[str, Any]] = {"recipe": {}, "method": {}, "data": {}}
    for setting in settings:
        where = f"--set {setting:.100}"
        key, equals, text = setting.partition("=")
        kind, dot, name = key.partition(".")
        domain, _, field = name.rpartition(".")
        if not (equals and dot and name and kind in changes) or (
            kind == "data" and (field != "exclude" or not domain)
        ):
            raise UserError(
                f"{where}: expected recipe.FIELD=VALUE, method.FIELD=VALUE or "
                "data.DOMAIN.exclude=NAMES"
            )
        value = yaml_files.parse(text, where)
        if kind != "data":
            changes[kind][name] = value
            continue
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{where}: expected [NAME, ...], in quotes what reads as a number, or a .txt file"
            )
        changes[kind][domain] = excluded(names)
    yaml_files.validate(RecipeChanges, changes["recipe"], "--set recipe")
    return changes


def combinations(settings: Iterable[str]) -> list[dict[str, dict[str, Any]]]:
    """What `parse_changes` gives of each combination of values, where settings have several.

    `["method.rank=4,8", "recipe.lr=1e-3,1e-4"]` makes four. Commas in brackets or quotes part
    nothing.

    Raises:
        UserError: as `parse_changes`.
    """
    choices = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        several = _COMMA.split(text) if equals and not key.startswith("data.") else [text]
        choices.append([f"{key}{equals}{value.strip()}" for value in several])
    return [parse_changes(chosen) for chosen in itertools.product(*choices)]


def protocol_semantics(protocol: Protocol) -> dict[str, Any]:
    """The part of a protocol that every cell of it shares, as plain JSON values; no paths."""
    semantics = protocol.model_dump(mode="json", exclude=_NOT_SEMANTICS)
    # A path says nothing of the weights; their hash does, which random ones do not have.
    if semantics["backbone"].pop("weights") == "random":
        semantics["backbone"]["sha256"] = "random"
    return semantics


def settings_of(semantics: Mapping[str, Any]) -> dict[str, Any]:
    """What `protocol_semantics` gives, without the images that are left out.

    They are no setting: fingerprints say what was read.
    """
    return {
        key: [{k: v for k, v in domain.items() if k != "exclude"} for domain in value]
        if isinstance(value, list) and all(isinstance(item, dict) for item in value)
        else value
        for key, value in semantics.items()
    }
