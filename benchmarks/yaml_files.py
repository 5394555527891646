"""Strict YAML in, canonical JSON and its digest out.

Reading refuses repeated keys, unknown keys and silent conversions. Every problem becomes one
`UserError` line that names the file, the key path, what is wrong there and the closest valid name.
"""

import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import UserError, closest

Model = TypeVar("Model", bound=BaseModel)
# Pydantic puts the branch of a union into the location of an error; it is no key of the file.
_UNION_TAGS = {"int", "float", "str", "bool"}
KIND = "kind: "  # opens the tag of a model in a union that the key `kind` chooses from


class Strict(BaseModel):
    """Base of what is read from YAML: immutable, unknown keys refused, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def added_field(default: Any) -> Any:
    """The field of a `Strict` model that came after records were committed.

    Its default has to mean what was done before. It is left out of dumps, and so of digests, while
    it has that value; older records then stay those of the same cell.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


# Bounds of text from outside: characters of a file, levels of nesting, characters with every alias
# written out. The suite's own files keep well below a tenth of them.
_LONGEST, _DEEPEST, _LARGEST = 200_000, 50, 1_000_000
_PLAIN = ("null", "bool", "merge")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Safe loader of plain values, within bounds; refuses repeated keys and unclear numbers."""

    # Those of YAML 1.1 but numbers and dates: it reads 1e-3 as text, 010 as 8 and 1:30 as 90.
    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, regex) for tag, regex in resolvers if tag.rpartition(":")[2] in _PLAIN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _fault(event, f"has the tag {event.tag!r}; write plain values, without tags")
        self._level += 1
        if self._level > _DEEPEST:
            raise _fault(event, f"is nested deeper than {_DEEPEST} levels; write it flatter")
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(node, yaml.ScalarNode) and _UNSEEN.search(node.value):
            raise _fault(event, f"{node.value!r:.60} holds a control character; write it without")
        if not isinstance(event, yaml.AliasEvent):
            node.extent = _extent(node)
        elif not hasattr(node, "extent"):
            raise _fault(
                event, f"the anchor {event.anchor!r} holds itself; write out what it stands for"
            )
        size, height = node.extent
        if size > _LARGEST or height > _DEEPEST:
            raise _fault(event, "is too large once its aliases are written out; use fewer")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "a key is a list or a mapping; keys are single words")
            merges = key.tag == "tag:yaml.org,2002:merge"
            name = key.value if merges else str(self.construct_object(key))
            if name in seen:
                raise _fault(key, f"key {name!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 80 or abs(value := int(node.value, 0)) >= 2**63:
            raise _fault(node, "an integer has more than 64 bits; write a smaller one")
        return value

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise _fault(node, f"{node.value!r:.60} is not a finite number; write one that is")
        return value


def _fault(at: yaml.Event | yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _extent(node: yaml.Node) -> tuple[int, int]:
    """Characters with aliases written out, and levels of nesting, of a node."""
    if isinstance(node, yaml.ScalarNode):
        return len(node.value) + 1, 1
    pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
    sizes, heights = zip((1, 0), *(inner.extent for pair in pairs for inner in pair), strict=True)
    return sum(sizes), 1 + max(heights)


_INTEGER = r"[-+]?(0|[1-9]\d*(_\d+)*|0x[\da-fA-F]+|0o[0-7]+|0b[01]+)"
_NUMBER = r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF|nan|NaN|NAN))"
for _name, _regex in (("int", _INTEGER), ("float", _NUMBER)):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_regex})$", re.ASCII), list("-+.0123456789")
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def parse(text: str, where: str) -> Any:
    """The value that YAML text stands for: mappings, lists and plain values, numbers finite.

    Raises:
        UserError: the text is not valid YAML, repeats a key, or is larger or nested deeper than
            anything that is meant; `where` opens the line.
    """
    if len(text) > _LONGEST:
        raise UserError(f"{where}: is longer than {_LONGEST:,} characters; write less")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(
            f"{where}:{line} {getattr(error, 'problem', None) or error!s:.200}"
        ) from None


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not readable as UTF-8 YAML, or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return data


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it key by key; lists and plain values are replaced whole.

    So is a mapping by one that states another `kind`: its keys mean something else.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        alike = both and value.get("kind", old.get("kind")) == old.get("kind")
        merged[key] = merge(old, value) if alike else value
    return merged


def validate(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`, types taken strictly ("320" and true are not the integer 320 or 1).

    Raises:
        UserError: the first problem found, as "where: key.path: what is wrong".
    """
    try:
        # Strict JSON mode: lists may become tuples, but nothing else is converted.
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {problem(error, model)}") from None


def problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error as "key.path: what is wrong; closest valid name"."""
    first = next(
        (item for item in error.errors() if item["type"] == "extra_forbidden"), error.errors()[0]
    )
    location = first["loc"]
    key = ".".join(str(part) for part in location if not _is_tag(part))
    if first["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        known = parent.model_fields if parent else ()
        return f"unknown key {key}{closest(str(location[-1]), known)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = first["input"]
    if first["type"] == "missing" and isinstance(location[-1], int):
        key, message = ".".join(map(str, location[:-1])), "one more value has to follow"
    elif first["type"] == "too_short":  # whose own words name a class of Python's
        message = f"needs {first['ctx']['min_length']} or more values"
    elif first["type"] == "missing" or first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    if isinstance(value, dict) and str(first["type"]).endswith("_kind"):
        value = value.get("kind")
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return f"{key}: {message} (got {text:.60})" if key else f"{message} (got {text:.60})"


def _is_tag(part: Any) -> bool:
    return isinstance(part, str) and (part in _UNION_TAGS or part.startswith(KIND))


def _model_at(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class that a key path inside `model` leads to, for naming its valid keys."""
    models = [model]
    for part in location:
        if not models:
            return None
        if isinstance(part, str) and part.startswith(KIND):
            models = [model for model in models if part.removeprefix(KIND) in _kinds(model)]
        elif not isinstance(part, int) and part in models[0].model_fields:
            models = _inner_models(models[0].model_fields[part].annotation)
        # else an index of a list, or a free key of a mapping: same element class
    return models[0] if models else None


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return typing.get_args(model.model_fields["kind"].annotation)


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    """The model classes inside an annotation such as `tuple[Domain, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _inner_models(part)]


def plain(value: Any) -> Any:
    """JSON values only, with sets in a fixed order."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Keys under which two nested mappings differ, such as "engine, recipe.lr"; "" if they agree.

    At most three are named.
    """
    keys = list(_differing(one, other))
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(one.keys() | other.keys()):
        mine, its = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from _differing(mine, its, f"{prefix}{key}.")
        elif mine != its:
            yield f"{prefix}{key}"


_ABSENT = object()


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
