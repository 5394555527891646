"""From a domain of a detection protocol to its files, and from files to images and boxes.

Boxes come from VOC XML files or from the instances of Cityscapes. Files are read, never rewritten.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.data.cards import Boxes, Card, load_card
from benchmarks.data.files import Pair, evaluation_part, refuse_overlap, training_part
from benchmarks.data.loading import decoded, header_size
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Domain, Protocol

Rule = Literal["keep", "drop"]
CORNERS = ("xmin", "ymin", "xmax", "ymax")
PER_CLASS = 1000  # a pixel of Cityscapes holds label id x 1000 + number of the instance
UNPAINTED = {"license plate"}  # negative ids: the car under it stays


@dataclass(frozen=True)
class Objects:
    """What an image shows.

    Attributes:
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels: corners of a continuous box, so that its
            width is x2 - x1.
        labels: int64 (n,).
        difficult: bool (n,), neither to be found nor wrong to be found.
        size: (height, width) of the image.
        repaired: how many boxes were "clamped" to the image, "dropped" because nothing of them lies
            in it (inverted ones too), or are "fractional", which they stay.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    size: tuple[int, int]
    repaired: Counter = field(default_factory=Counter)

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.boxes)


def training_pairs(domain: Domain, root: Path, difficult: Rule, empty: Rule) -> list[Pair]:
    """Pairs that may be trained on: see `splits.training_part`.

    With `empty` "drop" those without a box to train on are left out afterwards, so that training
    never reaches into what is held out.

    Raises:
        UserError: see `Card.pairs` and `read_objects`; nothing is left to train on; `halve` is set.
    """
    card = load_card(domain.card, "boxes")
    pairs = training_part(domain, _pairs(domain, root), root / card.folder)
    if empty == "drop":
        pairs = [
            pair for pair in pairs if trainable_boxes(read_objects(pair, card), difficult).any()
        ]
    if not pairs:
        raise UserError(
            f"{domain.domain}: no image has a box to train on; keep empty images (augment.empty) "
            f"or add annotations to {root / card.folder}"
        )
    return pairs


def evaluation_pairs(domain: Domain, root: Path) -> list[Pair]:
    """Pairs that are scored: see `splits.evaluation_part`.

    Raises:
        UserError: see `Card.pairs` and `read_objects`; fewer images than are held out; `halve` is
            set.
    """
    folder = root / load_card(domain.card, "boxes").folder
    return evaluation_part(domain, _pairs(domain, root), folder)


def _pairs(domain: Domain, root: Path) -> list[Pair]:
    if domain.halve:
        raise UserError(f"{domain.domain}: halve: boxes are never halved; give a test size instead")
    return split_pairs(load_card(domain.card, "boxes"), root, domain.split, domain.exclude)


def split_pairs(card: Card, root: Path, split: str, exclude: Collection[str] = ()) -> list[Pair]:
    """The images of a split without the excluded ones, after its rule for images without a box.

    Raises:
        UserError: see `Card.pairs` and `read_objects`.
    """
    pairs = card.pairs(root, split, exclude=exclude)
    if card.split(split).empty == "keep":
        return pairs
    return [pair for pair in pairs if len(read_objects(pair, card))]


def trainable_boxes(objects: Objects, difficult: Rule) -> np.ndarray:
    """Which boxes are trained on, bool (n,)."""
    return ~objects.difficult if difficult == "drop" else np.ones(len(objects), dtype=bool)


def read_objects(pair: Pair, card: Card) -> Objects:
    """The boxes of an image.

    Raises:
        UserError: see `read_voc` and `read_cityscapes`.
    """
    if card.boxes.encoding == "voc_xml":
        return read_voc(pair.label, card.classes)
    return read_cityscapes(pair.label, card.boxes)


def check_data(protocol: Protocol, root: Path) -> None:
    """See `Task.check_data`."""
    trained = {
        domain: training_part(domain, _pairs(domain, root), root) for domain in protocol.source
    }
    scored = {domain: evaluation_pairs(domain, root) for domain in protocol.scored_domains}
    refuse_overlap(trained, scored)
    for domain, pairs in (*trained.items(), *scored.items()):
        card = load_card(domain.card, "boxes")
        for pair in pairs:
            # Headers alone: decoding every image would take as long as an epoch. `read_pair` says
            # why.
            if header_size(pair.image) != read_objects(pair, card).size:
                read_pair(pair, card)


