"""Five weather domains for detection, written in the layout of the S-DGOD set (VOC folders, XML).

The scenes are those of `scenes.py`, drawn from streams of their own at twice the resolution; the
appearance is put together from the effects of `appearance.py`. Source is a clear day, narrow; the
targets are a clear night, rain at dusk, rain at night and fog by day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.worlds.appearance import render
from benchmarks.worlds.objects import TRAIN
from benchmarks.worlds.scenes import Scene, sample_scene
from benchmarks.worlds.styles import Style
from benchmarks.worlds.writers import Annotated, annotate, voc_xml

# Height, width in pixels. At half of it the median person is 7 pixels wide: less than one patch of
# the mini backbone.
SIZE = (192, 320)
FOLDER = "diverseWeather"
_STREAM = (
    0x5DD0D5EE  # keeps these scenes apart from the segmentation domains' and the pre-training's
)

Rng = np.random.Generator


def clear_day(rng: Rng) -> Style:
    """The source, narrow: sun, blue sky, a clean sensor."""
    return Style(
        palette_shift=0.03,
        texture=0.8,
        saturation=rng.uniform(1.0, 1.2),
        contrast=rng.uniform(1.0, 1.12),
        exposure=rng.uniform(0.97, 1.08),
        haze=rng.uniform(0.0, 0.002),
        overcast=rng.uniform(0.0, 0.3),
        blur=rng.uniform(0.4, 0.7),
        noise=rng.uniform(0.004, 0.01),
        sun=rng.uniform(0.2, 0.45),
    )


def clear_night(rng: Rng) -> Style:
    """Lamps, lit windows and the own headlights; a noisy sensor."""
    return Style(
        palette_shift=0.06,
        saturation=rng.uniform(0.7, 1.0),
        contrast=rng.uniform(0.95, 1.25),
        exposure=rng.uniform(0.95, 1.35),
        cast=(1.08, 0.98, 0.86),
        night=rng.uniform(0.75, 0.95),
        blur=rng.uniform(0.5, 1.0),
        noise=rng.uniform(0.02, 0.05),
        vignette=rng.uniform(0.0, 0.3),
    )


def rainy_dusk(rng: Rng) -> Style:
    """Dull light under clouds with a last glow, lamps on, wet road, streaks."""
    return Style(
        palette_shift=0.06,
        season=str(rng.choice(["summer", "autumn"])),
        saturation=rng.uniform(0.7, 0.95),
        contrast=rng.uniform(0.85, 1.05),
        exposure=rng.uniform(0.75, 0.95),
        haze=rng.uniform(0.006, 0.014),
        haze_colour=(165, 150, 150),
        overcast=rng.uniform(0.8, 1.0),
        dusk=rng.uniform(0.4, 0.75),
        night=rng.uniform(0.3, 0.5),
        rain=rng.uniform(1.5, 3.0),
        wet=rng.uniform(0.4, 0.8),
        blur=rng.uniform(0.6, 1.1),
        noise=rng.uniform(0.012, 0.03),
        sun=0.1,
    )


def rainy_night(rng: Rng) -> Style:
    """Night with a mirroring road, streaks and haze around what is far."""
    return Style(
        palette_shift=0.06,
        season=str(rng.choice(["summer", "autumn"])),
        saturation=rng.uniform(0.6, 0.9),
        contrast=rng.uniform(0.9, 1.2),
        exposure=rng.uniform(0.9, 1.25),
        cast=(1.04, 0.99, 0.92),
        haze=rng.uniform(0.008, 0.02),
        night=rng.uniform(0.75, 0.92),
        rain=rng.uniform(2.0, 4.0),
        wet=rng.uniform(0.6, 1.0),
        blur=rng.uniform(0.7, 1.3),
        noise=rng.uniform(0.03, 0.06),
        vignette=rng.uniform(0.0, 0.3),
    )


def foggy_day(rng: Rng) -> Style:
    """White sky, colours that fade with distance."""
    return Style(
        palette_shift=0.06,
        saturation=rng.uniform(0.5, 0.9),
        contrast=rng.uniform(0.85, 1.05),
        exposure=rng.uniform(0.9, 1.05),
        haze=rng.uniform(0.03, 0.07),
        haze_colour=(205, 208, 212),
        overcast=1.0,
        blur=rng.uniform(0.5, 0.9),
        noise=rng.uniform(0.006, 0.02),
        sun=0.05,
    )


@dataclass(frozen=True)
class World:
    """How a domain looks, and its list files with the number of images that each names."""

    style: Callable[[Rng], Style]
    lists: dict[str, int]


WORLDS = {  # folder of the set -> domain; as there, the targets have a train.txt only
    "daytime_clear": World(clear_day, {"train": 600, "test": 160}),
    "Night-Sunny": World(clear_night, {"train": 160}),
    "dusk_rainy": World(rainy_dusk, {"train": 160}),
    "night_rainy": World(rainy_night, {"train": 160}),
    "daytime_foggy": World(foggy_day, {"train": 160}),
}


def sample(domain: str, index: int, seed: int) -> tuple[Scene, np.ndarray]:
    """Scene and photograph (uint8 RGB, `SIZE`) number `index` of a domain.

    Scenes with a train are drawn again: the seven classes do not name it, and it looks like a bus.
    """
    number = list(WORLDS).index(domain)
    streams = ([_STREAM, seed, number, index, attempt] for attempt in count())
    # What a scene holds does not depend on its resolution: thumbnails tell.
    stream = next(
        s for s in streams if not _has_train(sample_scene(np.random.default_rng(s), (12, 20)))
    )
    rng = np.random.default_rng(stream)
    scene = sample_scene(rng, SIZE)
    return scene, render(scene, WORLDS[domain].style(rng), rng)


def _has_train(scene: Scene) -> bool:
    return any(surface.label == TRAIN for surface in scene.canvas.surfaces)


def render_domain(
    root: Path, domain: str, seed: int, mapped: Callable[..., Iterable] = map
) -> dict[str, list[list[Annotated]]]:
    """Write one domain below `root`; returns the objects of every image, per list file.

    `mapped` is a `map`, which may be that of a pool of processes.
    """
    home = root / FOLDER / domain / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True)
    drawn, start = {}, 0
    for split, images in WORLDS[domain].lists.items():
        numbers = range(start, start + images)
        made = mapped(partial(_render_image, home, domain, seed), numbers)
        drawn[split] = list(track(made, f"rendering {domain}", total=images, transient=True))
        names = (_file_name(domain, index) + "\n" for index in numbers)
        (home / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(names))
        start += images
    return drawn


def _render_image(home: Path, domain: str, seed: int, index: int) -> list[Annotated]:
    """Write one image and its objects, which are returned."""
    scene, image = sample(domain, index, seed)
    name, objects = _file_name(domain, index), annotate(scene)
    picture = home / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(image).save(picture, quality=95, subsampling="4:2:0")
    xml = voc_xml(name, scene.labels.shape, objects)
    (home / "Annotations" / f"{name}.xml").write_bytes(xml)
    return objects


def _file_name(domain: str, index: int) -> str:
    """In the manner of BDD100K, from which the real set takes pictures."""
    digest = hashlib.md5(f"{domain}{index}".encode(), usedforsecurity=False).hexdigest()
    return f"{digest[:8]}-{digest[8:16]}"
