"""From a domain of a protocol to its files, and from files to arrays."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from benchmarks.data.cards import OUTSIDE, Card, load_card
from benchmarks.data.files import Pair
from benchmarks.data.loading import decoded
from benchmarks.data.splits import evaluation_part, training_part
from benchmarks.errors import UserError
from benchmarks.protocol import Domain


def training_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that may be trained on: without the last `holdout`, then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; nothing is left to train on.
    """
    card = load_card(domain.card, "label")
    return training_part(domain, card.pairs(root, domain.split), root / card.folder)


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: the last `holdout` where it is set, else all; then the first `limit`.

    Raises:
        UserError: see `Card.pairs`; fewer images than are held out.
    """
    card = load_card(domain.card, "label")
    return evaluation_part(domain, card.pairs(root, domain.split), root / card.folder)


def read_pair(
    pair: Pair, card: Card, halve: Literal["pixels", "jpeg"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Image RGB uint8 (H, W, 3) and label uint8 (H, W) in trainIds.

    Args:
        pair: the files.
        card: of their data set.
        halve: see `Domain.halve`.

    Raises:
        UserError: unreadable or cut-off file, label that is not stored as the card says, label
            value outside the encoding, image and label of different size.
    """
    image = decoded(pair.image, convert="RGB")
    raw = label_values(pair.label, card)
    # One entry more: wide numbers are clipped to it.
    label = np.append(card.label_table(), np.uint8(OUTSIDE)).take(raw, mode="clip")
    if (label == OUTSIDE).any():
        unknown = sorted({int(value) for value in np.unique(raw[label == OUTSIDE])})
        raise UserError(
            f"{pair.label}: label values {unknown} are not in the encoding of its data set; "
            "restore the original file or correct the card"
        )
    if image.size[::-1] != label.shape:
        raise UserError(
            f"{pair.image}: is {image.width}x{image.height} pixels, its label "
            f"{label.shape[1]}x{label.shape[0]} ({pair.label}); restore both files or leave this "
            "pair out (`exclude` of the domain)"
        )
    if halve:
        image, label = _halved(image, label, jpeg=halve == "jpeg")
    return np.asarray(image), label


def label_values(file: Path, card: Card) -> np.ndarray:
    """The values that a label file holds, before they become trainIds: uint8 or uint16 (H, W).

    Raises:
        UserError: unreadable or cut-off file, or another kind of image than the card says.
    """
    # Pillow, not OpenCV: that one turns palette indices into colours and fills cut-off files.
    image = decoded(file)
    if card.label.encoding == "rgb16_png":
        # But Pillow reduces 16-bit channels to 8 bits. OpenCV puts them in the order B, G, R.
        channels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if channels is None or channels.dtype != np.uint16 or channels.ndim != 3:
            raise UserError(
                f"{file}: is no 16-bit PNG of several channels (mode {image.mode}); restore the "
                "original file"
            )
        return channels[..., 2]
    if image.mode not in ("P", "L"):
        raise UserError(
            f"{file}: holds colours or wide numbers (mode {image.mode}), not 8-bit label "
            "indices; restore the original file"
        )
    return np.asarray(image)


def _halved(image: Image.Image, label: np.ndarray, jpeg: bool) -> tuple[Image.Image, np.ndarray]:
    """Both at half the size, as tools/convert_datasets/mapillary_resize.py of Rein describes it."""
    size = (image.width // 2, image.height // 2)
    image = image.resize(size, Image.Resampling.BICUBIC)
    if jpeg:
        image.save(buffer := BytesIO(), "JPEG")
        image = Image.open(buffer).convert("RGB")
    return image, np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
