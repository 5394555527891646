"""Writes rendered images, labels and boxes as the real data sets store them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image

from benchmarks.data.cards import IGNORE, Card
from benchmarks.data.pictures import PALETTE
from benchmarks.worlds.canvas import Surface
from benchmarks.worlds.scenes import Scene

# trainId -> name in the S-DGOD set. A rider and what he rides are two objects with a box each.
CLASSES = {15: "bus", 18: "bike", 13: "car", 17: "motor", 11: "person", 12: "rider", 14: "truck"}

# An object shorter or narrower than LEAST pixels has no box. It is `difficult` below SMALL pixels,
# or where less than SHARE of it is seen: the rest is behind others or outside the picture.
LEAST, SMALL, SHARE = 5, 8, 0.35


@dataclass(frozen=True)
class Annotated:
    """One object. `box` is x1, y1, x2, y2 of what is seen, in pixels, exclusive ends."""

    name: str
    box: tuple[int, int, int, int]
    share: float  # pixels seen / pixels of the whole object
    truncated: bool  # the object goes on outside the picture

    @property
    def small_side(self) -> int:
        """The shorter side of the box in pixels."""
        x1, y1, x2, y2 = self.box
        return min(x2 - x1, y2 - y1)

    @property
    def difficult(self) -> bool:
        """Hardly there: small, or mostly hidden or cut off."""
        return self.small_side < SMALL or self.share < SHARE


def annotate(scene: Scene) -> list[Annotated]:
    """The objects of the seven classes that have a box, in the order in which they were counted."""
    height, width = scene.labels.shape
    surfaces: dict[int, list[Surface]] = {}
    for surface in scene.canvas.surfaces:
        surfaces.setdefault(surface.instance, []).append(surface)
    owner = np.array([surface.instance for surface in scene.canvas.surfaces])
    # `Scene.boxes` goes through the visible instances in this order and does not name them
    instances = np.unique(owner[np.unique(scene.segments)])
    objects = []
    for instance, seen in zip(instances[instances > 0], scene.boxes(), strict=True):
        if seen["train_id"] not in CLASSES:
            continue
        x1, y1, x2, y2 = seen["full_box"]
        one = Annotated(
            CLASSES[seen["train_id"]],
            tuple(seen["box"]),
            min(1.0, seen["pixels"] / _whole_pixels(surfaces[instance], seen["full_box"])),
            min(x1, y1) < -0.5 or x2 > width + 0.5 or y2 > height + 0.5,
        )
        if one.small_side >= LEAST:
            objects.append(one)
    return objects


def _whole_pixels(parts: list[Surface], extent: list[float]) -> int:
    """Pixels that the surfaces would cover with nothing in front and a picture large enough."""
    left, top = int(np.floor(extent[0])) - 1, int(np.floor(extent[1])) - 1
    mask = np.zeros((int(extent[3]) - top + 3, int(extent[2]) - left + 3), dtype=np.uint8)
    for part in parts:
        corners = (part.points - np.float32([left, top])) * 16  # 4 fractional bits, as in `paint`
        cv2.fillPoly(mask, [corners.round().astype(np.int32)], 1, shift=4)
    return max(int(mask.sum()), 1)


def voc_xml(name: str, size: tuple[int, int], objects: list[Annotated]) -> bytes:
    """The annotation file of an image: coordinates count from 1 and include both ends."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "VOC2007"
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    _values(root, "size", width=size[1], height=size[0], depth=3)
    for one in objects:
        x1, y1, x2, y2 = one.box
        flags = {"truncated": int(one.truncated), "difficult": int(one.difficult)}
        element = _values(root, "object", name=one.name, pose="Unspecified", **flags)
        _values(element, "bndbox", xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _values(parent: ElementTree.Element, tag: str, **values: object) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    for name, value in values.items():
        ElementTree.SubElement(element, name).text = str(value)
    return element


def statistics(images: list[list[Annotated]]) -> dict:
    """Counts of a list of images, and box sizes per class (percentiles 10, 50, 90; pixels).

    Sizes are those of the objects that are not difficult.
    """
    classes = {}
    for name in CLASSES.values():
        own = [one for objects in images for one in objects if one.name == name]
        boxes = np.reshape([one.box for one in own if not one.difficult], (-1, 4))
        sizes = {"width": boxes[:, 2] - boxes[:, 0], "height": boxes[:, 3] - boxes[:, 1]}
        classes[name] = {
            "boxes": len(own),
            "difficult": len(own) - len(boxes),
            "truncated": sum(one.truncated for one in own),
        } | {k: np.percentile(v, (10, 50, 90)).tolist() for k, v in sizes.items() if len(v)}
    return {"images": len(images), "without_box": images.count([]), "classes": classes}


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
