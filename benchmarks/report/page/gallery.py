"""The gallery of the page: a street, its ground truth, and what every row made of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.data.cards import IGNORE, Card, load_card
from benchmarks.data.pictures import PALETTE, evenly_spaced
from benchmarks.detection import predictions as boxes
from benchmarks.detection.metrics import right_and_wrong
from benchmarks.detection.pictures import COLOURS
from benchmarks.detection.predictions import Detections
from benchmarks.detection.reading import evaluation_pairs, read_pair
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, scored_in
from benchmarks.record import Record
from benchmarks.report.findings import baseline
from benchmarks.report.page.data import Section, domain_name
from benchmarks.report.spec import AVERAGE
from benchmarks.segmentation import predictions as classes
from benchmarks.segmentation.pictures import streets
from benchmarks.segmentation.predictions import KEPT_IMAGES

MIN_SCORE = 0.5  # of a detection that is shown
_BOX_WIDTH = 240  # pixels of an image with boxes; streets with classes are as small as kept


@dataclass(frozen=True)
class Picture:
    """One picture of a strip.

    Attributes:
        title: the row, or what else it shows.
        says: how much of it is right.
        source: a data: address; "" where boxes are drawn over the street's image.
        boxes: colour -> path of the boxes of a class, in pixels of the image.
    """

    title: str
    says: str
    source: str
    boxes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exhibit:
    """One street.

    Attributes:
        image: as a data: address.
        size: width and height in pixels that the pictures are drawn in.
        truth: ground truth.
        rows: what the rows predicted.
        spread: highest minus lowest share of right predictions.
    """

    domain: str
    name: str
    image: str
    size: tuple[int, int]
    truth: Picture
    rows: list[Picture]
    spread: float


Kept = dict[str, tuple[Path, Record]]  # row -> a record of it with what it predicted beside it
_ENDINGS = {"segmentation": "png", "detection": "json.gz"}
_WORDS = {
    "segmentation": "Percent of pixels that are right.",
    "detection": (
        f"Boxes of score {MIN_SCORE:g} and more: how many are right, of how many there are, and "
        "how many are wrong, as in VOC's metric. Dashed: difficult, neither right nor wrong."
    ),
}


def words(section: Section) -> str:
    """How to read the gallery."""
    return (
        "Four images of every domain, the same for all rows, none of them picked; first those on "
        f"which the rows differ most. {_WORDS[section.protocol.task]}"
    )


def shown_first(section: Section, street: Exhibit) -> list[str]:
    """The rows that a reader sees before choosing: reference, the two best, the last on Avg."""
    block, held = section.table.blocks[0], {picture.title for picture in street.rows}
    scored = [row for row in block.rows if row.label in held and row.scores[AVERAGE]]
    ranked = [row.label for row in sorted(scored, key=lambda row: -row.scores[AVERAGE].mean)]
    return [baseline(block), *ranked[:2], *ranked[-1:]]


def legend(section: Section) -> list[tuple[str, str]]:
    """Class and its colour, #rrggbb."""
    if section.protocol.task == "detection":
        classes = load_card(section.protocol.scored_domains[0].card, "boxes").classes
        return [(name, _hex(COLOURS[label % len(COLOURS)])) for label, name in enumerate(classes)]
    classes = load_card(section.protocol.scored_domains[0].card, "label").classes
    return [(name, _hex(colour)) for name, colour in zip(classes, PALETTE.tolist(), strict=False)]


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def exhibits(
    section: Section, places: Mapping[str, Path], data_root: Path | None
) -> tuple[list[Exhibit], str]:
    """The streets of a table, most different first; or none, and why in one line.

    One seed of every row of the default placement: the first that kept its predictions.
    """
    task = section.protocol.task
    records: Kept = {}
    for row in section.table.blocks[0].rows:
        for record in row.records:
            path = places.get(record.digest)
            pattern = f"{path.stem}.*.{_ENDINGS[task]}" if path else ""
            if record.status == "done" and path and list(path.parent.glob(pattern)):
                records[row.label] = path, record
                break
    if not records:
        return [], "No gallery: the runs of these records kept no predictions."
    if data_root is None or not data_root.is_dir():
        return [], "No gallery: the images are not here; name their folder with --data-root."
    kind, draw = {"segmentation": ("label", with_classes), "detection": ("boxes", with_boxes)}[task]
    path, record = next(iter(records.values()))
    made: list[Exhibit] = []
    try:
        roles = type(section.protocol).roles.values()
        for domain in scored_in(record.cell, task, roles, str(path)):
            card = load_card(domain.card, kind)
            now = card.fingerprint(data_root, domain.split, exclude=domain.exclude)
            # Predictions over other images than they were made on would look like mistakes.
            if any(now != other.data.get(domain.domain) for _, other in records.values()):
                return [], f"No gallery: {domain.domain} here is not the data of the records."
            made += draw(domain_name(section, domain.domain), domain, card, data_root, records)
    except UserError as error:
        return [], f"No gallery: {error}"
    return sorted(made, key=lambda one: -one.spread), ""


