"""From a domain of a detection protocol to its files, and from files to images and boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.data.box_cards import BoxCard, load_box_card
from benchmarks.data.card_files import Pair
from benchmarks.data.loading import decoded
from benchmarks.detection import cityscapes, voc
from benchmarks.detection.voc import Objects
from benchmarks.errors import UserError
from benchmarks.protocol_parts import Domain
from benchmarks.segmentation.reading import learnt, scored

Rule = Literal["keep", "drop"]


def training_pairs(domain: Domain, root: Path, difficult: Rule, empty: Rule) -> list[Pair]:
    """Pairs that may be trained on: see `segmentation.reading.training_pairs`.

    With `empty` "drop" those without a box to learn are left out afterwards, so that training never
    reaches into what is held out.

    Raises:
        UserError: see `BoxCard.pairs` and `objects`; nothing is left to train on; `halve` is set.
    """
    card = load_box_card(domain.card)
    pairs = learnt(domain, _pairs(domain, card, root), root / card.folder)
    if empty == "drop":
        pairs = [pair for pair in pairs if learnable(objects(pair, card), difficult).any()]
    if not pairs:
        raise UserError(
            f"{domain.domain}: no image has a box to learn; keep empty images (augment.empty) or "
            f"add annotations to {root / card.folder}"
        )
    return pairs


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: see `segmentation.reading.evaluation_pairs`.

    Raises:
        UserError: see `BoxCard.pairs` and `objects`; fewer images than are held out; `halve` is
            set.
    """
    card = load_box_card(domain.card)
    return scored(domain, _pairs(domain, card, root), root / card.folder)


def _pairs(domain: Domain, card: BoxCard, root: Path) -> list[Pair]:
    if domain.halve:
        raise UserError(f"{domain.domain}: halve: boxes are never halved; give a test size instead")
    return split_pairs(card, root, domain.split)


def split_pairs(card: BoxCard, root: Path, split: str) -> list[Pair]:
    """The images of a split, after its rule for images without a box.

    Raises:
        UserError: see `BoxCard.pairs` and `objects`.
    """
    pairs = card.pairs(root, split)
    if card.split(split).empty == "keep":
        return pairs
    return [pair for pair in pairs if len(objects(pair, card))]


def learnable(found: Objects, difficult: Rule) -> np.ndarray:
    """Which boxes are learnt, bool (n,)."""
    return ~found.difficult if difficult == "drop" else np.ones(len(found), dtype=bool)


def objects(pair: Pair, card: BoxCard) -> Objects:
    """The boxes of an image.

    Raises:
        UserError: see `voc.read` and `cityscapes.read`.
    """
    if card.boxes.encoding == "voc_xml":
        return voc.read(pair.label, card.classes)
    return cityscapes.read(pair.label, card.boxes)


def read_pair(pair: Pair, card: BoxCard) -> tuple[np.ndarray, Objects]:
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


def mended(pairs: Iterable[Pair], card: BoxCard) -> Counter:
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
