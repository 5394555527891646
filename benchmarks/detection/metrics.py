"""All metrics of one domain: VOC's average precision, two ways, and COCO's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.detection.coco import coco_scores
from benchmarks.detection.detections import Detections, Objects
from benchmarks.detection.predictions import rounded
from benchmarks.detection.voc_ap import voc_scores

__all__ = ["Detections", "Objects", "scores"]


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
    detections = [rounded(each) for each in detections]
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
