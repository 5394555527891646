"""A few rendered images in the layout, encoding and size of any data set, in place of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from string import Formatter

import cv2
import numpy as np
from PIL import Image

from benchmarks.data.cards import FOLDER, Card, load_card
from benchmarks.data.files import listed
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import Scene, sample_scene
from benchmarks.worlds.styles import gtav
from benchmarks.worlds.weather import SIZE
from benchmarks.worlds.writers import Annotated, annotate, voc_xml, write_instances, write_pair


def write_split(card: Card, root: Path, split: str, size: tuple[int, int], images: int) -> None:
    """Write `images` street scenes of `size` (height, width) below `root`, as the card stores them.

    Each shows an object to be found. They are rendered small and enlarged: their size is true, not
    their detail. Where a published list names the images of a split, each name is there, as a link
    to one of those written.
    """
    if card.boxes:
        _write_boxes(card, root, split, size, images)
        return
    layout, parts = card.split(split), _parts(card.split(split).images)
    only = layout.only
    names = listed(FOLDER / only.file, only.sha256) if only else _names(images)
    for index, name in enumerate(names):
        if index < images:
            scene, image = _drawn(index, size)
            labels = _enlarged(scene.labels, size, cv2.INTER_NEAREST)
            write_pair(card, root, split, name, image, labels, **parts)
            continue
        for what in ("images", "labels"):
            first = card.path(root, split, what, name=names[index % images], **parts)
            card.path(root, split, what, name=name, **parts).symlink_to(first.resolve())


def _write_boxes(card: Card, root: Path, split: str, size: tuple[int, int], images: int) -> None:
    layout, parts = card.split(split), _parts(card.split(split).images)
    for index, name in enumerate(_names(images)):
        scene, image = _drawn(index, size)
        for beta in layout.beta or ("",):
            picture = card.path(root, split, "images", name=name, beta=beta, **parts)
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(picture, quality=95)
        truth = card.path(root, split, "labels", name=name, **parts)
        truth.parent.mkdir(parents=True, exist_ok=True)
        if card.boxes.encoding == "voc_xml":
            objects = [_scaled(one, size) for one in annotate(scene) if one.name in card.classes]
            truth.write_bytes(voc_xml(name, size, objects))
        else:
            write_instances(truth, scene, load_card("cityscapes"))
            small = Image.open(truth)
            small.resize(size[::-1], Image.Resampling.NEAREST).save(truth)
    if layout.list_file is not None:
        file = card.path(root, split, "list_file")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(_names(images)) + "\n")


def _names(images: int) -> list[str]:
    return [f"{index:06d}" for index in range(images)]


def _parts(pattern: str) -> dict[str, str]:
    """Something for each placeholder that says where in the data set an image was taken."""
    fields = {field for _, field, _, _ in Formatter().parse(pattern) if field}
    return dict.fromkeys(fields - {"name", "folder", "beta"}, "rendered")


def _drawn(index: int, size: tuple[int, int]) -> tuple[Scene, np.ndarray]:
    """A small scene with an object that is not difficult, and its photograph (uint8 RGB)."""
    for attempt in count():
        rng = np.random.default_rng([index, attempt])
        scene = sample_scene(rng, SIZE)
        if any(not one.difficult for one in annotate(scene)):
            return scene, _enlarged(render(scene, gtav(rng), rng), size, cv2.INTER_LINEAR)
    raise AssertionError("count() ended")


def _enlarged(array: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return cv2.resize(array, size[::-1], interpolation=interpolation)


def _scaled(one: Annotated, size: tuple[int, int]) -> Annotated:
    factors = (size[1] / SIZE[1], size[0] / SIZE[0]) * 2
    corners = (round(corner * factor) for corner, factor in zip(one.box, factors, strict=True))
    return replace(one, box=tuple(corners))
