"""All metrics of one domain: VOC's average precision, two ways, and COCO's.

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
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.detection.predictions import Detections, entries, rounded
from benchmarks.detection.reading import Objects

# As the reference makes them, not i / 10: the fourth, 0.30000000000000004, is above a recall of
# 3 / 10.
RECALLS = np.arange(0.0, 1.1, 0.1)
COCO_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def scores(
    ground_truth: Sequence[Objects], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, float | list[float | None] | None]:
    """All metrics of one domain in percent, of the detections as `predictions.write` keeps them.

    Args:
        ground_truth: per image.
        detections: per image, in the same order, which breaks ties between images.
        classes: names in the order of the labels.

    Returns:
        "AP50_voc07" (11 points) and "AP50_area" with their "_per_class" lists, "AP", "AP50",
        "AP75", "AP_small", "AP_medium", "AP_large" (COCO). A class without objects other than
        difficult ones is None and not part of a mean; a mean over nothing is None.

    Raises:
        ValueError: no images, lists of different length, or a label that is no class.
    """
    detections = [rounded(image) for image in detections]
    voc07, area = voc_scores(ground_truth, detections, len(classes))
    return {
        "AP50_voc07": _mean(voc07),
        "AP50_voc07_per_class": voc07,
        "AP50_area": _mean(area),
        "AP50_area_per_class": area,
        **coco_scores(ground_truth, detections, classes),
    }


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def check(ground_truth: Sequence[Objects], detections: Sequence[Detections], classes: int) -> None:
    """Refuse lists that do not belong together.

    Raises:
        ValueError: no images, lists of different length, or a label that is no class.
    """
    if not len(ground_truth) == len(detections) > 0:
        raise ValueError(f"{len(ground_truth)} images with {len(detections)} lists of detections")
    for labels in (image.labels for image in (*ground_truth, *detections)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"a label is outside 0..{classes - 1}")


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
    score = np.concatenate([image.scores for image in detections])
    label = np.concatenate([image.labels for image in detections])
    kind = np.concatenate([image.labels for image in ground_truth])
    difficult = np.concatenate([image.difficult for image in ground_truth]).astype(bool)
    target = np.where(overlap > threshold, target, -1)
    ignored = np.append(difficult, False)[target]  # place -1 is the appended one
    voc07: list[float | None] = []
    area: list[float | None] = []
    for number in range(classes):
        positives = np.count_nonzero((kind == number) & ~difficult)
        counted = np.flatnonzero((label == number) & ~ignored)
        # Stable: ties keep the order of the images, so that the same detections always score the
        # same.
        counted = counted[np.argsort(-score[counted], kind="stable")]
        recall, precision = _curve(target[counted], positives)
        voc07.append(_eleven_points(recall, precision) if positives else None)
        area.append(_area(recall, precision) if positives else None)
    return voc07, area


def right_and_wrong(
    truth: Objects, detected: Detections, threshold: float = 0.5
) -> tuple[int, int]:
    """How many detections of one image are right and wrong, judged as in `voc_scores`."""
    overlap, target = _targets([truth], [detected])
    target = np.where(overlap > threshold, target, -1)
    counted = target[~np.append(truth.difficult, False)[target]]
    right = len(np.unique(counted[counted >= 0]))
    return right, len(counted) - right


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of (n, 4) and (m, 4) boxes, float64 (n, m).

    An empty or inverted box overlaps nothing. VOC's with its +1 widths: see the top of the file.
    """
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clip(0).prod(-1)
    sizes, other_sizes = ((corners[:, 2:] - corners[:, :2]).prod(-1) for corners in (boxes, others))
    union = sizes[:, None] + other_sizes - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _targets(
    ground_truth: Sequence[Objects], detections: Sequence[Detections]
) -> tuple[np.ndarray, np.ndarray]:
    """Largest overlap with an object of its class, and that object's number in the domain.

    Both (detections of all images,); -1 and any number where the image has no such object.
    """
    overlaps, numbers, first = [], [], 0
    for truth, detected in zip(ground_truth, detections, strict=True):
        same = detected.labels[:, None] == truth.labels
        overlap = np.where(same, iou(detected.boxes, truth.boxes), -1.0)
        if len(truth.labels):
            overlaps.append(overlap.max(1))
            numbers.append(first + overlap.argmax(1))
        else:
            overlaps.append(np.full(len(detected.labels), -1.0))
            numbers.append(np.full(len(detected.labels), -1))
        first += len(truth.labels)
    return np.concatenate(overlaps), np.concatenate(numbers)


def _curve(target: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection.

    Args:
        target: number of the object that each overlaps, -1 for none; best score first.
        positives: number of objects to be found.
    """
    # Sorted by score, the first detection on an object is the best scored one; others repeat it.
    objects, first = np.unique(target, return_index=True)
    right = np.zeros(len(target))
    right[first[objects >= 0]] = 1
    hits = right.cumsum()
    return hits / max(positives, 1), hits / np.arange(1, len(target) + 1)


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    best = [precision[recall >= level].max(initial=0.0) for level in RECALLS]
    return float(100 * np.mean(best))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the precision made monotonous: the best one at this recall or a higher one."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * np.sum(np.diff(recall, prepend=0.0) * envelope))


def coco_scores(
    ground_truth: Sequence[Objects], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, float | None]:
    """COCO's "AP", "AP50", "AP75", "AP_small", "AP_medium" and "AP_large" in percent.

    Size is the area of the box in pixels of the file: small below 32 x 32, large above 96 x 96.
    A difficult object is handed over as a crowd (`iscrowd`, the one kind of object that COCOeval
    ignores): it needs not be found, and a detection that matches no other object is not counted if
    the difficult one covers at least the threshold's share of the detection's area; so are any
    number of them.

    Raises:
        ValueError: see `check`.
    """
    check(ground_truth, detections, len(classes))
    images = [{"id": number} for number in range(1, len(ground_truth) + 1)]
    kinds = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    truth = [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": int(difficult),
        }
        for number, objects in enumerate(ground_truth, start=1)
        for (x1, y1, x2, y2), label, difficult in zip(
            objects.boxes.tolist(), objects.labels, objects.difficult, strict=True
        )
    ]
    with redirect_stdout(StringIO()):  # pycocotools reports its progress
        evaluator = COCOeval(
            _index(images, kinds, truth), _index(images, kinds, list(entries(detections))), "bbox"
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    # pycocotools writes -1 for the mean over classes of which no object has that size.
    values = [None if value == -1 else float(100 * value) for value in evaluator.stats]
    return dict(zip(COCO_NAMES, values, strict=False))


def _index(images: list[dict], kinds: list[dict], annotations: list[dict]) -> COCO:
    """A COCO data set in memory; annotations get numbers and their area."""
    # From 1 on: COCOeval takes a match with annotation 0 for no match.
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation.setdefault("iscrowd", 0)
    indexed = COCO()
    indexed.dataset = {"images": images, "categories": kinds, "annotations": annotations}
    indexed.createIndex()
    return indexed
