"""Strict YAML in, canonical JSON and its digest out.

Reading refuses repeated keys, unknown keys and silent conversions. Every problem becomes one
`UserError` line that names the file, the key path, what is wrong there and the closest valid name.
"""

import hashlib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import UserError, closest

Model = TypeVar("Model", bound=BaseModel)
# Pydantic puts the branch of a union into the location of an error; it is no key of the file.
_UNION_TAGS = {"int", "float", "str", "bool"}


class Strict(BaseModel):
    """Base of what is read from YAML: immutable, unknown keys refused, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def added_field(default: Any) -> Any:
    """The field of a `Strict` model that came after records were committed.

    Its default has to mean what was done before. It is left out of dumps, and so of digests, while
    it has that value; older records then stay those of the same cell.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses repeated keys and reads `1e-3` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a float, so that PyYAML reads 1e-3 as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str, where: str) -> Any:
    """The value that YAML text stands for.

    Raises:
        UserError: the text is not valid YAML or repeats a key; `where` opens the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{where}:{line} {getattr(error, 'problem', error)}") from None


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: no such file, not readable as UTF-8 YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    data = parse(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return data


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it key by key; lists and plain values are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both else value
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
    key = ".".join(str(part) for part in location if part not in _UNION_TAGS)
    if first["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        known = parent.model_fields if parent else ()
        return f"unknown key {key}{closest(str(location[-1]), known)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = first["input"]
    shown = "" if first["type"] in {"missing", "value_error"} else f" (got {value!r:.60})"
    return f"{key}: {message}{shown}" if key else message


def _model_at(model: type[BaseModel] | None, location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class that a key path inside `model` leads to, for naming its valid keys."""
    for part in location:
        if model is None:
            return None
        if isinstance(part, int) or part not in model.model_fields:
            continue  # an index of a list, or a free key of a mapping: same element class
        model = _inner_model(model.model_fields[part].annotation)
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The first model class inside an annotation such as `tuple[Domain, ...]` or `Ema | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_inner_model(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def plain(value: Any) -> Any:
    """JSON values only, with sets in a fixed order."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
