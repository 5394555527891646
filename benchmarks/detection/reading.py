"""From a domain of a detection protocol to its files, and from files to images and boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.data.cards import Card, load_card
from benchmarks.data.files import Pair
from benchmarks.data.loading import decoded
from benchmarks.data.splits import evaluation_part, training_part
from benchmarks.detection import cityscapes, voc
from benchmarks.detection.voc import Objects
from benchmarks.errors import UserError
from benchmarks.protocol import Domain

Rule = Literal["keep", "drop"]


def training_pairs(domain: Domain, root: Path, difficult: Rule, empty: Rule) -> list[Pair]:
    """Pairs that may be trained on: see `splits.training_part`.

    With `empty` "drop" those without a box to learn are left out afterwards, so that training never
    reaches into what is held out.

    Raises:
        UserError: see `Card.pairs` and `objects`; nothing is left to train on; `halve` is set.
    """
    card = load_card(domain.card, "boxes")
    pairs = training_part(domain, _pairs(domain, card, root), root / card.folder)
    if empty == "drop":
        pairs = [pair for pair in pairs if trainable_boxes(objects(pair, card), difficult).any()]
    if not pairs:
        raise UserError(
            f"{domain.domain}: no image has a box to learn; keep empty images (augment.empty) or "
            f"add annotations to {root / card.folder}"
        )
    return pairs


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: see `splits.evaluation_part`.

    Raises:
        UserError: see `Card.pairs` and `objects`; fewer images than are held out; `halve` is
            set.
    """
    card = load_card(domain.card, "boxes")
    return evaluation_part(domain, _pairs(domain, card, root), root / card.folder)


def _pairs(domain: Domain, card: Card, root: Path) -> list[Pair]:
    if domain.halve:
        raise UserError(f"{domain.domain}: halve: boxes are never halved; give a test size instead")
    return split_pairs(card, root, domain.split)


def split_pairs(card: Card, root: Path, split: str) -> list[Pair]:
    """The images of a split, after its rule for images without a box.

    Raises:
        UserError: see `Card.pairs` and `objects`.
    """
    pairs = card.pairs(root, split)
    if card.split(split).empty == "keep":
        return pairs
    return [pair for pair in pairs if len(objects(pair, card))]


def trainable_boxes(found: Objects, difficult: Rule) -> np.ndarray:
    """Which boxes are learnt, bool (n,)."""
    return ~found.difficult if difficult == "drop" else np.ones(len(found), dtype=bool)


def objects(pair: Pair, card: Card) -> Objects:
    """The boxes of an image.

    Raises:
        UserError: see `voc.read` and `cityscapes.read`.
    """
    if card.boxes.encoding == "voc_xml":
        return voc.read(pair.label, card.classes)
    return cityscapes.read(pair.label, card.boxes)


def read_pair(pair: Pair, card: Card) -> tuple[np.ndarray, Objects]:
    """Image RGB uint8 (H, W, 3) and its boxes.

    Raises:
        UserError: see `objects`; image that cannot be decoded, or not of the annotated size.
    """
    image, found = np.asarray(decoded(pair.image, convert="RGB")), objects(pair, card)
    if image.shape[:2] != found.size:
        raise UserError(
            f"{pair.image}: is {image.shape[1]}x{image.shape[0]} pixels, its annotation says "
            f"{found.size[1]}x{found.size[0]} ({pair.label}); restore both files or leave this "
            "image out"
        )
    return image, found


def mended(pairs: Iterable[Pair], card: Card) -> Counter:
    """What is handled in memory in these files, and what they hold.

    Keys: "clamped", "fractional", "dropped" (see `voc.Objects`), "images", "boxes", "difficult",
    "empty" (images without a box).

    Raises:
        UserError: see `objects`.
    """
    total: Counter = Counter()
    for pair in pairs:
        found = objects(pair, card)
        total += found.mended
        total.update(
            images=1,
            boxes=len(found),
            difficult=int(found.difficult.sum()),
            empty=int(not len(found)),
        )
    return total
