"""Files of a data set: those that fit a pattern, images paired with labels, published lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import UserError
from benchmarks.protocol import Domain


def training_part(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that may be trained on; `folder` is where they lie.

    Raises:
        UserError: an excluded pair is not there; nothing is left to train on.
    """
    pairs = _not_excluded(domain, pairs)
    kept = pairs[: len(pairs) - domain.holdout] if len(pairs) > domain.holdout else []
    if not kept:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images, {domain.holdout} of them held out, leave none "
            f"to train on; add images to {folder} or hold out fewer"
        )
    return kept[: domain.limit]


def evaluation_part(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that are scored; `folder` is where they lie.

    Raises:
        UserError: an excluded pair is not there; fewer images than are held out.
    """
    pairs = _not_excluded(domain, pairs)
    if len(pairs) < domain.holdout:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images are fewer than the {domain.holdout} held out; "
            f"add images to {folder} or hold out fewer"
        )
    return pairs[len(pairs) - domain.holdout if domain.holdout else 0 :][: domain.limit]


def _not_excluded(domain: Domain, pairs: list[Pair]) -> list[Pair]:
    unknown = sorted(set(domain.exclude) - {pair.name for pair in pairs})
    if unknown:
        raise UserError(
            f"{domain.domain}: exclude: no pair of {domain.card} is called {unknown[0]!r}; correct "
            "the list"
        )
    return [pair for pair in pairs if pair.name not in domain.exclude]


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


def spelled(home: Path, names: tuple[str, ...], title: str, access: str) -> str:
    """The folder below `home` that bears one of the names, as it is spelled there.

    A link from one spelling to another is no second folder. Without names the result is "".

    Raises:
        UserError: no such folder, or two of them.
    """
    if not names:
        return ""
    wanted = {_plain(name) for name in names}
    found = [path for path in home.iterdir() if path.is_dir() and _plain(path.name) in wanted]
    if not found:
        raise Absent(
            f"{home / names[0]}: no such folder; unpack this domain of {title} there ({access})"
        )
    if len({path.resolve() for path in found}) > 1:
        both = " and ".join(sorted(path.name for path in found))
        raise UserError(
            f"{home}: holds {both}, two spellings of one domain, and nothing says which is meant; "
            "remove one of them"
        )
    return min(found, key=lambda path: (path.is_symlink(), path.name)).name


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def filled(pattern: str, **parts: str) -> str:
    """The pattern with some of its placeholders filled in."""
    for key, value in parts.items():
        pattern = pattern.replace(f"{{{key}}}", value)
    return pattern


def content_of(file: Path) -> bytes:
    """The bytes of a list file.

    Raises:
        Absent: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise Absent(
            f"{file}: the list of images cannot be read ({error.strerror}); unpack ImageSets too"
        ) from None


def listed_pairs(
    file: Path,
    home: Path,
    images: str,
    labels: tuple[str, ...],
    title: str,
    faults: list[str] | None,
) -> list[Pair]:
    """The pairs that a list names; a name that it repeats counts once."""
    try:
        lines = content_of(file).decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; restore the original list") from None
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise UserError(f"{file}: names no image; restore the original list")
    truth = max((matches(home, pattern) for pattern in labels), key=len)
    for kind, have in (("image", found := matches(home, images)), ("annotation", truth)):
        missing = [name for name in names if (name,) not in have]
        if faults is not None:
            faults += [f"{file}: {name!r} has no {kind}; unpack it again" for name in missing]
        elif missing:
            raise UserError(
                f"{file}: {len(missing)} of {len(names)} names have no {kind}, the first is "
                f"{missing[0]!r}; unpack {title} completely or correct the list"
            )
    complete = found.keys() & truth.keys()
    return [Pair(name, found[name,], truth[name,]) for name in names if (name,) in complete]
