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
from benchmarks.protocol_parts import Augment, Input

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180 steps of hue


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


def span(side: int, crop: int, rng: np.random.Generator) -> slice:
    """Where a crop lies along one axis; a side that is not longer than it stays whole."""
    start = int(rng.integers(max(side - crop, 0) + 1))
    return slice(start, start + crop)


def _mixed(label: np.ndarray, max_class_share: float) -> bool:
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE] = 0
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation and hue, each applied with probability one half.

    Contrast comes right after brightness or last, by a fair coin. Values are clipped and cast back
    to uint8 after each step. The published recipes hold images in BGR; saturation and hue do not
    depend on the order of the channels as long as the conversion to HSV names the right one.
    """
    if rng.random() < 0.5:
        image = _scaled(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_last = rng.random() < 0.5
    if not contrast_last:
        image = _contrast(image, rng)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _scaled(hsv[..., 1], rng.uniform(*SATURATION), 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(rng.integers(-HUE, HUE))) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _contrast(image, rng) if contrast_last else image


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _scaled(image, rng.uniform(*CONTRAST), 0.0) if rng.random() < 0.5 else image


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """`values` x `factor` + `offset`, clipped and cut off to uint8."""
    # uint8 has 256 values: a table gives the same numbers as arithmetic on every pixel, faster
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(table, 0, 255).astype(np.uint8)[values]


def normalise(image: np.ndarray, statistics: Input) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> float32 (3, H, W) of (value / 255 - mean) / std."""
    mean = np.array(statistics.mean, dtype=np.float32) * 255
    std = np.array(statistics.std, dtype=np.float32) * 255
    scaled = (image.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def pad(image: np.ndarray, label: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills up to `size` at the bottom and on the right: image (3, H, W) with 0, label with 255."""
    bottom, right = (max(size - side, 0) for side in label.shape)
    padded = np.pad(image, ((0, 0), (0, bottom), (0, right)))
    return padded, np.pad(label, ((0, bottom), (0, right)), constant_values=IGNORE)
