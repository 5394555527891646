"""Data-set cards (datasets/*.yaml): where the files of a data set lie and what its labels mean.

A card describes the layout as it is distributed. Nothing on disk is ever converted or rewritten:
labels become trainIds while they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from functools import cache
from os.path import isdir
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from benchmarks import yaml_files
from benchmarks.data.download_source import Source
from benchmarks.data.files import (
    Absent,
    Files,
    Pair,
    chosen,
    content_of,
    digest,
    filled,
    inside,
    listed,
    listed_pairs,
    matches,
    most,
    names_in,
    paired,
    size_of,
    spelled,
)
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Protocol
from benchmarks.yaml_files import Strict

FOLDER = REPOSITORY / "datasets"
IGNORE = 255  # trainId of pixels that are neither learnt nor scored
OUTSIDE = 254  # in a label table: a value that the encoding does not have


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class NameList(Strict):
    """A list that is published beside the card, one image name a line, and its SHA-256."""

    file: str
    sha256: str


class Split(Strict):
    """One split of a data set. Patterns hold {name}, and may hold {city}, {folder} and {beta}.

    Attributes:
        images: pattern of the images below the data set's folder.
        labels: patterns of the ground truth, one per layout, the usual one first.
        count: number of images of the official edition.
        only: published list of the images that belong, where not all of them do.
        folder: names that {folder} may have, the usual one first; capitals make no difference, nor
            does a hyphen in place of an underscore.
        list_file: one image name a line; without, every image that fits the pattern.
        beta: values of {beta}, the attenuation of rendered fog per metre, as file names spell them.
        empty: whether images without a box belong to the split.
    """

    images: str
    labels: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    count: int
    only: NameList | None = None
    folder: tuple[str, ...] = ()
    list_file: str | None = None
    beta: tuple[str, ...] = ()
    empty: Literal["keep", "drop"] = "keep"


class Variant(Strict):
    """A known edition of a split with another number of images, and who uses it."""

    split: str
    count: int
    source: str


class Label(Strict):
    """How ground truth is stored.

    Attributes:
        encoding: "palette_png" and "gray_png" are 8-bit PNGs whose values (palette indices, grey
            values) are the labels; in "rgb16_png" the red channel holds them, 16 bits a channel.
        classes: class name -> values on disk, in trainId order; the first is used for writing.
        void: values on disk that mean "ignore", the usual one first.
        ignore: the trainId that void values become.
    """

    encoding: Literal["palette_png", "gray_png", "rgb16_png"]
    classes: dict[str, tuple[int, ...]]
    void: tuple[int, ...]
    ignore: int = IGNORE

    @model_validator(mode="after")
    def _each_value_once(self) -> Label:
        values = [*self.to_train_id, *self.void]
        listed = sum(map(len, self.classes.values())) + len(self.void)
        if len(set(values)) != listed or not all(0 <= value <= 255 for value in values):
            raise ValueError("label values must be distinct and within 0..255")
        return self

    @property
    def to_train_id(self) -> dict[int, int]:
        """Value on disk -> trainId, void values left out."""
        lists = enumerate(self.classes.values())
        return {value: train_id for train_id, values in lists for value in values}


class Boxes(Strict):
    """How boxes are stored.

    Attributes:
        encoding: "voc_xml", an XML per image with 1-based inclusive pixels, or
            "cityscapes_instances", an image of instance ids or the polygons it is painted from.
        classes: names on disk in label order.
        ids: Cityscapes label id of each class.
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


