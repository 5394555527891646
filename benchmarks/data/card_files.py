"""Files of a data set: those that fit a pattern, images paired with labels, published lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import UserError

CONVERTED = "_labelTrainIds"  # other toolkits write converted labels beside the originals


@dataclass(frozen=True)
class Pair:
    """One image with its ground truth."""

    name: str
    image: Path
    label: Path


class Absent(UserError):
    """A split is not there: its folder, its list, all of its images or labels are missing."""


def paired(
    home: Path,
    images: str,
    labels: tuple[str, ...],
    title: str,
    access: str,
    faults: list[str] | None = None,
) -> list[Pair]:
    """All files below `home` that fit the pattern of images, with what fits one of the labels'.

    Args:
        home: folder of the data set.
        images: pattern of the images.
        labels: patterns of the ground truth, one per layout.
        title: name of the data set, for messages.
        access: where it comes from, for messages.
        faults: takes a line for each file without its counterpart, instead of an error.

    Raises:
        Absent: no image or no label at all.
        UserError: an image without label, a label without image.
    """
    found = matches(home, images)
    # A half-unpacked second layout must not hide the complete one.
    truth = max((matches(home, pattern) for pattern in labels), key=len)
    for kind, have, patterns in (("image", found, (images,)), ("label", truth, labels)):
        if not have:
            wanted = " or ".join(patterns)
            raise Absent(f"{home}: no {kind} matches {wanted}; unpack {title} there ({access})")
    for kind, have, others in (("label", found, truth), ("image", truth, found)):
        missing = sorted(have.keys() - others.keys())
        if faults is not None:
            faults += [f"{have[key]}: has no {kind}; unpack the {kind}s again" for key in missing]
        elif missing:
            raise UserError(
                f"{have[missing[0]]}: has no {kind} ({len(missing)} of {len(have)} files lack "
                f"theirs); unpack the {kind}s of {title} completely"
            )
    return [Pair(key[0], found[key], truth[key]) for key in found if key in truth]


def matches(home: Path, pattern: str) -> dict[tuple[str, ...], Path]:
    """Files that fit a pattern, by (name, values of the other placeholders in alphabetic order)."""
    # split() with one group returns text, placeholder, text, placeholder, ..., text
    parts = re.split(r"{(\w+)}", pattern)
    texts, fields = parts[::2], parts[1::2]
    groups = [f"(?P<{field}>[^/]+)" for field in fields]
    regex = re.compile(
        "".join(re.escape(text) + group for text, group in zip(texts, [*groups, ""], strict=True))
    )
    order = ["name", *sorted(set(fields) - {"name"})]
    glob, found = "*".join(texts), {}
    # Some unpackers leave an archive's folders in the names of files: "RGB\\0001.png".
    for path in (*home.glob(glob.replace("/", "\\")), *home.glob(glob)):
        match = regex.fullmatch(inside(path, home))
        if match and not match["name"].endswith(CONVERTED):
            found[tuple(match[field] for field in order)] = path
    return found


def inside(file: Path, home: Path) -> str:
    """Path of a file below `home` as the archive spells it, with "/"."""
    return file.relative_to(home).as_posix().replace("\\", "/")


def listed(file: Path, sha256: str) -> list[str]:
    """The names in a published list, one a line.

    Raises:
        UserError: it cannot be read, or is not the list with that hash.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); restore the published list"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{file}: is not the list that its card names; restore the published one")
    return content.decode().split()


def chosen(pairs: Iterable[Pair], names: Iterable[str], where: str) -> list[Pair]:
    """Those of the pairs that are named, in the order of the pairs.

    Raises:
        Absent: no pair bears any of the names; `where` opens the line.
        UserError: a name that no pair bears.
    """
    wanted = set(names)
    found = [pair for pair in pairs if pair.name in wanted]
    missing = sorted(wanted - {pair.name for pair in found})
    if missing:
        raise (UserError if found else Absent)(
            f"{where}: names {missing[0]!r}, which is not there ({len(missing)} of {len(wanted)} "
            "are not); unpack the data set completely or correct the list"
        )
    return found


def size_of(file: Path) -> int:
    """Bytes of a file.

    Raises:
        UserError: it is a broken link, or cannot be reached.
    """
    try:
        return file.stat().st_size
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); unpack it again") from None


def digest(lines: Iterable[str]) -> str:
    """SHA-256 over sorted lines."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
