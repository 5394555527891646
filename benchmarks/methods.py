"""From the name of a method to the method, and what it contributes to a cell's digest.

A name is that of a built-in method, `path/to/file.py:Class`, or `hf:NAME(key=value, ...)`: a tuner
of Hugging Face peft. Values are Python literals; a bare word is a text.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from benchmarks.errors import UserError, closest
from benchmarks.yaml_files import plain

if TYPE_CHECKING:
    from soma.method import Method

HF = "hf:"
_WORDS = {"true": True, "false": False, "null": None}


def split(spec: str) -> tuple[str, str]:
    """File ("" where the method is in none) and name."""
    if spec.startswith(HF):
        return "", spec
    path, _, name = spec.rpartition(":")
    return path, name


def label(spec: str) -> str:
    """How a method is called in tables and paths, safe for every file system.

    Raises:
        UserError: a name of the form hf:... that cannot be read.
    """
    path, name = split(spec)
    if path:
        return f"{Path(path).stem}.{name}"
    if not spec.startswith(HF):
        return spec
    tuner, arguments = hf(spec)
    text = "-".join([f"hf-{tuner}", *(f"{key}={value}" for key, value in arguments.items())])
    if re.fullmatch(r"[\w.=+-]{1,80}", text, re.ASCII):
        return text
    return f"hf-{tuner}-{hashlib.sha256(_canonical(arguments).encode()).hexdigest()[:8]}"


def hf_fields(spec: str) -> dict[str, Any]:
    """Fields of the method that a name of the form hf:... sets; none for other names.

    Raises:
        UserError: it cannot be read.
    """
    if not spec.startswith(HF):
        return {}
    tuner, arguments = hf(spec)
    return {"tuner": tuner, "options": _canonical(arguments)}


def hf(spec: str) -> tuple[str, dict[str, Any]]:
    """`hf:VeRA(r=64)` as ("VERA", {"r": 64}), the arguments in the order of their names.

    Raises:
        UserError: it cannot be read.
    """
    try:
        node = ast.parse(spec.removeprefix(HF), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a name with named arguments")
        arguments = {str(each.arg): _value(each.value) for each in call.keywords}
        _canonical(arguments)  # plain values only
    except (SyntaxError, ValueError, TypeError) as error:
        reason = getattr(error, "msg", None) or error
        raise UserError(
            f"method {spec}: cannot be read ({reason}); expected hf:NAME or hf:NAME(key=value, ...)"
        ) from None
    return call.func.id.upper(), dict(sorted(arguments.items()))


def make_method(spec: str, fields: Mapping[str, Any]) -> "Method":
    """A method by built-in name, `path/to/file.py:Class` or `hf:NAME(...)`, with its fields.

    Raises:
        UserError: unknown method, unknown field (closest name given) or a value that does not fit.
    """
    kind = _class_of(spec)
    known = [field.name for field in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in (hf_fields(spec) | dict(fields)).items():
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
    path, name = split(spec)
    if spec.startswith(HF):
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
    path, name = split(spec)
    name = "hf" if spec.startswith(HF) else name  # its fields say which
    semantics: dict[str, Any] = {"name": name, "fields": plain(dataclasses.asdict(method))}
    if packages := getattr(method, "packages", ()):
        semantics["packages"] = {each: importlib.metadata.version(each) for each in packages}
    if path:  # the code of a user's own method is part of what the cell is
        semantics["code_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return semantics


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each) for each in node.elts]
    return ast.literal_eval(node)


def _canonical(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, allow_nan=False)
