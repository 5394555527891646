"""Training augmentation of images with boxes, on numpy arrays.

Order: resize with scale jitter -> random crop -> horizontal flip -> photometric distortion ->
normalise -> pad. Source: the mmdetection 3 transforms in the S-DGOD configs of SoMA (arXiv
2412.04077), which pad with grey before the distortion instead. Images are RGB uint8 (H, W, 3),
boxes float32 (n, 4) of x1, y1, x2, y2 in pixels. Every random number comes from the generator that
is passed in.
"""

from __future__ import annotations

import cv2
import numpy as np

from benchmarks.data.transforms import (
    CROP_TRIES,
    normalise,
    pad_to,
    photometric,
    photometric_float,
    span,
)
from benchmarks.detection.settings import DetectionAugment
from benchmarks.protocol import Input


def training_sample(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    augment: DetectionAugment,
    statistics: Input,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One augmented training sample.

    Returns:
        image float32 (3, crop, crop), normalised, 0 where padded at the bottom and on the right;
        boxes float32 (n, 4) and labels int64 (n,) of what is still there; size int64 (2,), height
        and width before padding.
    """
    image, boxes = resize(image, boxes, augment.base, rng.uniform(*augment.scale))
    boxes, labels = visible(boxes, boxes, labels, augment)
    image, boxes, labels = random_crop(image, boxes, labels, augment, rng)
    if rng.random() < augment.flip:
        image, boxes = flip(image, boxes)
    if augment.photometric:
        distort = photometric if augment.distortion == "mmseg" else photometric_float
        image = distort(np.ascontiguousarray(image), rng)
    padded = pad_to(normalise(image, statistics), (augment.crop, augment.crop))
    size = np.array(image.shape[:2])
    return {"image": padded, "boxes": boxes, "labels": labels, "size": size}


def resize(
    image: np.ndarray, boxes: np.ndarray, base: tuple[int, int], factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scales by `factor` x the largest scale at which the image fits into `base`, bilinearly.

    Sides are rounded to pixels, at least one; boxes follow each side's own ratio.
    """
    sides = np.array(image.shape[:2])
    scale = factor * (np.array(base) / sides).min()
    # As mmcv rounds; round() would take halves to the even side.
    height, width = np.maximum((sides * scale + 0.5).astype(int), 1).tolist()
    # From the rounded sides: by the scale itself boxes would be off by up to half a pixel at the
    # border.
    ratio = np.array([width, height] * 2) / np.array([sides[1], sides[0]] * 2)
    boxes = (boxes * ratio).astype(np.float32)
    if (height, width) == tuple(sides):
        return image, boxes
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), boxes


def random_crop(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    augment: DetectionAugment,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts out `crop` x `crop` pixels; a shorter side stays whole.

    Boxes are cut off at its border and those of which too little is left are dropped. Without
    `negative_crops` a crop that loses every box is drawn again, at most 10 times; the last draw is
    kept as it is.
    """
    for _ in range(CROP_TRIES + 1):
        rows, columns = (span(side, augment.crop, rng) for side in image.shape[:2])
        piece = image[rows, columns]
        height, width = piece.shape[:2]
        moved = boxes - np.array([columns.start, rows.start] * 2, dtype=np.float32)
        inside = np.clip(moved, 0, np.array([width, height] * 2, dtype=np.float32))
        kept, kept_labels = visible(inside, moved, labels, augment)
        if augment.negative_crops or len(kept) or not len(boxes):
            break
    return piece, kept, kept_labels


def visible(
    inside: np.ndarray, whole: np.ndarray, labels: np.ndarray, augment: DetectionAugment
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of which enough is left, with their labels.

    Args:
        inside: boxes cut off at the image, (n, 4).
        whole: the same boxes uncut.
        labels: (n,).
        augment: `min_side` and `min_visible`.
    """
    sides, full = inside[:, 2:] - inside[:, :2], whole[:, 2:] - whole[:, :2]
    visible_share = sides.clip(min=0).prod(1) / full.prod(1)
    kept = (sides >= augment.min_side).all(1) & (visible_share >= augment.min_visible)
    return inside[kept], labels[kept]


def flip(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left becomes right."""
    width = np.float32(image.shape[1])
    mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image[:, ::-1], mirrored