def read_pair(pair: Pair, card: Card) -> tuple[np.ndarray, Objects]:
    """Image RGB uint8 (H, W, 3) and its boxes.

    Raises:
        UserError: see `read_objects`; image that cannot be decoded, or not of the annotated size.
    """
    image, objects = np.asarray(decoded(pair.image, convert="RGB")), read_objects(pair, card)
    if image.shape[:2] != objects.size:
        raise UserError(
            f"{pair.image}: is {image.shape[1]}x{image.shape[0]} pixels, its annotation says "
            f"{objects.size[1]}x{objects.size[0]} ({pair.label}); restore both files or leave this "
            "image out"
        )
    return image, objects


def read_voc(file: Path, classes: Sequence[str]) -> Objects:
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
    elements, boxes = [*root.iterfind("object")], []
    labels = [_label(file, element, classes) for element in elements]
    difficult = [_number(file, element, "difficult", "0") != 0 for element in elements]
    for element in elements:
        xmin, ymin, xmax, ymax = (_number(file, element, f"bndbox/{name}") for name in CORNERS)
        boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    return cleaned(boxes, labels, difficult, (height, width))


def _parsed(file: Path) -> Element:
    # Of unknown origin: without document type declarations no entity is ever expanded and nothing
    # outside the file is read.
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


def _label(file: Path, element: Element, classes: Sequence[str]) -> int:
    name = (element.findtext("name") or "").strip()
    if name not in classes:
        raise UserError(
            f"{file}: object of unknown class {name!r}{closest(name, classes)}; correct the file "
            "or its data set's card"
        )
    return classes.index(name)


def _side(file: Path, root: Element, name: str) -> int:
    side = _number(file, root, f"size/{name}")
    if not 1 <= side <= Image.MAX_IMAGE_PIXELS or side != int(side):
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


def read_cityscapes(file: Path, boxes: Boxes) -> Objects:
    """Boxes around the visible pixels of each instance, none of them difficult.

    Source of the encoding: mcordts/cityscapesScripts, preparation/json2instanceImg.py.

    Args:
        file: *_instanceIds.png or *_polygons.json.
        boxes: classes with their label ids.

    Raises:
        UserError: unreadable file, or not of this encoding.
    """
    instances = _painted(file, boxes) if file.suffix == ".json" else _instance_ids(file)
    ids = {number: label for label, number in enumerate(boxes.ids)}
    wanted = np.isin(instances // PER_CLASS, boxes.ids)
    rows, columns = np.nonzero(wanted)
    values, inverse = np.unique(instances[wanted], return_inverse=True)
    count = len(values)
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.full((count, 2), -1)
    points = np.stack([columns, rows], axis=1)
    np.minimum.at(low, inverse, points)
    np.maximum.at(high, inverse, points)
    labels = [ids[value // PER_CLASS] for value in values.tolist()]
    # Boxes end behind their last pixel.
    return cleaned(np.hstack([low, high + 1]), labels, [False] * count, instances.shape)


def _instance_ids(file: Path) -> np.ndarray:
    image = decoded(file)
    if image.mode not in ("I", "I;16", "I;16B", "L"):
        raise UserError(f"{file}: holds colours (mode {image.mode}), not instance ids; restore it")
    return np.asarray(image).astype(np.int64)


def _painted(file: Path, boxes: Boxes) -> np.ndarray:
    try:
        content = json.loads(file.read_bytes())
        size = content["imgWidth"], content["imgHeight"]
        if min(size) < 1 or size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"{size[0]}x{size[1]} pixels")
        canvas = Image.new("I", size)
        draw, counts = ImageDraw.Draw(canvas), dict.fromkeys(boxes.classes, 0)
        # In the order of the file, as the official script does: the last object hides the others.
        for instance in content["objects"]:
            name = instance["label"]
            if name in UNPAINTED or instance.get("deleted"):
                continue
            value = 0
            if name in counts:
                value = boxes.ids[boxes.classes.index(name)] * PER_CLASS + counts[name]
                counts[name] += 1
            draw.polygon([tuple(point) for point in instance["polygon"]], fill=value)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); unpack it again") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file}: is no Cityscapes polygon file ({error!r}); restore it") from None
    except RecursionError:
        raise UserError(f"{file}: is nested without end; restore it") from None
    return np.asarray(canvas).astype(np.int64)


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
    repaired = Counter(
        clamped=int((valid & (kept != given).any(1)).sum()),
        fractional=int((valid & (given != np.round(given)).any(1)).sum()),
        dropped=int((~valid).sum()),
    )
    return Objects(
        boxes=kept[valid].astype(np.float32),
        labels=np.array(labels, dtype=np.int64)[valid],
        difficult=np.array(difficult, dtype=bool)[valid],
        size=size,
        repaired=+repaired,
    )
