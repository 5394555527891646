"""From the name of a method to the method, and what it contributes to a cell's digest.

A name is that of a built-in method, `path/to/file.py:Class`, or `hf:NAME(key=value, ...)`: a tuner
of Hugging Face peft. Values are Python literals; a bare word is a text.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from benchmarks.errors import UserError, closest
from benchmarks.yaml_files import plain

if TYPE_CHECKING:
    from soma.method import Method

HF = "hf:"
# Of the name of the module that a user's file becomes: it must hide no module of that name.
_PREFIX = "user_method_"
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
        UserError: a name of the form hf:... that cannot be read, or a file whose name has blanks or
            other characters that do not belong into paths.
    """
    path, name = split(spec)
    if path:
        text = f"{Path(path).stem}.{name}"
        if not re.fullmatch(r"\w[\w.+-]{,99}", text):
            raise UserError(f"method {spec}: a record cannot be named {text!r}; rename the file")
        return text
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
        names = [keyword.arg for keyword in call.keywords]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
        # Refuses what is no plain value, which no record could hold.
        _canonical(arguments)
    except (SyntaxError, ValueError, TypeError) as error:
        reason = getattr(error, "msg", None) or error
        raise UserError(
            f"method {spec}: cannot be read ({reason}); expected hf:NAME or hf:NAME(key=value, ...)"
        ) from None
    return call.func.id.upper(), dict(sorted(arguments.items()))


@cache
def code_of(spec: str) -> bytes:
    """The file of a user's own method, read once per command; b"" where a method is in none.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    path, _ = split(spec)
    if not path:
        return b""
    if not path.endswith(".py") or not isfile(path):
        raise UserError(f"method {spec}: no file {path}; expected path/to/file.py:Class")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"method {spec}: {path}: cannot be read: {error.strerror}") from None


def make_method(spec: str, fields: Mapping[str, Any], code: bytes | None = None) -> "Method":
    """A method by built-in name, `path/to/file.py:Class` or `hf:NAME(...)`, with its fields.

    `code` is what the file held where a cell was made; None for what it holds now.

    Raises:
        UserError: unknown method, unknown field (closest name given), a value that does not fit, or
            a user's file that raises anything, or whose class would ignore its fields.
    """
    from soma.method import require_own_fields

    with _guard(spec):
        kind = _class_of(spec, code)
        require_own_fields(kind)
        known = [field.name for field in dataclasses.fields(kind)]
        hints = typing.get_type_hints(kind)
        values = {}
        for name, value in (hf_fields(spec) | dict(fields)).items():
            if name not in known:
                raise UserError(f"method {spec}: no field {name!r}{closest(name, known)}")
            values[name] = _typed(f"method {spec}: field {name}", hints[name], value)
        made = kind(**values)
        # What a tuner of peft takes shows its type only deep in a layer.
        options = json.loads(getattr(made, "options", "{}"))
        for name, hint in getattr(made, "option_types", {}).items():
            # A class of peft's own has no schema: peft itself then says what is wrong.
            with suppress(PydanticSchemaGenerationError):
                _typed(f"method {spec}: {name}", hint, options[name])
        _fields(spec, made)
        return made


def _typed(what: str, hint: Any, value: object) -> Any:
    """The value as a type wants it.

    Raises:
        UserError: it is not of that type.
    """
    try:
        # By way of JSON: strict there, a list is a tuple and 1 a float, but no text is a number.
        return TypeAdapter(hint).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{what} = {value!r:.60}: {message}") from None


def _fields(spec: str, method: "Method") -> dict[str, Any]:
    """Fields of a method as plain JSON values.

    Raises:
        UserError: a value is not JSON.
    """
    fields = plain(method.described_fields())
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            what = f"is of type {type(value).__name__}"
            if isinstance(error, ValueError):
                what = f"= {value!r:.60} is not finite"
            raise UserError(
                f"method {spec}: field {name} {what}; write numbers, texts and lists, which a "
                "record can hold"
            ) from None
    return fields


@contextmanager
def _guard(spec: str) -> Iterator[None]:
    """What the code of a method raises becomes one line; a user's file may even call `sys.exit`."""
    path, _ = split(spec)
    try:
        yield
    # Ctrl-C is the user's, whatever code is running.
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # A fault of a built-in method is ours, and keeps its traceback.
        if not path and not isinstance(error, TypeError | ValueError):
            raise
        if not path:
            raise UserError(f"method {spec}: {error}") from None
        lines = [
            at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == path
        ]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        where = f"{path} line {lines[-1]}" if lines else path
        words = "".join(traceback.format_exception_only(error)[-1:]).strip()
        words = words.removeprefix(f"{_PREFIX}{Path(path).stem}.")
        # The suite's own words say the way out.
        own = lines or isinstance(error, SyntaxError)
        raise UserError(
            f"method {spec}: {where}: {words}{'; correct the file' if own else ''}"
        ) from None


@cache
def _module(path: str, code: bytes) -> types.ModuleType:
    module = types.ModuleType(f"{_PREFIX}{Path(path).stem}")
    module.__file__ = path
    # dataclasses look their module up by name.
    sys.modules[module.__name__] = module
    exec(compile(code, path, "exec", dont_inherit=True), module.__dict__)
    return module


def _class_of(spec: str, code: bytes | None) -> type["Method"]:
    path, name = split(spec)
    if spec.startswith(HF):
        from baselines.hf_peft import HFPeft

        return HFPeft
    if not path:
        from baselines import METHODS

        if spec not in METHODS:
            raise UserError(f"no method {spec!r}{closest(spec, METHODS)}")
        return METHODS[spec]
    module = _module(path, code_of(spec) if code is None else code)
    # Another file may have its name.
    sys.modules[module.__name__] = module
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and hasattr(kind, "attach")):
        known = [key for key, value in vars(module).items() if hasattr(value, "attach")]
        raise UserError(f"{path}: no method class {name!r}{closest(name, known)}")
    return kind


def method_semantics(spec: str, method: "Method", code: bytes | None = None) -> dict[str, Any]:
    """What a method is: name, fields, and the code or packages that decide what they mean.

    Raises:
        UserError: a field is not JSON, or a package that the method names is not installed.
    """
    path, name = split(spec)
    # Its fields say which.
    name = "hf" if spec.startswith(HF) else name
    with _guard(spec):
        semantics: dict[str, Any] = {"name": name, "fields": _fields(spec, method)}
        if packages := getattr(method, "packages", ()):
            semantics["packages"] = {
                package: importlib.metadata.version(package) for package in packages
            }
    # The code of a user's own method is part of what the cell is.
    if path:
        code = code_of(spec) if code is None else code
        semantics["code_sha256"] = hashlib.sha256(code).hexdigest()
    return semantics


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def _canonical(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, allow_nan=False)
