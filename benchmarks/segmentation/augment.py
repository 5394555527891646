"""Training augmentation of the official segmentation protocol, on numpy arrays.

Order: short-side resize -> random crop -> horizontal flip -> photometric distortion -> normalise
-> pad. Source: the mmsegmentation 1.2 transforms that the configs of Rein (arXiv 2312.04265) and
SoMA (arXiv 2412.04077) use. Images are RGB uint8 (H, W, 3), labels uint8 (H, W) of trainIds.
Every random number comes from the generator that is passed in.
"""

from __future__ import annotations

import cv2
import numpy as np

from benchmarks.data.cards import IGNORE
from benchmarks.data.transforms import CROP_TRIES, normalise, photometric, span
from benchmarks.protocol import Input
from benchmarks.segmentation.settings import Augment


def training_sample(
    image: np.ndarray,
    label: np.ndarray,
    augment: Augment,
    statistics: Input,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One augmented training sample.

    Returns:
        image float32 (3, crop, crop), normalised, 0 where padded; label int64 (crop, crop), 255
        where padded.
    """
    short, long_max = int(rng.choice(augment.short_sides)), augment.long_side_max
    if augment.factor != (1.0, 1.0):
        factor = rng.uniform(*augment.factor)
        short, long_max = int(short * factor), int(long_max * factor)
    image, label = resize_short_side(image, label, short, long_max)
    image, label = random_crop(image, label, augment.crop, augment.max_class_share, rng)
    if rng.random() < augment.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    if augment.photometric:
        image = photometric(np.ascontiguousarray(image), rng)
    return pad(normalise(image, statistics), label.astype(np.int64), augment.crop)


def resize_short_side(
    image: np.ndarray, label: np.ndarray, short: int, long_max: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scales so that the shorter side is `short`, less where the longer one would pass `long_max`.

    Bilinear for the image, nearest for the label.
    """
    sides = image.shape[:2]
    scale = min(short / min(sides), long_max / max(sides))
    # As mmcv rounds; Python's round() would take halves to the even side.
    height, width = (int(side * scale + 0.5) for side in sides)
    if (height, width) == sides:
        return image, label
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def random_crop(
    image: np.ndarray,
    label: np.ndarray,
    crop: int,
    max_class_share: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out `crop` x `crop` pixels; a shorter side stays whole.

    A crop with one class only, or in which one class holds `max_class_share` of the labelled pixels
    or more, is drawn again, at most 10 times; the last draw is kept as it is. A share of 1 accepts
    the first draw.
    """
    for attempt in range(CROP_TRIES + 1):
        rows, columns = (span(side, crop, rng) for side in label.shape)
        piece = label[rows, columns]
        if max_class_share >= 1 or attempt == CROP_TRIES or _mixed(piece, max_class_share):
            break
    return image[rows, columns], piece


def _mixed(label: np.ndarray, max_class_share: float) -> bool:
    # mmsegmentation leaves ignored pixels out of the share too.
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE] = 0
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share


def pad(image: np.ndarray, label: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills up to `size` at the bottom and on the right: image (3, H, W) with 0, label with 255."""
    bottom, right = (max(size - side, 0) for side in label.shape)
    padded = np.pad(image, ((0, 0), (0, bottom), (0, right)))
    return padded, np.pad(label, ((0, bottom), (0, right)), constant_values=IGNORE)
