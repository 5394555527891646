"""Boxes of Cityscapes: extents of annotated instances, from instance images or from polygons.

Source of the encoding: mcordts/cityscapesScripts, preparation/json2instanceImg.py. A polygon file
is painted as described there, later objects over earlier ones, so that both give the same boxes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.data.cards import Boxes
from benchmarks.data.loading import decoded
from benchmarks.detection.voc import Objects, cleaned
from benchmarks.errors import UserError

PER_CLASS = 1000  # a pixel holds label id x 1000 + number of the instance
UNPAINTED = {"license plate"}  # negative ids: the car under it stays


def read(file: Path, boxes: Boxes) -> Objects:
    """The objects of an image: boxes around visible pixels, none of them difficult.

    Args:
        file: *_instanceIds.png or *_polygons.json.
        boxes: classes with their label ids.

    Raises:
        UserError: unreadable file, or not of this encoding.
    """
    instances = _painted(file, boxes) if file.suffix == ".json" else _instance_ids(file)
    ids = {number: label for label, number in enumerate(boxes.ids)}
    wanted = np.isin(instances // PER_CLASS, boxes.ids)
    rows, columns = np.nonzero(wanted)
    values, inverse = np.unique(instances[wanted], return_inverse=True)
    count = len(values)
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.full((count, 2), -1)
    points = np.stack([columns, rows], axis=1)
    np.minimum.at(low, inverse, points)
    np.maximum.at(high, inverse, points)
    labels = [ids[value // PER_CLASS] for value in values.tolist()]
    return cleaned(np.hstack([low, high + 1]), labels, [False] * count, instances.shape)


def _instance_ids(file: Path) -> np.ndarray:
    image = decoded(file)
    if image.mode not in ("I", "I;16", "I;16B", "L"):
        raise UserError(f"{file}: holds colours (mode {image.mode}), not instance ids; restore it")
    return np.asarray(image).astype(np.int64)


def _painted(file: Path, boxes: Boxes) -> np.ndarray:
    try:
        content = json.loads(file.read_bytes())
        canvas = Image.new("I", (content["imgWidth"], content["imgHeight"]))
        draw, counts = ImageDraw.Draw(canvas), dict.fromkeys(boxes.classes, 0)
        for each in content["objects"]:
            name = each["label"]
            if name in UNPAINTED or each.get("deleted"):
                continue
            value = 0
            if name in counts:
                value = boxes.ids[boxes.classes.index(name)] * PER_CLASS + counts[name]
                counts[name] += 1
            draw.polygon([tuple(point) for point in each["polygon"]], fill=value)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); unpack it again") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: is no Cityscapes polygon file ({error!r}); restore it") from None
    return np.asarray(canvas).astype(np.int64)
