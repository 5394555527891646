"""Which library a detector is built from. Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from benchmarks.errors import UserError, closest

REFERENCE, FALLBACK = "detectron2", "torchvision"
# Each module has a class Detector(backbone, features, spec, classes).
_MODULES = {
    REFERENCE: "benchmarks.detection.detectron2_engine",
    FALLBACK: "benchmarks.detection.torchvision_engine",
}
_HOW_TO_GET_IT = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def resolve(asked: str) -> str:
    """The engine that "auto", "detectron2" or "torchvision" comes to on this machine.

    Raises:
        UserError: no such engine, or Detectron2 is asked for and not installed.
    """
    if asked not in ("auto", *_MODULES):
        raise UserError(f"no engine {asked!r}{closest(asked, ('auto', *_MODULES))}")
    here = _is_here()
    if asked == REFERENCE and not here:
        raise UserError(
            f"engine detectron2: Detectron2 is not installed here; install it as {_HOW_TO_GET_IT} "
            "says, or say --engine torchvision, which runs without it"
        )
    if asked != "auto":
        return asked
    return REFERENCE if here else FALLBACK


def load(asked: str) -> ModuleType:
    """The module of the engine that `asked` comes to.

    Raises:
        UserError: as `resolve`, or the engine's library cannot be imported.
    """
    engine = resolve(asked)
    try:
        return importlib.import_module(_MODULES[engine])
    except ImportError as error:
        raise UserError(
            f"engine {engine}: installed, but not to be imported ({error}); install it again, or "
            "say another --engine"
        ) from error


def announcement(asked: str) -> str:
    """One line for whoever starts a run: which engine, and why."""
    engine = resolve(asked)
    if asked != "auto":
        return f"engine {engine}, as asked"
    if engine == REFERENCE:
        return "engine auto: detectron2"
    return "engine auto: torchvision, since Detectron2 is not installed here"


def _is_here() -> bool:
    spec = importlib.util.find_spec(REFERENCE)
    return spec is not None and spec.origin is not None  # a folder of that name is no package
