"""In what protocols differ: a field per line, a protocol per column."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.protocol import Protocol

# Names and words; recipe modes are changes to what is compared here.
_LEFT_OUT = {"name", "profile", "title", "note", "data_root", "recipes"}
NOTHING = "-"
SAYS = f"{NOTHING}: not there, nothing, or what it is where a protocol does not say"
_SHA = re.compile("[0-9a-f]{64}")
_CARD = re.compile(r"\.card$")  # a field of every domain


def differing(protocols: Sequence[Protocol]) -> list[tuple[str, list[str]]]:
    """Field -> its value in every protocol, for fields in which they differ.

    Domains go by their names, methods by theirs; "-" as `SAYS` says. Recipe modes
    other than controlled are left out.
    """
    held = _shortened([dict(_fields(protocol)) for protocol in protocols])
    lines = []
    names = [*dict.fromkeys(name for fields in held for name in fields)]
    sections = [*dict.fromkeys(name.partition(".")[0] for name in names), "methods"]
    # The longest comes last.
    sections.remove("methods")
    for name in sorted(names, key=lambda name: sections.index(name.partition(".")[0])):
        values = [fields.get(name, NOTHING) for fields in held]
        if len({*values}) > 1:
            lines.append((name, values))
    return lines


def _shortened(held: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
    """The fields, with one line for a domain that some of the protocols do not have."""
    for name in dict.fromkeys(name for fields in held for name in fields if _CARD.search(name)):
        domain = _CARD.sub("", name)
        # Domains that all protocols have are compared field by field.
        if all(name in fields for fields in held):
            continue
        for fields in held:
            own = {key: fields.pop(key) for key in [*fields] if key.startswith(f"{domain}.")}
            if own:
                kept = (own.get(f"{domain}.{key}") for key in ("card", "split", "size", "holdout"))
                fields[domain] = " ".join(value for value in kept if value not in (None, "0"))
    return held


def _fields(protocol: Protocol) -> Iterator[tuple[str, str]]:
    dump = protocol.model_dump(mode="json", exclude=_LEFT_OUT)
    methods = dump.pop("methods")
    yield from _flat(dump)
    for method, changes in methods.items():
        set_here = changes["fields"] | _known(changes["recipe"])
        words = ", ".join(f"{name} {_words(value)}" for name, value in set_here.items())
        yield f"methods.{method}", words or NOTHING


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in _known(value).items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _flat(item, f"{name}.")
        elif isinstance(item, list) and item and all(isinstance(one, dict) for one in item):
            # Lists of settings: domains have a name, anything else its place.
            for place, one in enumerate(item):
                rest = {key: value for key, value in one.items() if key != "domain"}
                yield from _flat(rest, f"{name}.{one.get('domain', place)}.")
        else:
            yield name, _words(item)


def _known(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item not in (None, [], {}, "")}


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and _SHA.fullmatch(value):
        return value[:12]
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
