"""Writes rendered images and their ground truth as the real data sets store them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.data.cards import IGNORE, Card
from benchmarks.worlds.scenes import Scene

PALETTE = np.array(  # the usual Cityscapes colours, for pictures of labels and for palette PNGs
    [
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
        *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ],
    dtype=np.uint8,
)


def write_pair(
    card: Card,
    root: Path,
    split: str,
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    **parts: str,
) -> None:
    """Write an image (RGB) and its trainIds (255 void) as the data set of `card` stores them."""
    picture, truth = (
        card.path(root, split, "images", name=name, **parts),
        card.path(root, split, "labels", name=name, **parts),
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    truth.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(picture, quality=95)  # the quality matters for JPEG only
    values = native_values(card)[labels]
    if card.label.encoding == "rgb16_png":
        # Pillow does not write 16-bit colours. OpenCV's order is B, G, R: the class comes last.
        channels = np.dstack([np.zeros((*values.shape, 2), np.uint16), values])
        truth.write_bytes(cv2.imencode(".png", channels)[1].tobytes())
        return
    stored = Image.fromarray(values.astype(np.uint8))
    if card.label.encoding == "palette_png":
        stored.putpalette(native_palette(card))
    stored.save(truth)


def write_instances(file: Path, scene: Scene, card: Card) -> None:
    """Write Cityscapes instance ids: 1000 x label id + number for counted objects, else the id."""
    values = native_values(card)[scene.labels]
    owner = np.array([surface.instance for surface in scene.canvas.surfaces])[scene.segments]
    numbers: Counter = Counter()
    for instance in np.unique(owner[owner > 0]):
        seen = owner == instance
        label_id = int(values[seen][0])
        values[seen] = 1000 * label_id + numbers[label_id]
        numbers[label_id] += 1
    Image.fromarray(values).save(file)


def native_values(card: Card) -> np.ndarray:
    """TrainId -> the value that the data set of `card` writes for it, uint16 (256,)."""
    classes = [card.native_id(train_id) for train_id in range(len(card.classes))]
    return np.array(classes + [card.native_id(IGNORE)] * (256 - len(classes)), dtype=np.uint16)


def native_palette(card: Card) -> list[int]:
    """Colours of the label values of a palette PNG: class colours, black for void."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for value, train_id in card.label.to_train_id.items():
        colours[value] = PALETTE[train_id]
    return colours.ravel().tolist()
