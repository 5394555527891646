"""Whether a method is implemented correctly: its properties on small random backbones, measured.

The properties are those of `training` (before and while training), of `computation` (the output
and its gradient) and of `deployment` (copies, files, folding, and the ways a forward pass can run).
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from benchmarks.conformance.computation import COMPUTATION
from benchmarks.conformance.deployment import DEPLOYMENT
from benchmarks.conformance.method_under_test import (
    DEPTH,
    KINDS,
    Broken,
    MethodUnderTest,
    NothingToCheck,
    build_vit,
    changed,
    snapshot,
    some,
)
from benchmarks.conformance.training import TRAINING
from soma import Method, NotApplicable

__all__ = ["KINDS", "Finding", "build_vit", "check_method"]

PROPERTIES = TRAINING | COMPUTATION | DEPLOYMENT
FITS = "fits the backbone"
SMALL = 4  # what numbers become that are too large for the small backbones


@dataclass(frozen=True)
class Finding:
    """One property of a method on one backbone: what was measured, in words and numbers."""

    property: str
    verdict: Literal["pass", "fail", "n/a"]
    measured: str


def check_method(method: Method, kind: str, skip: Collection[str] = ()) -> list[Finding]:
    """Measure every property of a method on one kind of backbone, except those in `skip`.

    A method that does not apply gives a single finding, "n/a" with its reason. Whatever a method
    raises where it should not is a failed property.
    """
    with _own_state():
        method, first = _fitted(method, kind)
        findings = [first]
        if first.verdict == "pass":
            test = MethodUnderTest(method, kind)
            findings += [_examine(test, name) for name in PROPERTIES if name not in skip]
    return findings


def _examine(test: MethodUnderTest, name: str) -> Finding:
    try:
        return Finding(name, "pass", PROPERTIES[name](test))
    except NothingToCheck as reason:
        return Finding(name, "n/a", _line(reason))
    except Broken as error:
        return Finding(name, "fail", _line(error))
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        return Finding(name, "fail", f"{type(error).__name__}: {_line(error)}")


def _fitted(method: Method, kind: str) -> tuple[Method, Finding]:
    """The method, with smaller numbers if its own are too large here, and whether it fits."""
    vit = build_vit(kind)
    before, words = snapshot(vit), "with its fields as they are"
    try:
        try:
            MethodUnderTest(method, kind).adapted(vit)
        except ValueError:
            method, words = _shrunk(method)
            MethodUnderTest(method, kind).adapted()
        return method, Finding(FITS, "pass", words)
    except NotApplicable as reason:
        if moved := changed(before, snapshot(vit)):
            return method, Finding(FITS, "fail", f"refuses, but has changed {some(moved)} before")
        if not str(reason):
            return method, Finding(FITS, "fail", "refuses without a reason")
        return method, Finding(FITS, "n/a", _line(reason))
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        return method, Finding(FITS, "fail", f"{type(error).__name__}: {_line(error)} ({words})")


def _shrunk(method: Method) -> tuple[Method, str]:
    """The method with every whole number above `SMALL` set to it; the changes in words."""
    changes = {}
    for field in fields(method):
        value = getattr(method, field.name)
        # At least one block has to be adapted.
        limit = DEPTH - 1 if field.name == "start_block" else SMALL
        if field.init and type(value) is int and value > limit:
            changes[field.name] = limit
    words = ", ".join(f"{name} {getattr(method, name)} -> {new}" for name, new in changes.items())
    return replace(method, **changes), f"made small for it: {words or 'no field is large'}"


@contextmanager
def _own_state() -> Iterator[None]:
    """One thread, no cache of singular values on disk, the caller's random state untouched."""
    threads, cache = torch.get_num_threads(), os.environ.get("SOMA_CACHE")
    # Sums in one order: what is compared to the bit must not depend on the machine.
    torch.set_num_threads(1)
    # Else a start that is wrong could come from what an earlier version kept.
    os.environ["SOMA_CACHE"] = ""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        if cache is None:
            del os.environ["SOMA_CACHE"]
        else:
            os.environ["SOMA_CACHE"] = cache


def _line(error: Exception) -> str:
    """The first lines of a message as one, since compilers write pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
