"""Renders the mini domains to disk, in the layout and label encoding of the real data sets."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image
from pydantic import Field, field_validator
from rich.progress import track

from benchmarks.data.cards import IGNORE, load_card
from benchmarks.data.pictures import PALETTE
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.worlds import styles, weather, writers
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import Scene, sample_scene
from benchmarks.worlds.styles import Rng, Style
from benchmarks.worlds.writers import (
    CLASSES,
    Annotated,
    annotate,
    write_instances,
    write_pair,
)
from benchmarks.yaml_files import Strict

COLOURS = {  # RGB; strong ones, which show by night and in fog
    "bus": (255, 165, 0),
    "bike": (0, 230, 90),
    "car": (0, 160, 255),
    "motor": (255, 90, 20),
    "person": (255, 30, 110),
    "rider": (190, 90, 255),
    "truck": (235, 225, 0),
}
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def weather_contact_sheet(out: Path, columns: int = 3, scale: int = 2) -> Path:
    """Write contact_sheet_detection.png: one row of images per domain, with their boxes.

    Difficult objects have a thin grey box without a name.
    """
    rows = []
    for domain in weather.WORLDS:
        tiles = []
        for index in range(columns):
            scene, image = weather.sample(domain, index, SEED)
            tile = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            for one in annotate(scene):
                _draw(tile, one, scale)
            tiles.append(np.pad(tile, ((1, 1), (1, 1), (0, 0))))
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(tiles[0], domain, (6, 20), _FONT, 0.6, colour, thickness, cv2.LINE_AA)
        rows.append(np.hstack(tiles))
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "contact_sheet_detection.png"
    cv2.imwrite(str(picture), np.vstack(rows)[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return picture


def _draw(tile: np.ndarray, one: Annotated, scale: int) -> None:
    x1, y1, x2, y2 = (v * scale for v in one.box)
    colour = (150, 150, 150) if one.difficult else COLOURS[one.name]
    cv2.rectangle(tile, (x1, y1), (x2 - 1, y2 - 1), colour, 1 if one.difficult else 2)
    if not one.difficult:
        left = min(x1, tile.shape[1] - 8 * len(one.name))
        for ink, thickness in (((0, 0, 0), 2), (colour, 1)):
            cv2.putText(tile, one.name, (left, y1 - 3), _FONT, 0.4, ink, thickness, cv2.LINE_AA)


def boxes(root: Path, out: Path) -> Path:
    """Write boxes.csv: objects per list of a domain and class, with box sizes in pixels.

    Widths and heights are percentiles over the objects that are not difficult.
    """
    lists = read_manifest(root).boxes
    sizes = [f"{side}_p{p}" for side in ("width", "height") for p in (10, 50, 90)]
    lines = [["list", "images", "without_box", "class", "boxes", "difficult", "truncated", *sizes]]
    for name, counts in lists.items():
        for kind in CLASSES.values():
            own = counts["classes"][kind]
            figures = [own["boxes"], own["difficult"], own["truncated"]]
            nothing = [""] * 3  # no such object that is not difficult
            percentiles = [
                v if v == "" else f"{v:.0f}"
                for side in ("width", "height")
                for v in own.get(side, nothing)
            ]
            lines.append(
                [name, counts["images"], counts["without_box"], kind, *figures, *percentiles]
            )
    out.mkdir(parents=True, exist_ok=True)
    with (out / "boxes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    return out / "boxes.csv"


SEED = 1
MANIFEST = "manifest.json"
FEW = 100  # images: fewer are drawn before processes have started
FOGGY = "foggy_cityscapes"  # the images of `cityscapes` again, with instance ids and in fog


@dataclass(frozen=True)
class World:
    """A rendered domain: the split of a card that it is written as, its size and its look."""

    card: str
    split: str
    images: int
    style: Callable[[Rng], Style]


# The place in this list is part of a domain's random stream: further ones go to the end.
WORLDS = {
    "gtav": World("gtav", "train", 760, styles.gtav),  # 600 to train on, 160 held out
    "cityscapes": World("cityscapes", "val", 160, styles.cityscapes),
    "bdd100k": World("bdd100k", "val", 160, styles.bdd100k),
    "mapillary": World("mapillary", "val", 160, styles.mapillary),
    # To the 600 images of GTAV as 9,400 and 7,539 are to 24,966: sources are concatenated.
    "synthia": World("synthia", "train", 226, styles.synthia),
    "urbansyn": World("urbansyn", "train", 181, styles.urbansyn),
    "cityscapes_train": World("cityscapes", "train", 600, styles.cityscapes),
    "acdc_fog": World("acdc", "val_fog", 40, weather.foggy_day),
    "acdc_night": World("acdc", "val_night", 40, weather.clear_night),
    "acdc_rain": World("acdc", "val_rain", 40, styles.rainy_day),
    "acdc_snow": World("acdc", "val_snow", 40, styles.snowy_day),
}
TABLE1 = ("gtav", "cityscapes", "bdd100k", "mapillary")


def everything() -> frozenset[str]:
    """Names of all that can be rendered."""
    return frozenset((*WORLDS, *weather.WORLDS, FOGGY))


def read_by(domains: Iterable[Domain]) -> frozenset[str]:
    """Names of what the domains of a protocol read."""
    asked = {(domain.card, domain.split) for domain in domains}
    names = {name for name, world in WORLDS.items() if (world.card, world.split) in asked}
    cards = {card for card, _ in asked}
    return frozenset(
        names
        | (weather.WORLDS.keys() if "sdgod" in cards else set())
        | ({FOGGY} if cards & {"cityscapes_boxes", FOGGY} else set())
    )


def sample(
    domain: str, index: int, seed: int = SEED, style: Callable[[Rng], Style] | None = None
) -> tuple[Scene, np.ndarray]:
    """Scene and photograph (uint8 RGB) number `index` of a domain, in its style or another."""
    rng = np.random.default_rng([seed, list(WORLDS).index(domain), index])
    scene = sample_scene(rng)
    return scene, render(scene, (style or WORLDS[domain].style)(rng), rng)


def render_worlds(root: Path, seed: int = SEED, names: Collection[str] | None = None) -> Path:
    """Write the domains of these names (default: all) below `root`, and a manifest of hashes.

    What lies there is not rendered again, unless another renderer or seed made it, or files are
    missing: then all that was there is. Everything is rendered in a folder of its own inside
    `root`, which may be a link or a mount point. Then one file after the other takes its place:
    whoever reads the worlds meanwhile misses none. Files whose content stays are not touched; of
    others only those go that the manifest before lists and that are as they were rendered.

    Raises:
        UserError: `root` holds files but no manifest, its manifest cannot be read, or a file that
            was not rendered lies where one belongs; nothing is changed then.
    """
    origin = {"seed": seed, "renderer": renderer_hash()}
    wanted = everything() if names is None else frozenset(names)
    try:
        if not _to_do(root, _there(root), origin, wanted):
            return root
        made = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
        lock = root / ".render.lock"
        try:
            with FileLock(lock):
                before = _there(root)  # another process may have rendered meanwhile
                if names := _to_do(root, before, origin, wanted):
                    _render_and_swap(root, origin, before, names)
        except BaseException:
            if made:  # what was not there before does not stay
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    root.rmdir()
            raise
    except OSError as error:
        raise UserError(
            f"{root}: cannot render there: {error.strerror}; give another --root"
        ) from error
    return root


def _there(root: Path) -> Manifest:
    """What was rendered before.

    Raises:
        UserError: a manifest that is none, or other files without one.
    """
    if (root / MANIFEST).is_file():
        return read_manifest(root)
    if root.exists() and any(
        not entry.name.startswith((".", "lost+found")) for entry in root.iterdir()
    ):
        raise UserError(
            f"{root} holds files that are no mini worlds; give another folder or empty it"
        )
    return Manifest(origin={}, worlds=(), class_share={}, boxes={}, files={})


def _to_do(
    root: Path, there: Manifest, origin: dict[str, Any], wanted: frozenset[str]
) -> frozenset[str]:
    """Names of what has to be rendered so that all that is wanted is there, or was before."""
    if there.origin == origin and all((root / file).is_file() for file in there.files):
        return wanted.difference(there.worlds)
    return wanted.union(there.worlds) & everything()


def _render_and_swap(
    root: Path, origin: dict[str, Any], before: Manifest, names: frozenset[str]
) -> None:
    partial = root / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a render that was cut off
    try:
        made = _render(partial, origin, names)
        foreign = [f for f in made.files.keys() - before.files.keys() if (root / f).exists()]
        if foreign:
            raise UserError(
                f"{root / min(foreign)}: was not rendered, and a rendered file belongs there; move "
                "it away or give another --root"
            )
        for file, digest in made.files.items():
            if not _holds(root / file, digest):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).replace(root / file)
        after = made if names >= set(before.worlds) else _joined(before, made)
        (partial / MANIFEST).write_text(json.dumps(after.model_dump(), indent=1))
        (partial / MANIFEST).replace(root / MANIFEST)
        for file in before.files.keys() - after.files.keys():
            if _holds(root / file, before.files[file]):
                (root / file).unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _holds(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


class Manifest(Strict):
    """What was rendered.

    Attributes:
        origin: seed, and hash of the renderer.
        worlds: names of what was rendered; all, where an older renderer did not say.
        class_share: domain -> class -> share of pixels.
        boxes: list of a domain -> statistics.
        files: path below the manifest's folder -> SHA-256.
    """

    origin: dict[str, int | str]
    worlds: tuple[str, ...] = Field(default_factory=lambda: tuple(sorted(everything())))
    class_share: dict[str, dict[str, float]]
    boxes: dict[str, Any]
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _lie_below(cls, files: dict[str, str]) -> dict[str, str]:
        for path in map(PurePosixPath, files):
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{path} lies outside")
        return files


def read_manifest(root: Path) -> Manifest:
    """The manifest of the worlds below `root`.

    Raises:
        UserError: there is none, or what is there is none.
    """
    path = root / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        raise UserError(
            f"{path}: is no manifest of rendered worlds; move it away with what lies beside it, or "
            "give another --root; python -m benchmarks mini render makes them"
        ) from None


def _joined(before: Manifest, made: Manifest) -> Manifest:
    """What was rendered at two times by one renderer, in the order of a render of everything."""
    shares, boxes = before.class_share | made.class_share, before.boxes | made.boxes
    return Manifest(
        origin=made.origin,
        worlds=tuple(sorted({*before.worlds, *made.worlds})),
        class_share={name: shares[name] for name in WORLDS if name in shares},
        boxes={k: boxes[k] for name in weather.WORLDS for k in boxes if k.startswith(f"{name}/")},
        files=dict(sorted((before.files | made.files).items())),
    )


def _render(root: Path, origin: dict[str, Any], names: frozenset[str]) -> Manifest:
    """Write the domains of these names below `root`."""
    seed, shares, boxes = origin["seed"], {}, {}
    with _mapping(names) as mapped:
        for domain in (name for name in WORLDS if name in names):
            shares[domain] = _render_domain(root, domain, seed, mapped)
        for domain in (name for name in weather.WORLDS if name in names):
            for split, images in weather.render_domain(root, domain, seed, mapped).items():
                boxes[f"{domain}/{split}"] = writers.statistics(images)
        if FOGGY in names:
            images = range(WORLDS["cityscapes"].images)
            deque(_tracked(mapped(partial(_render_foggy, root, seed), images), FOGGY, images), 0)
    files = sorted(f for f in root.rglob("*") if f.is_file())
    return Manifest(
        origin=origin,
        worlds=tuple(sorted(names)),
        class_share=shares,
        boxes=boxes,
        files={
            f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in files
        },
    )


def _tracked(drawn: Iterable, name: str, images: range) -> Iterable:
    return track(drawn, f"rendering {name}", total=len(images), transient=True)


def renderer_hash() -> str:
    """SHA-256 over the source files that decide what a mini world looks like."""
    here = Path(__file__).parent
    names = ("canvas", "objects", "scenes", "styles", "appearance", "weather", "writers", "worlds")
    return hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in names)).hexdigest()


@contextmanager
def _mapping(names: frozenset[str]) -> Iterator[Callable[..., Iterable]]:
    """A `map` over processes, one for each processor; the plain one for a few images."""
    images = sum(world.images for name, world in WORLDS.items() if name in names)
    lists = (world.lists for name, world in weather.WORLDS.items() if name in names)
    if images + sum(sum(numbers.values()) for numbers in lists) <= FEW:
        yield map
        return
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)


def _render_domain(
    root: Path, domain: str, seed: int, mapped: Callable[..., Iterable]
) -> dict[str, float]:
    """Write one domain with the boxes of its objects; returns the share of pixels per class."""
    card, images = load_card(WORLDS[domain].card), range(WORLDS[domain].images)
    counts = np.zeros(256, dtype=np.int64)
    boxes = []
    drawn = mapped(partial(_render_image, root, domain, seed), images)
    for pixels, objects in _tracked(drawn, domain, images):
        counts += pixels
        boxes.append(objects)
    (root / "boxes").mkdir(exist_ok=True)
    (root / "boxes" / f"{domain}.json").write_text(json.dumps(boxes))
    share = counts / counts.sum()
    return {c: float(share[i]) for i, c in enumerate(card.classes)} | {"void": float(share[IGNORE])}


def _render_image(
    root: Path, domain: str, seed: int, index: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Write one image with its labels; returns the pixels of each class (256) and its boxes."""
    scene, image = sample(domain, index, seed)
    name, parts = _file_name(domain, index)
    world = WORLDS[domain]
    write_pair(load_card(world.card), root, world.split, name, image, scene.labels, **parts)
    pixels = np.bincount(scene.labels.ravel(), minlength=256)
    return pixels, {"name": name, "objects": scene.boxes()}


