"""Data-set cards (datasets/*.yaml): where the files of a data set lie and what its labels mean.

A card describes the layout as it is distributed. Nothing on disk is ever converted or rewritten:
labels become trainIds while they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from benchmarks import yaml_files
from benchmarks.data.card_files import Pair, chosen, digest, inside, listed, paired, size_of
from benchmarks.data.download_source import Source
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.yaml_files import Strict

FOLDER = REPOSITORY / "datasets"
IGNORE = 255  # trainId of pixels that are neither learnt nor scored
OUTSIDE = 254  # in a label table: a value that the encoding does not have


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


class Split(Strict):
    """File patterns below the data set's folder; `labels` lists layouts, the usual one first."""

    images: str
    labels: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    count: int


class NameList(Strict):
    """A list that is published beside the card, one image name a line, and its SHA-256."""

    file: str
    sha256: str


class LabelSplit(Split):
    """One split with a label per pixel; `only` names its images where not all files belong."""

    only: NameList | None = None


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


class DataSet(Strict):
    """What every card says. Sizes are (height, width) in pixels; `native_size` None: they vary.

    `variants` are the editions in use whose number of images is not the `count` of their split;
    `typical_size` is what a dry run takes where sizes vary.
    """

    holds: ClassVar[str]  # the key that tells which kind of card a file is
    name: str
    title: str
    folder: str  # below the data root
    native_size: tuple[int, int] | None
    typical_size: tuple[int, int] | None = None
    test_sizes: dict[str, tuple[int, int]]
    licence: str
    access: str
    splits: dict[str, Split]
    variants: dict[str, Variant] = Field(default_factory=dict)
    sources: tuple[str, ...]
    download: tuple[Source, ...] = ()  # ways to get the files, the usual one first

    @model_validator(mode="after")
    def _variants_differ(self) -> DataSet:
        for name, variant in self.variants.items():
            if variant.split not in self.splits:
                raise ValueError(f"variants.{name}: no split {variant.split!r}")
            if variant.count == self.splits[variant.split].count:
                raise ValueError(f"variants.{name}: has the count of its split; leave it out")
        return self

    def home(self, root: Path) -> Path:
        """The folder of the data set.

        Raises:
            UserError: there is none.
        """
        home = root / self.folder
        if not home.is_dir():
            raise UserError(
                f"{home}: no such folder; {self.title} is expected there: give another data root, "
                "or render the mini worlds (python -m benchmarks mini)"
            )
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
        others = {name: each.count for name, each in self.variants.items() if each.split == split}
        return {"complete": self.split(split).count} | others


AnyCard = TypeVar("AnyCard", bound=DataSet)


class Card(DataSet):
    """One data set with a label per pixel."""

    holds: ClassVar[str] = "label"
    splits: dict[str, LabelSplit]
    label: Label

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in trainId order."""
        return tuple(self.label.classes)

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

    def image_path(self, root: Path, split: str, name: str, **parts: str) -> Path:
        """Where an image lies; `parts` fill the further placeholders, e.g. city="zurich"."""
        return root / self.folder / self.split(split).images.format(name=name, **parts)

    def label_path(self, root: Path, split: str, name: str, **parts: str) -> Path:
        """Where the ground truth of an image lies, in the usual layout."""
        return root / self.folder / self.split(split).labels[0].format(name=name, **parts)

    def pairs(self, root: Path, split: str, faults: list[str] | None = None) -> list[Pair]:
        """All images of a split with their labels, sorted by name.

        Args:
            root: the data root.
            split: name of a split.
            faults: takes a line for each file without its counterpart, instead of an error.

        Raises:
            Absent: no image or no label at all.
            UserError: missing folder, an image without label, a label without image, an image of a
                published list that is not there.
        """
        found = self.split(split)
        home, words = self.home(root), (self.title, self.access)
        pairs = paired(home, found.images, found.labels, *words, faults=faults)
        if found.only is not None:
            file = FOLDER / found.only.file
            pairs = chosen(pairs, listed(file, found.only.sha256), f"{self.name}: {file}")
        return sorted(pairs, key=lambda pair: (pair.name, pair.image))

    def fingerprint(self, root: Path, split: str, of: Callable[[Path], object] = size_of) -> str:
        """SHA-256 over the sorted lines "relative path:bytes" of a split's images and labels.

        `of` gives what stands after the path, in place of the number of bytes.
        """
        home = root / self.folder
        files = [file for pair in self.pairs(root, split) for file in (pair.image, pair.label)]
        return digest(f"{inside(file, home)}:{of(file)}" for file in files)


def names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def load_card(name: str, kind: type[AnyCard] = Card) -> AnyCard:
    """The card `name`; `kind` is the schema that it has to fit.

    Raises:
        UserError: unknown name, a card of another kind, or a file that does not fit the schema.
    """
    if name not in names():
        raise UserError(f"unknown data set {name!r}{closest(name, names())}")
    file = FOLDER / f"{name}.yaml"
    data = yaml_files.read(file)
    if kind.holds not in data:
        raise UserError(f"{file}: describes no {kind.holds}; this task needs a card that does")
    card = yaml_files.validate(kind, data, str(file))
    if card.name != name:
        raise UserError(f"{file}: name: {card.name!r} differs from the file's name; use one")
    return card
