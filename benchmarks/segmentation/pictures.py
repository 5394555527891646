"""Strips of segmentation: an image, its ground truth, and what several records predicted for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.data.cards import IGNORE, Card, load_card
from benchmarks.data.pictures import BACKGROUND, GAP, INK, PALETTE, header, label_line
from benchmarks.errors import UserError
from benchmarks.protocol import Domain, scored_in
from benchmarks.record import Imported, Record, write_atomically
from benchmarks.segmentation import predictions
from benchmarks.segmentation.data import evaluation_pairs, read_pair
from benchmarks.segmentation.settings import SegmentationProtocol


@dataclass(frozen=True)
class Street:
    """One image with its ground truth, as small as the kept predictions.

    Attributes:
        image: RGB uint8 (H, W, 3).
        classes: uint8 (H, W), trainIds, 255 = void.
    """

    name: str
    image: np.ndarray
    classes: np.ndarray


def domains_of(record: Record | Imported, path: Path) -> list[Domain]:
    """The scored domains of a segmentation record.

    Raises:
        UserError: another kind of record, or a cell that lacks them.
    """
    roles = SegmentationProtocol.roles.values()
    return scored_in(record.cell, "segmentation", roles, str(path))


def streets(domain: Domain, data_root: Path, names: Sequence[str]) -> list[Street]:
    """The named images of a domain, thinned as kept predictions are.

    Raises:
        UserError: a file or folder is not as its card says, or an image is not there.
    """
    card = load_card(domain.card, "label")
    pairs = {pair.name: pair for pair in evaluation_pairs(domain, data_root)}
    if missing := [name for name in names if name not in pairs]:
        raise UserError(
            f"{data_root}: {domain.domain} has no image {missing[0]}; give the folder of the data "
            "that the record was made from with --data-root"
        )
    made = []
    for name in names:
        image, label = read_pair(pairs[name], card, domain.halve)
        classes = predictions.thinned(label)
        size = classes.shape[1], classes.shape[0]
        made.append(Street(name, cv2.resize(image, size, interpolation=cv2.INTER_AREA), classes))
    return made


def write_strips(
    records: Mapping[Path, Record | Imported], data_root: Path, out: Path, images: int
) -> Iterator[Path]:
    """Write `pictures_<domain>.png` for every domain that all records were scored on.

    From left to right: image, ground truth, the predictions of each record, as they were kept;
    no model is run.

    Args:
        records: path -> record, in the order of the columns.
        data_root: folder of the data sets.
        out: folder of the pictures.
        images: how many rows at most; there are `KEPT_IMAGES`.

    Yields:
        Each file, as it is written.

    Raises:
        UserError: no finished segmentation records of the same data, or nothing is kept.
        ValueError: OpenCV makes no PNG of a sheet.
    """
    (first, record), *others = records.items()
    for domain in domains_of(record, first):
        name, card = domain.domain, load_card(domain.card, "label")
        for path, other in others:
            if other.data.get(name) != record.data.get(name):
                raise UserError(f"{path}: scored on other data ({name}) than {first}")
        if card.fingerprint(data_root, domain.split, exclude=domain.exclude) != record.data[name]:
            raise UserError(
                f"{data_root}: {name} is not the one that {first} was scored on; give the folder "
                f"of that one with --data-root, or {record.again}"
            )
        kept = {
            path: predictions.read(path.with_suffix(f".{name}.png"), own.again)
            for path, own in records.items()
        }
        names = [one.name for one in kept[first]][:images]
        for path, own in kept.items():
            if [one.name for one in own][: len(names)] != names:
                raise UserError(f"{path}: keeps other images of {name} than {first}")
        columns = [
            (records[path].title, [one.classes for one in own]) for path, own in kept.items()
        ]
        made = "; ".join(dict.fromkeys(own.circumstances for own in records.values()))
        title = f"{name}: {record.protocol} version {record.protocol_version}, {made}"
        sheet = out / f"pictures_{name}.png"
        _write_sheet(sheet, title, streets(domain, data_root, names), columns, card)
        yield sheet


def _write_sheet(
    path: Path,
    title: str,
    shown: Sequence[Street],
    columns: Sequence[tuple[str, Sequence[np.ndarray]]],
    card: Card,
    width: int = 320,
) -> None:
    rows = []
    for place, street in enumerate(shown):
        tiles = [("image: " + street.name, street.image), ("truth", coloured(street.classes))]
        tiles += [(label, coloured(own[place])) for label, own in columns]
        rows.append(np.hstack([_tile(words, picture, width) for words, picture in tiles]))
    colours = zip(card.classes, map(tuple, PALETTE.tolist()), strict=False)
    wide = rows[0].shape[1]
    sheet = np.vstack([header([(title, INK)], wide), header([*colours], wide, swatch=True), *rows])
    done, png = cv2.imencode(
        ".png", np.ascontiguousarray(sheet[:, :, ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    if not done:
        raise ValueError(f"{sheet.shape}: OpenCV makes no PNG of it")
    write_atomically(path, lambda file: file.write(png.tobytes()))


def coloured(classes: np.ndarray) -> np.ndarray:
    """Classes (H, W) in the colours of `PALETTE`, void black: RGB uint8 (H, W, 3)."""
    colours = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
    colours[: len(PALETTE)] = PALETTE
    return colours[classes]


def _tile(words: str, picture: np.ndarray, width: int) -> np.ndarray:
    height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    larger = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
    tile = np.pad(larger, ((0, GAP), (0, GAP), (0, 0)), constant_values=BACKGROUND)
    return np.vstack([label_line(words, tile.shape[1]), tile])
