"""From a domain of a protocol to its files, and from files to arrays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from benchmarks.cards import OUTSIDE, Pair, load_card
from benchmarks.errors import UserError
from benchmarks.loading import decoded
from benchmarks.protocol_parts import Domain

# Parallelism is over runs and loader processes; OpenCV's own threads would only get in their way.
cv2.setNumThreads(0)


def training_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that may be trained on: without the last `holdout`, then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; nothing is left to train on.
    """
    card = load_card(domain.card)
    return learnt(domain, card.pairs(root, domain.split), root / card.folder)


def learnt(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
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


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: the last `holdout` where it is set, else all; then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; fewer images than are held out.
    """
    card = load_card(domain.card)
    return scored(domain, card.pairs(root, domain.split), root / card.folder)


def scored(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that are scored; `folder` is where they lie.

    Raises:
        UserError: fewer images than are held out.
    """
    if len(pairs) < domain.holdout:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images are fewer than the {domain.holdout} held out; "
            f"add images to {folder} or hold out fewer"
        )
    return pairs[len(pairs) - domain.holdout if domain.holdout else 0 :][: domain.limit]


def read_pair(pair: Pair, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image RGB uint8 (H, W, 3) and label uint8 (H, W) in trainIds.

    Args:
        pair: the files.
        table: value on disk -> trainId (`Card.label_table`).

    Raises:
        UserError: unreadable or cut-off file, label that is no 8-bit index image, label value
            outside the encoding, image and label of different size.
    """
    image = np.asarray(decoded(pair.image, convert="RGB"))
    # Pillow, not OpenCV: that one turns palette indices into colours and fills cut-off files.
    indices = decoded(pair.label)
    if indices.mode not in ("P", "L"):
        raise UserError(
            f"{pair.label}: holds colours or wide numbers (mode {indices.mode}), not 8-bit label "
            "indices; restore the original file"
        )
    raw = np.asarray(indices)
    label = table[raw]
    if (label == OUTSIDE).any():
        unknown = sorted({int(value) for value in np.unique(raw[label == OUTSIDE])})
        raise UserError(
            f"{pair.label}: label values {unknown} are not in the encoding of its data set; "
            "restore the original file or correct the card"
        )
    if image.shape[:2] != label.shape:
        raise UserError(
            f"{pair.image}: is {image.shape[1]}x{image.shape[0]} pixels, its label "
            f"{label.shape[1]}x{label.shape[0]} ({pair.label}); restore both files or leave this "
            "pair out"
        )
    return image, label


def fit(image: np.ndarray, size: tuple[int, int] | None, keep_ratio: bool) -> np.ndarray:
    """An image (H, W, 3) resized bilinearly to the test size (height, width).

    With `keep_ratio` the result is the largest one that fits inside; without a size, the image.
    """
    if size is None:
        return image
    height, width = size
    if keep_ratio:
        scale = min(height / image.shape[0], width / image.shape[1])
        height, width = (int(side * scale + 0.5) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