def with_classes(
    heading: str, domain: Domain, card: Card, data_root: Path, records: Kept
) -> Iterator[Exhibit]:
    """The streets of a domain with a class per pixel.

    Raises:
        UserError: predictions cannot be read, or rows keep other images.
    """
    kept = {
        label: classes.read(path.with_suffix(f".{domain.domain}.png"))
        for label, (path, _) in records.items()
    }
    names = [one.name for one in next(iter(kept.values()))]
    for label, images in kept.items():
        if [one.name for one in images] != names:
            raise UserError(f"{records[label][0]}: keeps other images of {domain.domain}")
    for place, street in enumerate(streets(domain, data_root, names)):
        known, rows, shares = street.classes != IGNORE, [], []
        for label, images in kept.items():
            right = images[place].classes[known] == street.classes[known]
            shares.append(100 * float(right.mean()) if known.any() else 0.0)
            source = _indexed(images[place].classes)
            rows.append(Picture(label, f"{shares[-1]:.1f}", source))
        yield Exhibit(
            heading,
            street.name,
            _jpeg(street.image),
            street.classes.shape[::-1],
            Picture("truth", "", _indexed(street.classes)),
            rows,
            max(shares) - min(shares),
        )


def with_boxes(
    heading: str, domain: Domain, card: Card, data_root: Path, records: Kept
) -> Iterator[Exhibit]:
    """The streets of a domain with boxes.

    Raises:
        UserError: predictions or data cannot be read.
    """
    pairs = evaluation_pairs(domain, data_root)
    names, count = [pair.name for pair in pairs], len(card.classes)
    kept = {
        label: boxes.read(path.with_suffix(f".{domain.domain}.json.gz"), names, count)
        for label, (path, _) in records.items()
    }
    for place in evenly_spaced(len(pairs), KEPT_IMAGES):
        image, truth = read_pair(pairs[place], card)
        wanted, rows, shares = int((~truth.difficult).sum()), [], []
        for label, images in kept.items():
            shown = _sure(images[place])
            right, wrong = right_and_wrong(truth, shown)
            # F1 in percent: boxes that are wrong count like those that are not seen.
            shares.append(200 * right / max(right + wrong + wanted, 1))
            says = f"{right} of {wanted}, {wrong} wrong"
            rows.append(Picture(label, says, "", _paths(shown.boxes, shown.labels)))
        height, width = image.shape[:2]
        size = _BOX_WIDTH, round(height * _BOX_WIDTH / width)
        drawn = _paths(truth.boxes, truth.labels, truth.difficult)
        yield Exhibit(
            heading,
            pairs[place].name,
            _jpeg(cv2.resize(image, size, interpolation=cv2.INTER_AREA)),
            (width, height),
            Picture("truth", "", "", drawn),
            rows,
            max(shares) - min(shares),
        )


def _sure(detections: Detections) -> Detections:
    sure = detections.scores >= MIN_SCORE
    return Detections(detections.boxes[sure], detections.scores[sure], detections.labels[sure])


def _paths(
    corners: np.ndarray, labels: np.ndarray, dashed: np.ndarray | None = None
) -> dict[str, str]:
    """Colour -> SVG path of all boxes of a class; a space and "dashed" follow some colours."""
    drawn: dict[str, str] = {}
    for place, (x1, y1, x2, y2) in enumerate(corners.round().astype(int).tolist()):
        style = _hex(COLOURS[labels[place] % len(COLOURS)])
        style += " dashed" if dashed is not None and dashed[place] else ""
        drawn[style] = f"{drawn.get(style, '')}M{x1} {y1}H{x2}V{y2}H{x1}z"
    return drawn


def _indexed(classes: np.ndarray) -> str:
    """A PNG with as few colours as the picture has; void is black."""
    present, indices = np.unique(classes, return_inverse=True)
    colours = [PALETTE[one].tolist() if one < len(PALETTE) else [0, 0, 0] for one in present]
    picture = Image.fromarray(indices.reshape(classes.shape).astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    file = io.BytesIO()
    # Fewer bits per pixel: pictures are most of what the page weighs.
    bits = next(bits for bits in (1, 2, 4, 8) if len(present) <= 2**bits)
    picture.save(file, "PNG", optimize=True, bits=bits)
    return _address(file, "png")


def _jpeg(image: np.ndarray) -> str:
    file = io.BytesIO()
    # Enough to see what is there; at 80 the streets alone would be a sixth of the page.
    Image.fromarray(image).save(file, "JPEG", quality=60, optimize=True)
    return _address(file, "jpeg")


def _address(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
