"""Which objects of a scene get a box, which of those are difficult, and VOC's XML for them."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import cv2
import numpy as np

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
    found = []
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
            found.append(one)
    return found


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
