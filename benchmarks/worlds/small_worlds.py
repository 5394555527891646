"""A few images of each data set that Tables 1 and 2 do not need; mini Table 3 reads some of them.

They are there so that every loader reads files on every machine: SYNTHIA, UrbanSyn, the conditions
of ACDC, and training images of Cityscapes with instances and in three densities of fog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.cards import load_card
from benchmarks.worlds import styles, weather
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import Scene, sample_scene
from benchmarks.worlds.styles import Rng, Style
from benchmarks.worlds.writers import write_instances, write_pair

IMAGES = 8  # per data set; of ACDC per split
_STREAM = 0x57A11  # keeps these scenes apart from those of all other domains


def snowy_day(rng: Rng) -> Style:
    """The camera of the Cityscapes domain, in a covered street."""
    return replace(styles.cityscapes(rng), snow=rng.uniform(0.5, 0.9), season="bare")


CONDITIONS: dict[str, Callable[[Rng], Style]] = {  # of ACDC
    "fog": weather.foggy_day,
    "night": weather.clear_night,
    "rain": weather.rainy_dusk,
    "snow": snowy_day,
}


def render_all(root: Path, seed: int) -> None:
    """Write all of them below `root`."""
    for index in range(IMAGES):
        _synthia(root, seed, index)
        _urbansyn(root, seed, index)
        _cityscapes(root, seed, index)
        for split in ("train", "val"):
            _acdc(root, seed, split, index)


def sample(
    name: str, seed: int, index: int, style: Callable[[Rng], Style]
) -> tuple[Scene, np.ndarray]:
    """Scene and photograph (uint8 RGB) number `index` of a set."""
    rng = np.random.default_rng([_STREAM, seed, *name.encode(), index])
    scene = sample_scene(rng)
    return scene, render(scene, style(rng), rng)


def _synthia(root: Path, seed: int, index: int) -> None:
    scene, image = sample("synthia", seed, index, weather.clear_day)
    write_pair(load_card("synthia"), root, "train", f"{index:07d}", image, scene.labels)


def _urbansyn(root: Path, seed: int, index: int) -> None:
    scene, image = sample("urbansyn", seed, index, styles.gtav)
    write_pair(load_card("urbansyn"), root, "train", f"{index + 1:04d}", image, scene.labels)


def _acdc(root: Path, seed: int, split: str, index: int) -> None:
    condition = list(CONDITIONS)[index % len(CONDITIONS)]
    scene, image = sample(f"acdc_{split}", seed, index, CONDITIONS[condition])
    sequence = f"GOPR{index:04d}"
    name = f"{sequence}_frame_000001"
    parts = {"condition": condition, "sequence": sequence}
    write_pair(load_card("acdc"), root, split, name, image, scene.labels, **parts)


def _cityscapes(root: Path, seed: int, index: int) -> None:
    """One training image with its instances, then the same one in each density of fog."""
    card = load_card("cityscapes")
    boxes, foggy = load_card("cityscapes_boxes", "boxes"), load_card("foggy_cityscapes", "boxes")
    city = ("aachen", "bremen")[index % 2]
    name = f"{city}_{index:06d}_000019"

    scene, image = sample("cityscapes_train", seed, index, styles.cityscapes)
    write_pair(card, root, "train", name, image, scene.labels, city=city)
    write_instances(boxes.path(root, "train", "labels", name=name, city=city), scene, card)
    for beta in foggy.split("train_all").beta:
        file = foggy.path(root, "train_all", "images", name=name, city=city, beta=beta)
        file.parent.mkdir(parents=True, exist_ok=True)
        style = partial(_in_fog, beta=float(beta))
        Image.fromarray(sample("cityscapes_train", seed, index, style)[1]).save(file)


def _in_fog(rng: Rng, beta: float) -> Style:
    return replace(styles.cityscapes(rng), haze=beta)
