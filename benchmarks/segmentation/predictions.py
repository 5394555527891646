"""Predictions that a run keeps: of a few images of a domain, in one palette PNG beside the record.

The images are evenly spaced over the domain's list, the same for every method and seed, so that
records can be drawn beside each other without their weights. Classes lie one image below the other;
the PNG's text "images" says name, height and width of each, in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from benchmarks.data.cards import IGNORE
from benchmarks.data.pictures import PALETTE
from benchmarks.errors import UserError
from benchmarks.record import write_atomically

KEPT_IMAGES = 4
WIDEST = 512  # pixels; of photographs every n-th pixel is kept


class Prediction(NamedTuple):
    """Classes of one image.

    Attributes:
        name: of the image.
        classes: uint8 (H, W), trainIds; at most `WIDEST` pixels wide.
    """

    name: str
    classes: np.ndarray


def thinned(classes: np.ndarray) -> np.ndarray:
    """Classes (H, W) as uint8, no wider than `WIDEST`: every n-th pixel of every n-th line."""
    step = -(-classes.shape[1] // WIDEST)
    return np.ascontiguousarray(classes[::step, ::step]).astype(np.uint8)


def write(path: Path, images: Sequence[Prediction]) -> None:
    """Write the classes of some images, whole or not at all; the same ones give the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    width = max(image.classes.shape[1] for image in images)
    rows = [
        np.pad(
            image.classes,
            ((0, 0), (0, width - image.classes.shape[1])),
            constant_values=IGNORE,
        )
        for image in images
    ]
    picture = Image.fromarray(np.vstack(rows))
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(PALETTE)] = PALETTE
    picture.putpalette(colours.ravel().tolist())
    text = PngInfo()
    text.add_text("images", json.dumps([[image.name, *image.classes.shape] for image in images]))
    write_atomically(
        path, lambda file: picture.save(file, "PNG", optimize=True, compress_level=9, pnginfo=text)
    )


def read(path: Path, again: str = "run its cell again") -> list[Prediction]:
    """The images of a file that `write` made; `again` says how its record is made anew.

    Raises:
        UserError: missing, unreadable or another kind of file.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            listed, classes = json.loads(picture.text["images"]), np.asarray(picture)
        ends = np.cumsum([height for _, height, _ in listed])
        if classes.ndim != 2 or not listed or ends[-1] != len(classes):
            raise ValueError("its text does not describe its pixels")
        return [
            Prediction(name, classes[end - height : end, :width])
            for (name, height, width), end in zip(listed, ends, strict=True)
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: its record kept no predictions; {again}") from None
    except (
        *(OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError),
        *(AttributeError, KeyError, TypeError, ValueError),
    ) as error:
        raise UserError(f"{path}: predictions cannot be read ({error}); {again}") from None
