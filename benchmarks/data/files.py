"""Files of a data set: those that fit a pattern, images paired with labels, published lists."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

from benchmarks.errors import UserError
from benchmarks.protocol import Domain


def training_part(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that may be trained on; `folder` is where they lie.

    Raises:
        UserError: nothing is left to train on.
    """
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
        UserError: fewer images than are held out, or none at all.
    """
    if not pairs or len(pairs) < domain.holdout:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images are fewer than the {domain.holdout} held out, "
            f"or none to score; add images to {folder}, hold out or exclude fewer"
        )
    return pairs[len(pairs) - domain.holdout if domain.holdout else 0 :][: domain.limit]


def refuse_overlap(trained: dict[Domain, list[Pair]], scored: dict[Domain, list[Pair]]) -> None:
    """No image may be both trained on and scored; both are domain -> pairs.

    Raises:
        UserError: one is.
    """
    seen = {pair.image: domain for domain, pairs in trained.items() for pair in pairs}
    for domain, pairs in scored.items():
        if both := [pair.image for pair in pairs if pair.image in seen]:
            raise UserError(
                f"{domain.domain}: {len(both)} of its {len(pairs)} images are trained on in "
                f"{seen[both[0]].domain}, the first is {both[0]}; correct the lists, or hold out "
                "as many there"
            )


CONVERTED = "_labelTrainIds"  # other toolkits write converted labels beside the originals


@dataclass(frozen=True)
class Pair:
    """One image with its ground truth."""

    name: str
    image: Path
    label: Path


class Absent(UserError):
    """A split is not there: its folder, its list, all of its images or labels are missing."""


Files = dict[tuple[str, ...], Path]  # by name, and values of a pattern's other placeholders


def most(home: Path, patterns: tuple[str, ...]) -> Files:
    """Files that fit the pattern which most files fit: a half-unpacked layout hides no other."""
    return max((matches(home, pattern) for pattern in patterns), key=len)


def paired(
    found: Files, truth: Files, title: str, faults: dict[str, str] | None = None
) -> list[Pair]:
    """Images with their ground truth.

    Args:
        found: images.
        truth: ground truth.
        title: name of the data set, for messages.
        faults: takes a line for each file without its counterpart -> the name of the image, instead
            of an error.

    Raises:
        UserError: an image without label, a label without image.
    """
    for kind, have, others in (("label", found, truth), ("image", truth, found)):
        missing = sorted(have.keys() - others.keys())
        if faults is not None:
            for key in missing:
                faults[f"{have[key]}: has no {kind}; unpack the {kind}s again"] = key[0]
        elif missing:
            raise UserError(
                f"{have[missing[0]]}: has no {kind} ({len(missing)} of {len(have)} files lack "
                f"theirs); unpack the {kind}s of {title} completely, or exclude them (`verify "
                "--write-faults FILE` lists them)"
            )
    return [Pair(key[0], found[key], truth[key]) for key in found if key in truth]


def matches(home: Path, pattern: str) -> Files:
    """Files that fit a pattern, by (name, values of the other placeholders in alphabetic order).

    Capitals in the ending make no difference. "._NAME" beside NAME is what macOS knows of it.

    Raises:
        UserError: two files differ in the capitals of their endings only.
    """
    # split() with one group returns text, placeholder, text, placeholder, ..., text
    parts = re.split(r"{(\w+)}", pattern)
    texts, fields = parts[::2], parts[1::2]
    groups = [f"(?P<{field}>[^/]+)" for field in fields]
    stem, dot, ending = texts[-1].rpartition(".")
    fixed = [*map(re.escape, texts[:-1]), f"{re.escape(stem + dot)}(?i:{re.escape(ending)})"]
    regex = re.compile("".join(a + b for a, b in zip(fixed, [*groups, ""], strict=True)))
    order = ["name", *sorted(set(fields) - {"name"})]
    any_case = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)
    glob, files = "*".join([*texts[:-1], stem + dot + any_case]), {}
    # Some unpackers leave an archive's folders in the names of files: "RGB\\0001.png".
    for path in (*home.glob(glob.replace("/", "\\")), *home.glob(glob)):
        match = regex.fullmatch(inside(path, home))
        if not match or match["name"].endswith(CONVERTED) or path.name.startswith("._"):
            continue
        key = tuple(match[field] for field in order)
        if (other := files.get(key, path)) != path and other.parent == path.parent:
            raise UserError(f"{path}: {other.name} is there too; remove one of them")
        files[key] = path
    return files


def inside(file: Path, home: Path) -> str:
    """Path of a file below `home` as the archive spells it, with "/" and a small ending."""
    path = file.relative_to(home).as_posix().replace("\\", "/")
    return path.removesuffix(file.suffix) + file.suffix.lower()


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
    kept = [pair for pair in pairs if pair.name in wanted]
    missing = sorted(wanted - {pair.name for pair in kept})
    if missing:
        raise (UserError if kept else Absent)(
            f"{where}: names {missing[0]!r}, which is not there ({len(missing)} of {len(wanted)} "
            "are not); unpack the data set completely or correct the list"
        )
    return kept


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
    # File systems list a folder in orders of their own.
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def spelled(home: Path, names: tuple[str, ...], title: str, access: str) -> str:
    """The folder below `home` that bears one of the names, as it is spelled there.

    A link from one spelling to another is no second folder. Without names the result is "".

    Raises:
        Absent: no such folder.
        UserError: two of them.
    """
    if not names:
        return ""
    wanted = {_plain(name) for name in names}
    folders = [path for path in home.iterdir() if path.is_dir() and _plain(path.name) in wanted]
    if not folders:
        raise Absent(
            f"{home / names[0]}: no such folder; unpack this domain of {title} there ({access})"
        )
    if len({path.resolve() for path in folders}) > 1:
        both = " and ".join(sorted(path.name for path in folders))
        raise UserError(
            f"{home}: holds {both}, two spellings of one domain, and nothing says which is meant; "
            "remove one of them"
        )
    return min(folders, key=lambda path: (path.is_symlink(), path.name)).name


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


def names_in(file: Path, known: Set[str] = frozenset()) -> list[str]:
    """The image names in a list, one a line; a name that it repeats counts once.

    VOC's lists per class have a column of 1, 0 and -1, others have endings: a line that is in
    `known` without them is that name.

    Raises:
        UserError: it cannot be read, is no text, or names nothing.
    """
    try:
        # Editors on Windows put a mark before the first name.
        lines = content_of(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; restore the original list") from None
    names = list(dict.fromkeys(_name(line.strip(), known) for line in lines if line.strip()))
    if not names:
        raise UserError(f"{file}: names no image; restore the original list")
    return names


def excluded(entries: Iterable[str]) -> tuple[str, ...]:
    """Names of images that are to be left out, sorted.

    An entry is a name, or a .txt file of names, one a line; lines that begin with # are remarks.

    Raises:
        UserError: no such file, or it names nothing.
    """
    names: set[str] = set()
    for entry in entries:
        if not entry.endswith(".txt"):
            names.add(entry)
        elif not isfile(entry):
            raise UserError(f"{entry}: no such file of names to exclude, one a line")
        else:
            names |= {name for name in names_in(Path(entry)) if not name.startswith("#")}
    return tuple(sorted(names))


def _name(line: str, known: Set[str]) -> str:
    without_label = re.sub(r"\s+(-1|0|1)$", "", line)
    stem = re.sub(r"\.(jpe?g|png|xml)$", "", without_label, flags=re.IGNORECASE)
    return next((name for name in (line, without_label, stem) if name in known), line)


def listed_pairs(
    names: list[str],
    file: Path,
    found: Files,
    truth: Files,
    title: str,
    faults: dict[str, str] | None = None,
) -> list[Pair]:
    """The pairs of `names`, those that the list `file` gives; other arguments as of `paired`.

    Raises:
        UserError: a name without image or annotation.
    """
    for kind, have in (("image", found), ("annotation", truth)):
        missing = [name for name in names if (name,) not in have]
        if faults is not None:
            faults |= {f"{file}: {n!r} has no {kind}; unpack it again": n for n in missing}
        elif missing:
            raise UserError(
                f"{file}: {len(missing)} of {len(names)} names have no {kind}, the first is "
                f"{missing[0]!r}; unpack {title} completely, correct the list, which has one "
                "image name a line, or exclude them (`verify --write-faults FILE` lists them)"
            )
    complete = found.keys() & truth.keys()
    return [Pair(name, found[name,], truth[name,]) for name in names if (name,) in complete]
