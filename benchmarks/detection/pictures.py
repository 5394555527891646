"""Contact sheets of a finished run: ground truth on the left, its predictions beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.data.cards import Card, Pair, load_card
from benchmarks.data.pictures import BACKGROUND, FONT, GAP, INK, evenly_spaced, header, label_line
from benchmarks.detection import predictions
from benchmarks.detection.predictions import Detections
from benchmarks.detection.reading import Objects, evaluation_pairs, read_pair
from benchmarks.detection.settings import DetectionProtocol
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, scored_in
from benchmarks.record import Record, write_atomically

# RGB, told apart by colour-blind readers too (Okabe and Ito 2008, jfly.uni-koeln.de/color); the
# last one, for a data set of eight classes, is white in place of their black.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
)


@dataclass(frozen=True)
class Sample:
    """One row of the sheet.

    Attributes:
        name: of the image.
        image: RGB uint8 (H, W, 3), at the size of the file.
        objects: boxes in pixels of the file.
        detections: boxes in pixels of the file.
        others: name and detections of further records, drawn on the right of these.
    """

    name: str
    image: np.ndarray
    objects: Objects
    detections: Detections
    others: tuple[tuple[str, Detections], ...] = ()


def write_sheets(
    records: Mapping[Path, Record], data_root: Path, out: Path, images: int
) -> Iterator[Path]:
    """Write `predictions_<domain>.png` for every scored domain of some records; no model is run.

    Nobody picks the images: they are evenly spaced over the domain's list, which is in name order,
    the first and the last among them. Boxes are those of the last iteration, kept beside the record
    as `<record>.<domain>.json.gz`.

    Args:
        records: path -> record, in the order of the columns.
        data_root: folder of the data sets.
        out: folder of the pictures.
        images: how many of each domain, from 1 on; all where it has fewer.

    Yields:
        Each file, as it is written.

    Raises:
        UserError: no finished detection records of the same data, other data than theirs, or a file
            of predictions or of data that cannot be read.
    """
    record = next(iter(records.values()))
    scored = [_scored(other, place) for place, other in records.items()]
    engine, domains = scored[0]
    for domain in domains:
        card, name = load_card(domain.card, "boxes"), domain.domain
        now = card.fingerprint(data_root, domain.split, exclude=domain.exclude)
        for place, other in records.items():
            if now != other.data.get(name):
                raise UserError(
                    f"{data_root}: {name} is not the one that {place} was scored on; give the "
                    "folder of that one with --data-root, or run the cell again"
                )
        pairs = evaluation_pairs(domain, data_root)
        names = [pair.name for pair in pairs]
        by_record = {
            f"{other.label} seed {other.seed}": predictions.read(
                place.with_suffix(f".{name}.json.gz"), names, len(card.classes)
            )
            for place, other in records.items()
        }
        samples = _evenly_spaced(pairs, by_record, card, images)
        title = (
            f"{name}: {record.label} seed {record.seed} ({record.placement}), {record.protocol} "
            f"version {record.protocol_version}, engine {engine}, "
            f"{len(samples)} of {len(pairs)} images"
        )
        sheet = out / f"predictions_{name}.png"
        contact_sheet(sheet, title, samples, card.classes, columns=2 if len(records) == 1 else 1)
        yield sheet


def _scored(record: Record, path: Path) -> tuple[str, list[Domain]]:
    """Engine and scored domains of a finished detection record.

    Raises:
        UserError: another kind of record, or a cell that lacks them.
    """
    domains = scored_in(record.cell, "detection", DetectionProtocol.roles.values(), str(path))
    if record.status != "done":
        raise UserError(f"{path}: no predictions, its cell is {record.status}; run it again")
    return str(record.cell.get("engine")), domains


def _evenly_spaced(
    pairs: Sequence[Pair], by_record: Mapping[str, Sequence[Detections]], card: Card, count: int
) -> list[Sample]:
    first, *others = by_record.values()
    names = list(by_record)[1:]
    return [
        Sample(
            pairs[place].name,
            *read_pair(pairs[place], card),
            first[place],
            tuple((name, own[place]) for name, own in zip(names, others, strict=True)),
        )
        for place in evenly_spaced(len(pairs), count)
    ]


def contact_sheet(
    path: Path,
    title: str,
    samples: Sequence[Sample],
    classes: Sequence[str],
    min_score: float = 0.5,
    columns: int = 2,
    width: int = 320,
) -> None:
    """Write a PNG, whole or not at all; the same input gives the same bytes.

    Args:
        path: ends in .png.
        title: first line.
        samples: the images to show.
        classes: names in the order of the labels.
        min_score: predictions below it are left out.
        columns: samples beside each other, each of them two pictures.
        width: of one picture in pixels of the sheet.

    Raises:
        ValueError: there is no sample.
        UserError: the file cannot be written.
    """
    tiles = [_pair(sample, classes, min_score, width) for sample in samples]
    if not tiles:
        raise ValueError("no sample to show")
    height = max(tile.shape[0] for tile in tiles)
    tiles = [_padded(tile, height, tile.shape[1]) for tile in tiles]
    blank = np.full_like(tiles[0], BACKGROUND)
    tiles += [blank] * (-len(tiles) % min(columns, len(tiles)))
    step = min(columns, len(tiles))
    rows = [np.hstack(tiles[place : place + step]) for place in range(0, len(tiles), step)]
    others = [name for name, _ in samples[0].others]
    sheet = np.vstack([_header(title, classes, min_score, rows[0].shape[1], others), *rows])
    done, png = cv2.imencode(
        ".png", np.ascontiguousarray(sheet[:, :, ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    if not done:
        raise ValueError(f"{sheet.shape}: OpenCV makes no PNG of it")
    write_atomically(path, lambda file: file.write(png.tobytes()))


def _pair(sample: Sample, classes: Sequence[str], min_score: float, width: int) -> np.ndarray:
    """Ground truth and predictions beside each other below the name."""
    scale = width / sample.image.shape[1]
    size = width, max(round(sample.image.shape[0] * scale), 1)
    # Enlarged pixels stay pixels: what the detector saw, and a PNG of half the size.
    image = cv2.resize(
        sample.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    objects, left = sample.objects, image.copy()
    for box, label, difficult in zip(objects.boxes, objects.labels, objects.difficult, strict=True):
        name = f"({classes[label]})" if difficult else classes[label]
        _draw(left, box * scale, COLOURS[label % len(COLOURS)], name, 1 if difficult else 2)
    columns = [left]
    for detections in (sample.detections, *(own for _, own in sample.others)):
        right = image.copy()
        shown = np.flatnonzero(detections.scores >= min_score)
        for place in shown[np.argsort(detections.scores[shown], kind="stable")]:  # surest on top
            box, label, score = (
                part[place] for part in (detections.boxes, detections.labels, detections.scores)
            )
            colour = COLOURS[label % len(COLOURS)]
            _draw(right, box * scale, colour, f"{classes[label]} {100 * score:.0f}", 2)
        columns.append(right)
    parted = [_padded(column, size[1], width + 2) for column in columns[:-1]]
    pictures = np.hstack([*parted, columns[-1]])
    tile = _padded(pictures, size[1] + GAP, pictures.shape[1] + GAP)
    return np.vstack([label_line(sample.name, tile.shape[1]), tile])


def _draw(
    image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], text: str, thick: int
) -> None:
    """A box, its corners in pixels of the picture, with its text above or, at the top, inside."""
    x1, y1, x2, y2 = (int(value) for value in np.round(box))
    cv2.rectangle(image, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), colour, thick)
    (wide, high), below = cv2.getTextSize(text, FONT, 0.35, 1)
    left = max(min(x1, image.shape[1] - wide - 2), 0)
    base = y1 - below if y1 >= high + below else y1 + high + below
    cv2.rectangle(image, (left, base - high - 1), (left + wide + 1, base + below - 2), colour, -1)
    ink = (0, 0, 0) if sum(colour) > 320 else (255, 255, 255)
    cv2.putText(image, text, (left + 1, base), FONT, 0.35, ink, 1, cv2.LINE_AA)


def _header(
    title: str, classes: Sequence[str], min_score: float, width: int, others: Sequence[str]
) -> np.ndarray:
    """Title, what is shown, and the colours of the classes, on as many lines as it takes."""
    what = f"left: ground truth, (difficult) thin; right: predictions of score >= {min_score:g}"
    words = [(title, INK), (what, INK)]
    words += [("then: " + ", ".join(others), INK)] if others else []
    words += [(name, COLOURS[label % len(COLOURS)]) for label, name in enumerate(classes)]
    return header(words, width)


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image with background below and on the right, up to the given size."""
    below, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=BACKGROUND)