def _file_name(domain: str, index: int) -> tuple[str, dict[str, str]]:
    """A name in the manner of the data set, and what else its file pattern needs."""
    card = WORLDS[domain].card
    if card == "gtav":
        return f"{index + 1:05d}", {}
    if card == "synthia":
        return f"{index:07d}", {}
    if card == "urbansyn":
        return f"{index + 1:04d}", {}
    if card == "cityscapes":
        cities = ("frankfurt", "lindau", "munster") if domain == card else ("aachen", "bremen")
        city = cities[index % len(cities)]
        return f"{city}_{index:06d}_000019", {"city": city}
    if card == "acdc":
        sequence = f"GOPR{index:04d}"
        return f"{sequence}_frame_000001", {"sequence": sequence}
    return hashlib.md5(f"{domain}{index}".encode(), usedforsecurity=False).hexdigest()[:17], {}


def _render_foggy(root: Path, seed: int, index: int) -> None:
    """Write the instances of an image of `cityscapes`, and the image in each density of fog."""
    card = load_card("cityscapes")
    boxes, foggy = load_card("cityscapes_boxes", "boxes"), load_card(FOGGY, "boxes")
    name, parts = _file_name("cityscapes", index)
    for beta in foggy.split("val_all").beta:
        style = partial(_in_fog, beta=float(beta))
        scene, image = sample("cityscapes", index, seed, style)
        file = foggy.path(root, "val_all", "images", name=name, beta=beta, **parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    truth = boxes.path(root, "val", "labels", name=name, **parts)
    truth.parent.mkdir(parents=True, exist_ok=True)
    write_instances(truth, scene, card)


def _in_fog(rng: Rng, beta: float) -> Style:
    return replace(styles.cityscapes(rng), haze=beta)


def contact_sheets(out: Path) -> list[Path]:
    """Write the domains of Table 1 and the others, images above their labels, as one PNG each."""
    out.mkdir(parents=True, exist_ok=True)
    others = tuple(name for name in WORLDS if name not in TABLE1)
    return [
        _contact_sheet(out / "contact_sheet.png", TABLE1, scale=2),
        _contact_sheet(out / "contact_sheet_further.png", others, scale=1),
    ]


def _contact_sheet(file: Path, domains: tuple[str, ...], scale: int, columns: int = 5) -> Path:
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(PALETTE)] = PALETTE
    rows = []
    for domain in domains:
        pairs = [sample(domain, i) for i in range(columns)]
        for strip in ([image for _, image in pairs], [colours[scene.labels] for scene, _ in pairs]):
            rows.append(np.hstack([np.pad(tile, ((1, 1), (1, 1), (0, 0))) for tile in strip]))
        rows[-2] = cv2.putText(
            rows[-2].copy(),
            domain,
            (4, 12),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.4,
            (255, 255, 255),
            1,
            cv2.LINE_AA,
        )
    sheet = cv2.resize(np.vstack(rows), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(file), sheet[:, :, ::-1])
    return file


def class_shares(root: Path, out: Path) -> Path:
    """Write class_share.csv: percent of pixels per class (rows) and domain (columns)."""
    shares = read_manifest(root).class_share
    lines = [",".join(["class", *shares])]
    for name in next(iter(shares.values())):
        lines.append(",".join([name, *(f"{100 * share[name]:.2f}" for share in shares.values())]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "class_share.csv").write_text("\n".join(lines) + "\n")
    return out / "class_share.csv"
