"""A cell: one protocol, method, placement, recipe mode and seed, resolved to the last value."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import typing
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from benchmarks import method_names, yaml_files
from benchmarks.canonical import digest_of, plain
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Protocol, RecipeChanges
from benchmarks.trials import Budget, budget_of

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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of the grid; made by `make_cell`.

    Attributes:
        protocol: with the recipe of this cell put in, so that tasks read `protocol.recipe`.
        method: built-in name, `path/to/file.py:Class` or `hf:NAME(key=value, ...)`. label: its
            name in tables and paths.
        fields: what the method is built with, start block included.
        placement, mode: names of the placement and the recipe mode. data: domain -> fingerprint.
        budget: the trials that chose the recipe, if any did. first: digest of the record that it
            goes on from, if it does.
    """

    protocol: Protocol
    method: str
    label: str
    fields: dict[str, Any]
    placement: str
    mode: str
    seed: int
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    budget: Budget | None = None
    first: str = ""

    def make_method(self) -> "Method":
        """The method of this cell, not yet attached to anything."""
        return make_method(self.method, self.fields)

    def reading(self, data: Mapping[str, str]) -> "Cell":
        """The same cell on data with these fingerprints (domain -> fingerprint)."""
        return dataclasses.replace(self, data=dict(data))

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Everything that decides the numbers of this cell, as plain JSON values; no paths."""
        engine = self.protocol.engine_here
        return {
            "protocol": protocol_semantics(self.protocol),
            "recipe": self.protocol.recipe.model_dump(
                mode="json", exclude=_NOT_SEMANTICS_OF_RECIPE
            ),
            "recipe_mode": self.mode,
            "method": method_semantics(self.method, self.make_method()),
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

    @property
    def path(self) -> Path:
        """Where the record lies, relative to the folder of records."""
        folder = self.placement if self.mode == "controlled" else f"{self.placement}+{self.mode}"
        return Path(self.protocol.name) / folder / self.label / f"seed{self.seed}.json"

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
    """Resolve a cell: protocol <- method's part <- recipe mode <- `changes` of the command line.

    `changes` is what `parse_changes` returns, `data` maps domains to fingerprints of their files;
    without `placement` it is the protocol's default.

    Raises:
        UserError: unknown method, field, placement, mode, or a value that does not fit; no trials.
    """
    placement = placement or protocol.default_placement
    if placement not in protocol.placements:
        known = closest(placement, protocol.placements)
        raise UserError(f"{protocol.name}: no placement {placement!r}{known}")
    changes = {kind: dict(part) for kind, part in (changes or {}).items() if part}
    budget = budget_of(protocol, method, mode, seed)
    tuned = budget.chosen if budget else {}
    recipe = protocol.recipe_for(method, mode, tuned | changes.get("recipe", {}))
    fields = protocol.changes_for(method, mode).fields | changes.get("method", {})
    if "start_block" in changes.get("method", {}):
        raise UserError("--set method.start_block: the placement decides it; use --placement")
    fields.setdefault("start_block", protocol.placements[placement])
    make_method(method, fields)  # wrong names and values show here, before any work
    label = method_names.label(method)
    recipe_changes = changes.pop("recipe", {}).items()
    if kept := {key: value for key, value in recipe_changes if key not in _NOT_SEMANTICS_OF_RECIPE}:
        changes["recipe"] = kept
    if changes:
        label += f"+{digest_of(changes)[:8]}"
    return Cell(
        protocol=protocol.model_copy(update={"recipe": recipe}),
        method=method,
        label=label,
        fields=fields,
        placement=placement,
        mode=mode,
        seed=seed,
        data=dict(data or {}),
        budget=budget,
    )


def parse_changes(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`["recipe.lr=1e-3", "method.rank=8"]` as `{"recipe": {"lr": 0.001}, "method": {"rank": 8}}`.

    Raises:
        UserError: not of that form, or an unknown recipe field.
    """
    changes: dict[str, dict[str, Any]] = {"recipe": {}, "method": {}}
    for setting in settings:
        key, equals, text = setting.partition("=")
        kind, dot, name = key.partition(".")
        if not (equals and dot and name and kind in changes):
            raise UserError(f"--set {setting}: expected recipe.FIELD=VALUE or method.FIELD=VALUE")
        changes[kind][name] = yaml_files.parse(text, f"--set {setting}")
    yaml_files.validate(RecipeChanges, changes["recipe"], "--set recipe")
    return changes


def make_method(spec: str, fields: Mapping[str, Any]) -> "Method":
    """A method by built-in name, `path/to/file.py:Class` or `hf:NAME(...)`, with its fields.

    Raises:
        UserError: unknown method, unknown field (closest name given) or a value that does not fit.
    """
    kind = _class_of(spec)
    known = [field.name for field in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in (method_names.hf_fields(spec) | dict(fields)).items():
        if name not in known:
            raise UserError(f"method {spec}: no field {name!r}{closest(name, known)}")
        try:
            adapter = TypeAdapter(hints[name])
            values[name] = adapter.validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UserError(f"method {spec}: field {name} = {value!r}: {message}") from None
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"method {spec}: {error}") from None


def _class_of(spec: str) -> type["Method"]:
    path, name = method_names.split(spec)
    if spec.startswith(method_names.HF):
        from baselines.hf_peft import HFPeft

        return HFPeft
    if not path:
        from baselines import METHODS

        if spec not in METHODS:
            raise UserError(f"no method {spec!r}{closest(spec, METHODS)}")
        return METHODS[spec]
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise UserError(f"method {spec}: no file {path}; expected path/to/file.py:Class")
    module_spec = importlib.util.spec_from_file_location(f"user_method_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickle look their module up by name
    try:
        module_spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, TypeError, AttributeError) as error:
        raise UserError(f"method {spec}: the file does not import: {error}") from None
    kind = getattr(module, name, None)
    if not (dataclasses.is_dataclass(kind) and hasattr(kind, "attach")):
        known = [key for key, value in vars(module).items() if hasattr(value, "attach")]
        raise UserError(f"{path}: no method class {name!r}{closest(name, known)}")
    return kind


def method_semantics(spec: str, method: "Method") -> dict[str, Any]:
    """What a method is: name, fields, and the code or packages that decide what they mean."""
    path, name = method_names.split(spec)
    name = "hf" if spec.startswith(method_names.HF) else name  # its fields say which
    semantics: dict[str, Any] = {"name": name, "fields": plain(dataclasses.asdict(method))}
    if packages := getattr(method, "packages", ()):
        semantics["packages"] = {each: importlib.metadata.version(each) for each in packages}
    if path:  # the code of a user's own method is part of what the cell is
        semantics["code_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return semantics


def protocol_semantics(protocol: Protocol) -> dict[str, Any]:
    """The part of a protocol that every cell of it shares, as plain JSON values; no paths."""
    semantics = protocol.model_dump(mode="json", exclude=_NOT_SEMANTICS)
    if semantics["backbone"].pop("weights") == "random":
        semantics["backbone"]["sha256"] = "random"
    return semantics
