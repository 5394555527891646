"""What a detector found in an image and what is there, as the metrics read them.

Boxes are corners of continuous boxes, x1, y1, x2, y2 in pixels of the file, width x2 - x1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Objects(Protocol):
    """Ground truth of one image.

    Attributes:
        boxes: (n, 4) pixels of the file. labels: int (n,). difficult: bool (n,), neither to be
            found nor wrong to be found.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image.

    Attributes:
        boxes: (n, 4) pixels of the file. scores: (n,). labels: int (n,), 0-based. The order breaks
            ties of the score: what stands first counts first. An inverted box (x2 < x1) overlaps
            nothing.

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


def check(ground_truth: Sequence[Objects], detections: Sequence[Detections], classes: int) -> None:
    """Refuse lists that do not belong together.

    Raises:
        ValueError: no images, lists of different length, or a label that is no class.
    """
    if not len(ground_truth) == len(detections) > 0:
        raise ValueError(f"{len(ground_truth)} images with {len(detections)} lists of detections")
    for each in (*ground_truth, *detections):
        if len(each.labels) and not 0 <= each.labels.min() <= each.labels.max() < classes:
            raise ValueError(f"a label is outside 0..{classes - 1}")
