"""Ground truth and detections for tests: written out, of the oracle, and drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from paths import DATA

from benchmarks.detection.predictions import Detections

ORACLE = json.loads((DATA / "voc_ap.json").read_text(encoding="utf-8"))
CLASSES = ORACLE["classes"]
BOX, FAR = (0, 0, 10, 10), (50, 50, 60, 60)


@dataclass
class Truth:
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def truth(*objects: tuple, difficult: Sequence[int] = ()) -> Truth:
    """Objects as (label, x1, y1, x2, y2); `difficult` lists the places of those that are."""
    table = np.array(objects, dtype=np.float32).reshape(-1, 5)
    flags = np.isin(np.arange(len(table)), difficult)
    return Truth(table[:, 1:], table[:, 0].astype(np.int64), flags)


def detected(*rows: tuple) -> Detections:
    """Detections as (label, score, x1, y1, x2, y2)."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64))


def from_oracle(oracle: dict, dtype: type) -> tuple[list[Truth], list[Detections]]:
    """Ground truth from VOC's 1-based inclusive pixels to corners; detections are corners."""
    labels = {name: index for index, name in enumerate(CLASSES)}
    every_truth, every_detected = [], []
    for image in oracle["images"]:
        objects = [row for row in oracle["ground_truth"] if row["image"] == image]
        boxes = np.array([row["box"] for row in objects], dtype=np.float32).reshape(-1, 4)
        kinds = np.array([labels[row["cls"]] for row in objects], dtype=np.int64)
        flags = np.array([row["difficult"] for row in objects], dtype=bool)
        every_truth.append(Truth(boxes - np.array([1, 1, 0, 0], dtype=np.float32), kinds, flags))
        rows = [row for row in oracle["detections"] if row["image"] == image]
        every_detected.append(
            Detections(
                np.array([row["box"] for row in rows], dtype=dtype).reshape(-1, 4),
                np.array([row["score"] for row in rows], dtype=dtype),
                np.array([labels[row["cls"]] for row in rows], dtype=np.int64),
            )
        )
    return every_truth, every_detected


def crowded(seed: int, images: int = 8) -> tuple[list[Truth], list[Detections]]:
    """Few classes, coarse boxes and scores: many ties, duplicates, equal overlaps and thresholds.

    Some images without objects, some without detections, some boxes of each COCO size.
    """
    rng = np.random.default_rng(seed)
    every_truth, every_detected = [], []
    for _ in range(images):
        scale = rng.choice([1, 4, 16])
        corners = rng.integers(0, 12, (rng.integers(0, 7), 2))
        boxes = np.hstack([corners, corners + rng.integers(1, 9, corners.shape)]) * scale
        kinds = rng.integers(0, 3, len(boxes))
        every_truth.append(Truth(boxes.astype(np.float32), kinds, rng.random(len(boxes)) < 0.3))
        count = int(rng.integers(0, 15))
        if len(boxes):
            picked = rng.integers(0, len(boxes), count)
            moved = boxes[picked] + scale * rng.integers(-1, 2, (count, 4))
            moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
            labels = np.where(rng.random(count) < 0.8, kinds[picked], rng.integers(0, 3, count))
        else:
            moved, labels = np.tile([[0, 0, 8, 8]], (count, 1)), rng.integers(0, 3, count)
        marks = rng.integers(0, 6, count).astype(np.float32) / 5
        every_detected.append(Detections(moved.astype(np.float32), marks, labels))
    return every_truth, every_detected
