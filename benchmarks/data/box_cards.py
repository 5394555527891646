"""Cards of data sets with boxes: folders of several spellings, list files, levels of fog."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from benchmarks import yaml_files
from benchmarks.data import cards
from benchmarks.data.card_files import Absent, Pair, digest, inside, matches, paired, size_of
from benchmarks.data.cards import Card, DataSet, Split, load_card
from benchmarks.errors import UserError
from benchmarks.yaml_files import Strict


class BoxSplit(Split):
    """One split. Patterns may hold {folder} and {beta} beside {name} and {city}.

    Attributes:
        folder: names that {folder} may have, the usual one first; capitals make no difference,
            nor does a hyphen in place of an underscore.
        list_file: one image name a line; without, every image that fits the pattern.
        beta: values of {beta}, the attenuation of rendered fog per metre, as file names spell them.
        empty: whether images without a box belong to the split.
    """

    folder: tuple[str, ...] = ()
    list_file: str | None = None
    beta: tuple[str, ...] = ()
    empty: Literal["keep", "drop"] = "keep"


class Boxes(Strict):
    """How boxes are stored.

    Attributes:
        encoding: "voc_xml", an XML per image with 1-based inclusive pixels, or
            "cityscapes_instances", an image of instance ids or the polygons it is painted from.
        classes: names on disk in label order. ids: Cityscapes label id of each class.
    """

    encoding: Literal["voc_xml", "cityscapes_instances"]
    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _ids_match(self) -> Boxes:
        needed = len(self.classes) if self.encoding == "cityscapes_instances" else 0
        if len(set(self.classes)) != len(self.classes) or len(set(self.ids)) != len(self.ids):
            raise ValueError("a class or an id is listed twice")
        if len(self.ids) != needed:
            raise ValueError(f"{self.encoding} needs {needed} ids for {len(self.classes)} classes")
        return self


class BoxCard(DataSet):
    """One data set with boxes."""

    holds: ClassVar[str] = "boxes"
    splits: dict[str, BoxSplit]
    boxes: Boxes

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.boxes.classes

    def path(self, root: Path, split: str, what: str, **parts: str) -> Path:
        """Where a file lies in the usual layout and spelling.

        Args:
            root: the data root.
            split: name of a split.
            what: "images", "labels" or "list_file".
            **parts: values of the placeholders, such as name="1".
        """
        found = self.split(split)
        pattern = found.labels[0] if what == "labels" else getattr(found, what)
        return root / self.folder / pattern.format(folder=(*found.folder, "")[0], **parts)

    def pairs(self, root: Path, split: str, faults: list[str] | None = None) -> list[Pair]:
        """All images of a split with their annotations, those without a box too, sorted by name.

        The name of an image of several levels of fog ends with its level.

        Args:
            root: the data root.
            split: name of a split.
            faults: takes a line for each file without its counterpart, instead of an error.

        Raises:
            Absent: missing folder of a domain, missing list, no image or no annotation at all.
            UserError: missing folder of the data set, two spellings of a domain, a list that is
                empty or names files that are not there, an image without annotation and the other
                way round.
        """
        home, found = self.home(root), self.split(split)
        spelling = spelled(home, found.folder, self)
        labels = tuple(_filled(pattern, folder=spelling) for pattern in found.labels)
        pairs = []
        for beta in found.beta or ("",):
            images = _filled(found.images, folder=spelling, beta=beta)
            if found.list_file is None:
                level = f"_beta_{beta}" if beta else ""
                pairs += [
                    Pair(pair.name + level, pair.image, pair.label)
                    for pair in paired(home, images, labels, self.title, self.access, faults)
                ]
            else:
                file = home / _filled(found.list_file, folder=spelling)
                pairs += _listed(file, home, images, labels, self.title, faults)
        return sorted(pairs, key=lambda pair: (pair.name, pair.image))

    def listing(self, root: Path, split: str) -> str | None:
        """The list file of a split as "relative path sha256:digest"; None where it has none.

        Raises:
            UserError: missing folder, two spellings of it, or no such file.
        """
        home, found = self.home(root), self.split(split)
        if found.list_file is None:
            return None
        file = home / _filled(found.list_file, folder=spelled(home, found.folder, self))
        usual = _filled(found.list_file, folder=(*found.folder, "")[0])
        return f"{usual} sha256:{hashlib.sha256(_content(file)).hexdigest()}"

    def fingerprint(self, root: Path, split: str, of: Callable[[Path], object] = size_of) -> str:
        """SHA-256 over the sorted lines "relative path:bytes" of images and annotations.

        Two more lines hold the list with its hash and the rule for images without a box. The folder
        stands under its usual name, so that its spelling makes no difference. `of` gives what
        stands after the path, in place of the number of bytes.
        """
        home, found = self.home(root), self.split(split)
        here, usual = spelled(home, found.folder, self), (*found.folder, "")[0]
        files = {file for pair in self.pairs(root, split) for file in (pair.image, pair.label)}
        lines = {f"list:{self.listing(root, split)}", f"empty:{found.empty}"}
        for file in files:
            path = inside(file, home)
            if here:
                path = usual + path.removeprefix(here)
            lines.add(f"{path}:{of(file)}")
        return digest(lines)


def load_box_card(name: str) -> BoxCard:
    """The card `name` of a data set with boxes.

    Raises:
        UserError: see `cards.load_card`.
    """
    return load_card(name, BoxCard)


def load_any_card(name: str) -> Card | BoxCard:
    """The card `name`, of whichever kind.

    Raises:
        UserError: see `cards.load_card`.
    """
    known = name in cards.names()
    boxes = known and BoxCard.holds in yaml_files.read(cards.FOLDER / f"{name}.yaml")
    return load_card(name, BoxCard if boxes else Card)


def spelled(home: Path, names: tuple[str, ...], card: DataSet) -> str:
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
            f"{home / names[0]}: no such folder; unpack this domain of {card.title} there "
            f"({card.access})"
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


def _filled(pattern: str, **parts: str) -> str:
    """The pattern with some of its placeholders filled in."""
    for key, value in parts.items():
        pattern = pattern.replace(f"{{{key}}}", value)
    return pattern


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Absent(
            f"{file}: the list of images cannot be read ({error.strerror}); unpack ImageSets too"
        ) from None


def _listed(
    file: Path,
    home: Path,
    images: str,
    labels: tuple[str, ...],
    title: str,
    faults: list[str] | None,
) -> list[Pair]:
    """The pairs that a list names; a name that it repeats counts once."""
    try:
        lines = _content(file).decode().splitlines()
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
