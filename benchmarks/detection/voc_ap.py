"""PASCAL VOC's average precision: over 11 points, as in 2007, and as the area under the curve.

VOC's legacy widths, xmax - xmin + 1 over 1-based inclusive pixels, are those of the continuous
boxes here: such a box is (xmin - 1, ymin - 1, xmax, ymax), of width xmax - xmin + 1. The evaluator
of Detectron2 (commit 02b5c4e), the reference, likewise adds 1 to x1 and y1 of a detection and then
1 to every width. What it does besides, and this file does not: it prints scores with 3 decimals and
coordinates with 1 before it scores, counts a class without objects as 0, and sorts scores with a
sort that is not stable, so that ties fall one way or the other with the processor (numpy's choice
of vector instructions). Here ties keep the order of the images, then that of the detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.detection.detections import Detections, Objects, check

# As the reference makes them, not i / 10: the fourth, 0.30000000000000004, is above a recall of
# 3 / 10.
RECALLS = np.arange(0.0, 1.1, 0.1)


def voc_scores(
    ground_truth: Sequence[Objects],
    detections: Sequence[Detections],
    classes: int,
    threshold: float = 0.5,
) -> tuple[list[float | None], list[float | None]]:
    """VOC average precision per class in percent: (over 11 points, area under the curve).

    A detection is judged by the one object of its class that it overlaps most, the first of equals,
    taken or not. Where the overlap is above the threshold (not equal to it), it is ignored if the
    object is difficult, right if it is the best scored one on that object, else wrong (a
    duplicate). Everything else is wrong.

    Raises:
        ValueError: see `check`.
    """
    check(ground_truth, detections, classes)
    overlap, target = _targets(ground_truth, detections)
    score = np.concatenate([each.scores for each in detections])
    label = np.concatenate([each.labels for each in detections])
    kind = np.concatenate([each.labels for each in ground_truth])
    difficult = np.concatenate([each.difficult for each in ground_truth]).astype(bool)
    target = np.where(overlap > threshold, target, -1)
    ignored = np.append(difficult, False)[target]  # place -1 is the appended one
    voc07: list[float | None] = []
    area: list[float | None] = []
    for wanted in range(classes):
        positives = np.count_nonzero((kind == wanted) & ~difficult)
        counted = np.flatnonzero((label == wanted) & ~ignored)
        counted = counted[np.argsort(-score[counted], kind="stable")]
        recall, precision = _curve(target[counted], positives)
        voc07.append(_eleven_points(recall, precision) if positives else None)
        area.append(_area(recall, precision) if positives else None)
    return voc07, area


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes, float64 (n, m).

    An empty or inverted box overlaps nothing. VOC's with its +1 widths: see the top of the file.
    """
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clip(0).prod(-1)
    sizes, other_sizes = ((each[:, 2:] - each[:, :2]).prod(-1) for each in (boxes, others))
    union = sizes[:, None] + other_sizes - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _targets(
    ground_truth: Sequence[Objects], detections: Sequence[Detections]
) -> tuple[np.ndarray, np.ndarray]:
    """Largest overlap with an object of its class, and that object's number in the domain.

    Both (detections of all images,); -1 and any number where the image has no such object.
    """
    overlaps, numbers, first = [], [], 0
    for truth, found in zip(ground_truth, detections, strict=True):
        same = found.labels[:, None] == truth.labels
        overlap = np.where(same, iou(found.boxes, truth.boxes), -1.0)
        if len(truth.labels):
            overlaps.append(overlap.max(1))
            numbers.append(first + overlap.argmax(1))
        else:
            overlaps.append(np.full(len(found.labels), -1.0))
            numbers.append(np.full(len(found.labels), -1))
        first += len(truth.labels)
    return np.concatenate(overlaps), np.concatenate(numbers)


def _curve(target: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection.

    Args:
        target: number of the object that each overlaps, -1 for none; best score first.
        positives: number of objects to be found.
    """
    objects, first = np.unique(target, return_index=True)
    right = np.zeros(len(target))
    right[first[objects >= 0]] = 1
    found = right.cumsum()
    return found / max(positives, 1), found / np.arange(1, len(target) + 1)


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    best = [precision[recall >= level].max(initial=0.0) for level in RECALLS]
    return float(100 * np.mean(best))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the precision made monotonous: the best one at this recall or a higher one."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * np.sum(np.diff(recall, prepend=0.0) * envelope))