class Card(Strict):
    """One data set, with a label per pixel or with boxes. Sizes are (height, width) in pixels.

    Attributes:
        name: that of the file.
        title: name in messages and lists.
        folder: of the data set, below the data root.
        native_size: of every image; None where they vary.
        typical_size: what a dry run takes where sizes vary.
        test_sizes: name -> size at which somebody scores this data set.
        licence: in words.
        access: where it comes from, in words.
        splits: name -> split.
        variants: editions in use whose number of images is not the `count` of their split.
        sources: of the facts in this card.
        download: ways to get the files, the usual one first.
        label: how labels per pixel are stored; None for a data set with boxes.
        boxes: how boxes are stored; None for a data set with a label per pixel.
        elsewhere: folder, from the data root, that another toolkit prepares -> what to do with it.
    """

    name: str
    title: str
    folder: str
    native_size: tuple[int, int] | None
    typical_size: tuple[int, int] | None = None
    test_sizes: dict[str, tuple[int, int]]
    licence: str
    access: str
    splits: dict[str, Split]
    variants: dict[str, Variant] = Field(default_factory=dict)
    sources: tuple[str, ...]
    download: tuple[Source, ...] = ()
    label: Label | None = None
    boxes: Boxes | None = None
    elsewhere: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_ground_truth(self) -> Card:
        if (self.label is None) == (self.boxes is None):
            raise ValueError("describes both a label and boxes, or neither; give one of them")
        return self

    @model_validator(mode="after")
    def _variants_differ(self) -> Card:
        for name, variant in self.variants.items():
            if variant.split not in self.splits:
                raise ValueError(f"variants.{name}: no split {variant.split!r}")
            if variant.count == self.splits[variant.split].count:
                raise ValueError(f"variants.{name}: has the count of its split; leave it out")
        return self

    def home(self, root: Path, rendered: bool = False) -> Path:
        """The folder of the data set; `rendered` says that it is one of the mini worlds.

        Raises:
            UserError: there is none.
        """
        home = root / self.folder
        if not isdir(home):  # Path.is_dir raises where a name is too long to be one
            fetch = f"scripts/download_datasets.sh --dataset {self.name} --root {root}"
            how = f"python -m benchmarks mini render --root {root}" if rendered else fetch
            ways = self._elsewhere(root) or f"{how} makes it, or give another data root"
            raise UserError(f"{home}: no such folder; {self.title} is expected there: {ways}")
        return home

    def split(self, name: str) -> Split:
        """The file patterns of a split.

        Raises:
            UserError: no such split.
        """
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}{closest(name, self.splits)}")
        return self.splits[name]

    def editions(self, split: str) -> dict[str, int]:
        """Known editions of a split -> number of images; the official one is "complete"."""
        others = {
            name: variant.count for name, variant in self.variants.items() if variant.split == split
        }
        return {"complete": self.split(split).count} | others

    @property
    def ground_truth(self) -> Literal["label", "boxes"]:
        """Which of the two this card describes."""
        return "label" if self.label else "boxes"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of trainIds or of box labels."""
        return tuple(self.label.classes) if self.label else self.boxes.classes

    def path(self, root: Path, split: str, what: str, **parts: str) -> Path:
        """Where a file lies in the usual layout and spelling.

        Args:
            root: the data root.
            split: name of a split.
            what: "images", "labels" or "list_file".
            **parts: values of the placeholders, such as name="1" and city="zurich".
        """
        layout = self.split(split)
        pattern = layout.labels[0] if what == "labels" else getattr(layout, what)
        return root / self.folder / pattern.format(folder=(*layout.folder, "")[0], **parts)

    def label_table(self) -> np.ndarray:
        """Value on disk -> trainId, uint8 (256,).

        255 stands for void, 254 (`OUTSIDE`) for values that the encoding does not have.
        """
        table = np.full(256, OUTSIDE, dtype=np.uint8)
        table[list(self.label.void)] = self.label.ignore
        for value, train_id in self.label.to_train_id.items():
            table[value] = train_id
        return table

    def native_id(self, train_id: int) -> int:
        """First value on disk of a trainId (255: of void)."""
        if train_id == self.label.ignore:
            return self.label.void[0]
        return self.label.classes[self.classes[train_id]][0]

    def pairs(
        self,
        root: Path,
        split: str,
        faults: dict[str, str] | None = None,
        exclude: Collection[str] = (),
    ) -> list[Pair]:
        """All images of a split with their ground truth, those without a box too, sorted by name.

        The name of an image of several levels of fog ends with its level.

        Args:
            root: the data root.
            split: name of a split.
            faults: takes a line for each file without its counterpart -> the name of the image,
                instead of an error.
            exclude: names of images that are passed over, as if neither they nor their ground
                truth were there.

        Raises:
            Absent: missing folder of a domain, missing list, no image or no ground truth at all.
            UserError: missing folder of the data set, two spellings of a domain, a list that is
                empty or names files that are not there, an image without ground truth or the other
                way round, a name to exclude that no file has.
        """
        home, layout = self.home(root), self.split(split)
        spelling = spelled(home, layout.folder, self.title, self.access)
        if unknown := set(exclude) - (self.names(root, split) if exclude else set()):
            raise UserError(
                f"exclude: no image or ground truth of {self.name} is called {min(unknown)!r} "
                f"({split}); correct the list"
            )
        pairs = []
        here: dict[str, str] | None = None if faults is None else {}
        for beta in layout.beta or ("",):
            level = f"_beta_{beta}" if beta else ""
            images, truth = self._files(home, layout, folder=spelling, beta=beta)
            there = {key[0] for key in (*images, *truth)}
            images, truth = (
                {key: path for key, path in files.items() if key[0] + level not in exclude}
                for files in (images, truth)
            )
            if layout.list_file is None:
                made = paired(images, truth, self.title, here)
            else:
                file = home / filled(layout.list_file, folder=spelling)
                names = [name for name in names_in(file, there) if name not in exclude]
                made = listed_pairs(names, file, images, truth, self.title, here)
            if faults is not None:
                faults |= {line: name + level for line, name in here.items()}
                here.clear()
            pairs += [Pair(pair.name + level, pair.image, pair.label) for pair in made]
        if layout.only is not None:
            file = FOLDER / layout.only.file
            wanted = set(listed(file, layout.only.sha256)).difference(exclude)
            pairs = chosen(pairs, wanted, f"{self.name}: {file}")
        # Samples are drawn, and held out, by number: the order of a file system would move them.
        return sorted(pairs, key=lambda pair: (pair.name, pair.image))

    def names(self, root: Path, split: str) -> set[str]:
        """Names of all images of a split and of all ground truth, paired or not.

        Raises:
            Absent: no folder bears the name of the domain, or it holds no image or no label.
            UserError: two folders bear it, or a list cannot be read.
        """
        home, layout = self.home(root), self.split(split)
        spelling = spelled(home, layout.folder, self.title, self.access)
        known = set()
        for beta in layout.beta or ("",):
            files = self._files(home, layout, folder=spelling, beta=beta)
            level = f"_beta_{beta}" if beta else ""
            known |= {key[0] + level for key in (*files[0], *files[1])}
        if layout.list_file is not None:
            known.update(names_in(home / filled(layout.list_file, folder=spelling), known))
        return known

    def _files(self, home: Path, split: Split, **parts: str) -> tuple[Files, Files]:
        """Images and ground truth of a split.

        Raises:
            Absent: none of either, where no list says what there has to be.
        """
        images = filled(split.images, **parts)
        labels = tuple(filled(pattern, **parts) for pattern in split.labels)
        pictures, truth = matches(home, images), most(home, labels)
        for kind, have, patterns in (("image", pictures, (images,)), ("label", truth, labels)):
            if not have and split.list_file is None:
                wanted = " or ".join(patterns)
                raise Absent(
                    f"{home}: no {kind} matches {wanted}; "
                    + (self._elsewhere(home.parent) or f"unpack {self.title} there ({self.access})")
                )
        return pictures, truth

    def _elsewhere(self, root: Path) -> str:
        """What to do where the data set lies as another toolkit prepares it; "" elsewhere."""
        there = {root / at: do for at, do in self.elsewhere.items() if isdir(root / at)}
        return next((f"{folder} is there: {do}" for folder, do in there.items()), "")

    def listing(self, root: Path, split: str) -> str | None:
        """The list file of a split as "relative path sha256:digest"; None where it has none.

        Raises:
            UserError: missing folder, two spellings of it, or no such file.
        """
        home, layout = self.home(root), self.split(split)
        if layout.list_file is None:
            return None
        spelling = spelled(home, layout.folder, self.title, self.access)
        file = home / filled(layout.list_file, folder=spelling)
        usual = filled(layout.list_file, folder=(*layout.folder, "")[0])
        return f"{usual} sha256:{hashlib.sha256(content_of(file)).hexdigest()}"

    def fingerprint(
        self,
        root: Path,
        split: str,
        of: Callable[[Path], object] = size_of,
        exclude: Collection[str] = (),
    ) -> str:
        """SHA-256 over the sorted lines "relative path:bytes" of images and ground truth.

        With boxes two more lines hold the list with its hash and the rule for images without a box.
        A folder of several spellings stands under its usual name. `of` gives what stands after the
        path, in place of the number of bytes. What is excluded (see `pairs`) has no line.

        Raises:
            UserError: see `pairs`.
        """
        home, layout = self.home(root), self.split(split)
        here, usual = spelled(home, layout.folder, self.title, self.access), (*layout.folder, "")[0]
        pairs = self.pairs(root, split, exclude=exclude)
        files = {file for pair in pairs for file in (pair.image, pair.label)}
        lines = set()
        if self.boxes:
            lines = {f"list:{self.listing(root, split)}", f"empty:{layout.empty}"}
        for file in files:
            path = inside(file, home)
            if here:
                path = usual + path.removeprefix(here)
            lines.add(f"{path}:{of(file)}")
        return digest(lines)


def names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def load_card(name: str, ground_truth: Literal["label", "boxes"] | None = None) -> Card:
    """The card `name`; `ground_truth` is what it has to describe, None for either.

    Raises:
        UserError: unknown name, a card that describes the other kind, or a file that does not fit
            the schema.
    """
    if name not in names():
        raise UserError(f"unknown data set {name!r}{closest(name, names())}")
    file = FOLDER / f"{name}.yaml"
    card = yaml_files.validate(Card, yaml_files.read(file), str(file))
    if card.name != name:
        raise UserError(f"{file}: name: {card.name!r} differs from the file's name; use one")
    if ground_truth not in (None, card.ground_truth):
        raise UserError(f"{file}: describes no {ground_truth}; this task needs a card that does")
    return card


def classes_of(protocol: Protocol) -> tuple[str, ...]:
    """Class names of the data sets of a protocol, which have to be the same in all of them.

    Raises:
        UserError: unknown card, a card of the other kind of ground truth, or other classes.
    """
    domains = (*protocol.source, *protocol.scored_domains)
    first, *others = (load_card(domain.card, protocol.ground_truth) for domain in domains)
    for card in others:
        if card.classes != first.classes:
            raise UserError(
                f"{protocol.name}: {card.name} and {first.name} have different classes; use data "
                "sets of one label space"
            )
    return first.classes
