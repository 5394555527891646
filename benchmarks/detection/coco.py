"""COCO's average precision, with the matching of pycocotools done for all thresholds at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.detection.detections import Detections, Objects, check
from benchmarks.detection.predictions import entries

MAX_DETECTIONS = 100  # of a class in an image


class Evaluator(COCOeval):
    """COCOeval, four times faster; data, overlaps, precision and thresholds are its own.

    Its loop over thresholds, detections and objects runs in Python. Here one step handles a
    detection at all thresholds and size ranges. The result is the same to the bit, which the tests
    hold against COCOeval itself.
    """

    def evaluate(self) -> None:
        """Match the detections of every image and class."""
        p = self.params
        self._prepare()
        cells = [(image, kind) for kind in p.catIds for image in p.imgIds]
        self.ious = {cell: self.computeIoU(*cell) for cell in cells}
        found = {cell: self._match(*cell) for cell in cells}
        self.evalImgs = [
            None if found[image, kind] is None else found[image, kind][size]
            for kind in p.catIds
            for size in range(len(p.areaRng))
            for image in p.imgIds
        ]
        self._paramsEval = copy.deepcopy(p)

    def _match(self, image: int, kind: int) -> list[dict[str, Any]] | None:
        """What `accumulate` reads of one image and class, per size range; None where it is empty.

        Detections choose in the order of their scores: the free object with the largest overlap,
        at least the threshold, the last of equals; an ignored object only where no other is left.
        A crowd stays free.
        """
        p, truth, found = self.params, self._gts[image, kind], self._dts[image, kind]
        if not truth and not found:
            return None
        order = np.argsort([-each["score"] for each in found], kind="mergesort")
        found = [found[place] for place in order[: p.maxDets[-1]]]
        ranges, thresholds = np.array(p.areaRng), np.array(p.iouThrs)
        crowd = np.array([each["iscrowd"] for each in truth], dtype=bool)
        ignore = crowd | _outside(truth, ranges)
        shape = len(ranges), len(thresholds), len(found)
        matched, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        if truth and found:
            # One lane for each size range and threshold.
            lowest = np.tile(thresholds, len(ranges))[:, None]
            passed_over = np.repeat(ignore, len(thresholds), axis=0)
            by_lane = _choose(self.ious[image, kind], lowest, passed_over, crowd)
            matched, ignored = (each.reshape(shape) for each in by_lane)
        ignored = ignored | (~matched & _outside(found, ranges)[:, None])
        return [
            {
                "dtScores": [each["score"] for each in found],
                "dtMatches": matched[size],
                "dtIgnore": ignored[size],
                "gtIgnore": ignore[size],
            }
            for size in range(len(ranges))
        ]

    def average(self, threshold: float | None = None, size: str = "all") -> float | None:
        """Mean precision in percent over recalls and classes that have objects, None without any.

        Args:
            threshold: None is the mean over all of them.
            size: label of the size range.
        """
        p = self.params
        precision = self.eval["precision"][:, :, :, p.areaRngLbl.index(size), 0]
        if threshold is not None:
            precision = precision[p.iouThrs == threshold]
        defined = precision[precision > -1]
        return float(100 * np.mean(defined)) if defined.size else None


def _outside(items: list[dict[str, Any]], ranges: np.ndarray) -> np.ndarray:
    """Whether the area of each item is outside of each range, bool (ranges, items)."""
    area = np.array([each["area"] for each in items], dtype=np.float64)
    return (area < ranges[:, :1]) | (area > ranges[:, 1:])


def _choose(
    overlap: np.ndarray, lowest: np.ndarray, ignore: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections get an object, and whether it is an ignored one, bool (lanes, detections).

    Args:
        overlap: (detections, objects), detections in the order in which they choose.
        lowest: least overlap, (lanes, 1).
        ignore: (lanes, objects).
        crowd: (objects,).
    """
    lanes, (found, objects) = np.arange(len(lowest)), overlap.shape
    matched = np.zeros((len(lowest), found), dtype=bool)
    ignored = np.zeros_like(matched)
    free = np.ones_like(ignore)
    # Places in the order of the overlap, the last of equals highest; all that count before all
    # that are ignored.
    rank = overlap.argsort(1, kind="stable").argsort(1)
    bonus = np.where(ignore, 0, objects)
    for each in np.flatnonzero(overlap.max(1) >= lowest.min()):
        value = np.where(free & (overlap[each] >= lowest), rank[each] + bonus, -1)
        choice = value.argmax(1)
        hit = value[lanes, choice] >= 0
        matched[:, each] = hit
        ignored[:, each] = hit & ignore[lanes, choice]
        free[lanes[hit], choice[hit]] = crowd[choice[hit]]
    return matched, ignored


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
        evaluator = Evaluator(
            _index(images, kinds, truth), _index(images, kinds, list(entries(detections))), "bbox"
        )
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
    return {
        "AP": evaluator.average(),
        "AP50": evaluator.average(threshold=0.5),
        "AP75": evaluator.average(threshold=0.75),
        "AP_small": evaluator.average(size="small"),
        "AP_medium": evaluator.average(size="medium"),
        "AP_large": evaluator.average(size="large"),
    }


def _index(images: list[dict], kinds: list[dict], annotations: list[dict]) -> COCO:
    """A COCO data set in memory; annotations are numbered from 1 on and get their area."""
    for number, each in enumerate(annotations, start=1):
        each["id"], each["area"] = number, each["bbox"][2] * each["bbox"][3]
        each.setdefault("iscrowd", 0)
    indexed = COCO()
    indexed.dataset = {"images": images, "categories": kinds, "annotations": annotations}
    indexed.createIndex()
    return indexed
