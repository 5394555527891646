"""Names of methods: built in, `path/to/file.py:Class`, or `hf:NAME(key=value, ...)`.

The last is a tuner of Hugging Face peft. Values are Python literals; a bare word is a text.
"""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError

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


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each) for each in node.elts]
    return ast.literal_eval(node)


def _canonical(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, sort_keys=True, allow_nan=False)
