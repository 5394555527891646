"""Transforms of images that every task shares, on numpy arrays.

Images are RGB uint8 (H, W, 3). Every random number comes from the generator that is passed in.
"""

from __future__ import annotations

import cv2
import numpy as np

from benchmarks.protocol import Domain, Input

# Parallelism is over runs and loader processes; OpenCV's own threads would only get in their way.
cv2.setNumThreads(0)

CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # steps: of 2 degrees in the uint8 images of mmsegmentation, of 1 degree in mmdetection


def span(side: int, crop: int, rng: np.random.Generator) -> slice:
    """Where a crop lies along one axis; a side that is not longer than it stays whole."""
    start = int(rng.integers(max(side - crop, 0) + 1))
    return slice(start, start + crop)


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The distortion of mmsegmentation 1.2, uint8 in and out.

    Random brightness, contrast, saturation and hue, each applied with probability one half.

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


def photometric_float(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The distortion of mmdetection 3: uint8 in, float32 out, neither rounded nor clipped.

    Random brightness, contrast, saturation, hue and a permutation of the channels, each applied
    with probability one half. Contrast comes right after brightness or after hue, by a fair coin.
    Values can leave 0..255; saturation alone is cut off at 1, where it is raised.
    """
    image = image.astype(np.float32)
    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    factor = np.float32(rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1)
    contrast_last = rng.random() < 0.5
    if not contrast_last:
        image = image * factor
    # OpenCV's float32 HSV: hue in degrees, saturation in 0..1, value as large as the image's.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        more = rng.uniform(*SATURATION)
        saturation = hsv[..., 1] * np.float32(more)
        # Colours below 0 are above 1 to begin with, and stay there where saturation falls.
        hsv[..., 1] = saturation.clip(max=1) if more > 1 else saturation
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-HUE, HUE))) % 360
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast_last:
        image = image * factor
    return image[..., rng.permutation(3)] if rng.random() < 0.5 else image


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _scaled(image, rng.uniform(*CONTRAST), 0.0) if rng.random() < 0.5 else image


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """`values` x `factor` + `offset`, clipped and cut off to uint8."""
    # uint8 has 256 values: a table gives the same numbers as arithmetic on every pixel, faster
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(table, 0, 255).astype(np.uint8)[values]


def normalise(image: np.ndarray, statistics: Input) -> np.ndarray:
    """RGB of 0..255 (H, W, 3) -> float32 (3, H, W) of (value / 255 - mean) / std."""
    mean = np.array(statistics.mean, dtype=np.float32) * 255
    std = np.array(statistics.std, dtype=np.float32) * 255
    scaled = (image.astype(np.float32) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def pad_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, H, W) with 0 at the bottom and on the right, up to (height, width), both at least its."""
    bottom, right = (new - old for new, old in zip(size, image.shape[1:], strict=True))
    return np.pad(image, ((0, 0), (0, bottom), (0, right))) if bottom or right else image


def resize_to(image: np.ndarray, domain: Domain) -> np.ndarray:
    """An image (H, W, 3) resized bilinearly to the test size of its domain; without one, itself."""
    height, width = resized_shape(image.shape[:2], domain)
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resized_shape(size: tuple[int, int], domain: Domain) -> tuple[int, int]:
    """(height, width) at which a domain scores an image of `size`, in pixels.

    With `keep_ratio` the result is the largest one that fits inside.
    """
    if domain.size is None:
        return size
    height, width = domain.size
    if domain.turn and size[0] > size[1]:
        height, width = width, height
    if domain.keep_ratio:
        scale = min(height / size[0], width / size[1])
        # As mmcv rounds; Python's round() would take halves to the even side.
        height, width = (int(side * scale + 0.5) for side in size)
    return height, width
