"""Predictions of one domain on disk: gzipped JSON in COCO's result format, one detection a line.

image_id is the place of the image in the domain's list, from 1 on, and file_name its name, which
COCO's tools carry along; category_id is the label + 1; bbox is x, y, width, height in pixels of the
file, width = x2 - x1. Coordinates have 2 decimals and scores 5. Metrics are computed from these
rounded numbers, so that the file gives the record's metrics again, to the bit.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.errors import UserError
from benchmarks.record import write_atomically

PIXEL_DECIMALS = 2
SCORE_DECIMALS = 5


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: (n, 4), x1, y1, x2, y2 in pixels of the file: corners of continuous boxes of width x2
            - x1. An inverted one (x2 < x1) overlaps nothing.
        scores: (n,). Ties are broken by the order: what stands first counts first.
        labels: int (n,), from 0 on.

    Raises:
        ValueError: the shapes differ, or a number is not finite.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = self.boxes.shape, self.scores.shape, self.labels.shape
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"boxes, scores and labels have shapes {shapes}")
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a detection is not finite")


def rounded(detections: Detections) -> Detections:
    """The detections of one image as they are kept, in float64; rounding twice changes nothing."""
    return Detections(
        detections.boxes.astype(np.float64).round(PIXEL_DECIMALS),
        detections.scores.astype(np.float64).round(SCORE_DECIMALS),
        detections.labels.astype(np.int64),
    )


def entries(detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    """COCO results, without file names, of images 1, 2, ... in their order."""
    for image, kept in enumerate(map(rounded, detections), start=1):
        corners, sizes = kept.boxes[:, :2], kept.boxes[:, 2:] - kept.boxes[:, :2]
        boxes = np.hstack([corners, sizes]).round(PIXEL_DECIMALS).tolist()
        rows = zip(boxes, kept.scores.tolist(), kept.labels.tolist(), strict=True)
        for box, score, label in rows:
            yield {"image_id": image, "category_id": label + 1, "bbox": box, "score": score}


def write(path: Path, names: Sequence[str], detections: Sequence[Detections]) -> None:
    """Write the predictions of one domain, whole or not at all; the same ones give the same bytes.

    Args:
        path: ends in .json.gz.
        names: of the images, unique, in the order of the domain's list.
        detections: per image, in the same order.

    Raises:
        ValueError: names and detections differ in number.
        UserError: the file cannot be written.
    """
    if len(names) != len(detections):
        raise ValueError(f"{len(names)} names for {len(detections)} images")
    lines = (
        json.dumps({**entry, "file_name": names[entry["image_id"] - 1]}, separators=(",", ":"))
        for entry in entries(detections)
    )
    text = "[" + ",\n".join(lines) + "]\n"

    def put(file: IO[bytes]) -> None:
        # No name and no time of day, which would make equal contents differ.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            packed.write(text.encode())

    write_atomically(path, put)


def read(path: Path, names: Sequence[str], classes: int) -> list[Detections]:
    """Detections per image, as `rounded` gives them, in the order that they were written in.

    Args:
        path: file made by `write`.
        names: of all images of the domain, in the order of its list.
        classes: number of classes.

    Raises:
        UserError: unreadable, no such file of results, or made from another list of images.
    """
    fix = "delete it and run its cell again"
    try:
        with gzip.open(path, "rb") as file:
            results = json.loads(file.read())
        rows: list[list[tuple]] = [[] for _ in names]
        for result in results:
            place, row = _row(result, classes)
            listed = names[place] if 0 <= place < len(names) else None
            if result["file_name"] != listed:
                raise UserError(
                    f"{path}: image {place + 1} is {result['file_name']!r} here and {listed!r} in "
                    "the list of the domain; use the list that the record names, or run its cell "
                    "again"
                )
            rows[place].append(row)
        return [_detections(image) for image in rows]
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: predictions cannot be read ({why}); {fix}") from None
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path}: no COCO results ({error!r}); {fix}") from None


def _row(result: dict[str, Any], classes: int) -> tuple[int, tuple]:
    """Place of the image from 0 on; corners, score and label.

    Raises:
        ValueError: a number that is no place or class, or is not finite.
    """
    x, y, width, height = result["bbox"]
    row = x, y, x + width, y + height, result["score"], result["category_id"] - 1
    if not 0 <= row[-1] < classes:
        raise ValueError(f"category_id {result['category_id']} is outside 1..{classes}")
    if not all(map(math.isfinite, row)):  # json reads NaN and Infinity
        raise ValueError(f"bbox {result['bbox']} or score {result['score']} is not finite")
    if not all(isinstance(result[key], int) for key in ("image_id", "category_id")):
        raise ValueError("an image_id or category_id is no whole number")
    return result["image_id"] - 1, row


def _detections(rows: list[tuple]) -> Detections:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return rounded(Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64)))
