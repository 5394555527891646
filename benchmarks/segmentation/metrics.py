"""Segmentation metrics from confusion matrices, in plain numpy."""

from __future__ import annotations

import numpy as np


def confusion(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts of one image, int64 (classes, classes): rows ground truth, columns prediction.

    Args:
        label: trainIds, any integer type; values of `classes` and above (255) are not counted.
        prediction: class indices, same shape as `label`.
        classes: number of classes.

    Raises:
        ValueError: the shapes differ, or a prediction is not a class.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label {label.shape} and prediction {prediction.shape} differ in shape")
    scored = label < classes
    truth, guess = label[scored].astype(np.int64), prediction[scored]
    if guess.size and not (guess.min() >= 0 and guess.max() < classes):
        raise ValueError(f"a prediction is outside 0..{classes - 1}")
    counts = np.bincount(truth * classes + guess, minlength=classes * classes)
    return counts.reshape(classes, classes)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union per class in percent, float64 (classes,).

    NaN for a class that neither the ground truth nor the prediction holds.

    Args:
        matrix: confusion matrix of a whole domain, (classes, classes).
    """
    # The pixels of a domain of photographs pass 2^31.
    matrix = matrix.astype(np.int64)
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(100.0 * hits, union, out=np.full(len(union), np.nan), where=union > 0)


def summary(matrix: np.ndarray) -> dict[str, float | list[float | None]]:
    """{"mIoU": mean over the defined classes, "IoU": per class, None where undefined}, in percent.

    A class that is predicted somewhere but absent from the ground truth counts with 0. This is the
    rule of mmsegmentation's IoUMetric, which the published numbers use.

    Args:
        matrix: confusion matrix of a whole domain, (classes, classes).

    Raises:
        ValueError: no pixel was scored.
    """
    if not matrix.any():
        raise ValueError("no labelled pixel was scored")
    scores = iou(matrix)
    values = [None if np.isnan(score) else float(score) for score in scores]
    return {"mIoU": float(np.nanmean(scores)), "IoU": values}
