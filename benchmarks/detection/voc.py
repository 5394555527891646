"""Boxes of one image, and the VOC XML files that hold them. Files are read, never rewritten.

XML of unknown origin is parsed without document type declarations: no entity is ever expanded and
nothing outside the file is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from benchmarks.errors import UserError, closest

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Objects:
    """What an image shows.

    Attributes:
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels: corners of a continuous box, so that its
            width is x2 - x1.
        labels: int64 (n,). difficult: bool (n,).
        size: (height, width) of the image.
        mended: how many boxes were "clamped" to the image, "dropped" because nothing of them lies
            in it (inverted ones too), or are "fractional", which they stay.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    size: tuple[int, int]
    mended: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.boxes)


def read(file: Path, classes: Sequence[str]) -> Objects:
    """The objects of a VOC annotation.

    VOC counts pixels from 1 and includes the last one: (xmin, ymin, xmax, ymax) in the file is the
    box (xmin - 1, ymin - 1, xmax, ymax).

    Args:
        file: the XML.
        classes: names in label order.

    Raises:
        UserError: unreadable, no XML, with a document type declaration, no VOC annotation, without
            a size, with a class that is not listed or a number that is none.
    """
    root = _parsed(file)
    if root.tag != "annotation":
        raise UserError(f"{file}: is no VOC annotation (its root is <{root.tag}>); restore it")
    width, height = (_side(file, root, side) for side in ("width", "height"))
    found, boxes = [*root.iterfind("object")], []
    labels = [_label(file, each, classes) for each in found]
    difficult = [_number(file, each, "difficult", "0") != 0 for each in found]
    for each in found:
        xmin, ymin, xmax, ymax = (_number(file, each, f"bndbox/{name}") for name in CORNERS)
        boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    return cleaned(boxes, labels, difficult, (height, width))


def cleaned(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    difficult: Sequence[bool],
    size: tuple[int, int],
) -> Objects:
    """Objects from boxes as annotated, cut off at the image; what nothing is left of is dropped."""
    given = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = size
    kept = np.clip(given, 0, (width, height, width, height))
    valid = (kept[:, 2:] > kept[:, :2]).all(1)
    mended = Counter(
        clamped=int((valid & (kept != given).any(1)).sum()),
        fractional=int((valid & (given != np.round(given)).any(1)).sum()),
        dropped=int((~valid).sum()),
    )
    return Objects(
        boxes=kept[valid].astype(np.float32),
        labels=np.array(labels, dtype=np.int64)[valid],
        difficult=np.array(difficult, dtype=bool)[valid],
        size=size,
        mended=+mended,
    )


def _parsed(file: Path) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True

    def refuse(name: str, *rest: object) -> NoReturn:
        raise UserError(
            f"{file}: declares a document type ({name}), with which XML can name other files or "
            "grow without end; delete the declaration or restore the original file"
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(file.read_bytes(), True)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); unpack it again") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise UserError(f"{file}: is not XML ({error}); copy or unpack it again") from None
    return builder.close()


def _label(file: Path, found: Element, classes: Sequence[str]) -> int:
    name = (found.findtext("name") or "").strip()
    if name not in classes:
        raise UserError(
            f"{file}: object of unknown class {name!r}{closest(name, classes)}; correct the file "
            "or its data set's card"
        )
    return classes.index(name)


def _side(file: Path, root: Element, name: str) -> int:
    side = _number(file, root, f"size/{name}")
    if side < 1 or side != int(side):
        raise UserError(f"{file}: size/{name} {side:g} is no number of pixels; restore the file")
    return int(side)


def _number(file: Path, parent: Element, path: str, default: str | None = None) -> float:
    text = parent.findtext(path, default)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        what = "is missing" if text is None else f"is {text.strip()!r}, no number"
        raise UserError(f"{file}: {parent.tag}/{path} {what}; restore the file")
    return number
