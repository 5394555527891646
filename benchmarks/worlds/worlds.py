"""Renders the mini domains to disk, in the layout and label encoding of the real data sets."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
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
from pydantic import field_validator
from rich.progress import track

from benchmarks.data.cards import IGNORE, load_card
from benchmarks.data.pictures import PALETTE
from benchmarks.errors import UserError
from benchmarks.worlds import styles, weather, writers
from benchmarks.worlds.appearance import render
from benchmarks.worlds.scenes import Scene, sample_scene
from benchmarks.worlds.styles import DOMAINS, Rng, Style
from benchmarks.worlds.writers import (
    CLASSES,
    Annotated,
    annotate,
    write_instances,
    write_pair,
)
from benchmarks.yaml_files import Strict

SMALL_IMAGES = 8  # per data set; of ACDC per split
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


def render_small_worlds(root: Path, seed: int) -> None:
    """Write all of them below `root`."""
    for index in range(SMALL_IMAGES):
        _synthia(root, seed, index)
        _urbansyn(root, seed, index)
        _cityscapes(root, seed, index)
        for split in ("train", "val"):
            _acdc(root, seed, split, index)


def sample_small(
    name: str, seed: int, index: int, style: Callable[[Rng], Style]
) -> tuple[Scene, np.ndarray]:
    """Scene and photograph (uint8 RGB) number `index` of a set."""
    rng = np.random.default_rng([_STREAM, seed, *name.encode(), index])
    scene = sample_scene(rng)
    return scene, render(scene, style(rng), rng)


def _synthia(root: Path, seed: int, index: int) -> None:
    scene, image = sample_small("synthia", seed, index, weather.clear_day)
    write_pair(load_card("synthia"), root, "train", f"{index:07d}", image, scene.labels)


def _urbansyn(root: Path, seed: int, index: int) -> None:
    scene, image = sample_small("urbansyn", seed, index, styles.gtav)
    write_pair(load_card("urbansyn"), root, "train", f"{index + 1:04d}", image, scene.labels)


def _acdc(root: Path, seed: int, split: str, index: int) -> None:
    condition = list(CONDITIONS)[index % len(CONDITIONS)]
    scene, image = sample_small(f"acdc_{split}", seed, index, CONDITIONS[condition])
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

    scene, image = sample_small("cityscapes_train", seed, index, styles.cityscapes)
    write_pair(card, root, "train", name, image, scene.labels, city=city)
    write_instances(boxes.path(root, "train", "labels", name=name, city=city), scene, card)
    for beta in foggy.split("train_all").beta:
        file = foggy.path(root, "train_all", "images", name=name, city=city, beta=beta)
        file.parent.mkdir(parents=True, exist_ok=True)
        style = partial(_in_fog, beta=float(beta))
        Image.fromarray(sample_small("cityscapes_train", seed, index, style)[1]).save(file)


def _in_fog(rng: Rng, beta: float) -> Style:
    return replace(styles.cityscapes(rng), haze=beta)


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


@dataclass(frozen=True)
class World:
    """How many images of a domain are rendered, and into which split of its card."""

    split: str
    images: int


WORLDS = {
    "gtav": World("train", 760),  # 600 to train on, 160 held out by the protocol
    "cityscapes": World("val", 160),
    "bdd100k": World("val", 160),
    "mapillary": World("val", 160),
}


def sample(domain: str, index: int, seed: int = SEED) -> tuple[Scene, np.ndarray]:
    """Scene and photograph (uint8 RGB) number `index` of a domain."""
    rng = np.random.default_rng([seed, list(DOMAINS).index(domain), index])
    scene = sample_scene(rng)
    return scene, render(scene, DOMAINS[domain](rng), rng)


def render_worlds(root: Path, seed: int = SEED) -> Path:
    """Write all domains below `root` with a manifest of hashes, unless that is done already.

    Everything is rendered in a folder of its own inside `root`, which may be a link or a mount
    point. Then one file after the other takes its place: whoever reads the worlds meanwhile misses
    none. Files whose content stays are not touched; of others only those go that the manifest
    before lists and that are as they were rendered.

    Raises:
        UserError: `root` holds files but no manifest, its manifest cannot be read, or a file that
            was not rendered lies where one belongs; nothing is changed then.
    """
    origin = {"seed": seed, "renderer": renderer_hash()}
    try:
        if _rendered(root, origin) is None:
            return root
        made = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
        lock = root / ".render.lock"
        try:
            with FileLock(lock):
                before = _rendered(root, origin)  # by another process meanwhile
                if before is not None:
                    _render_and_swap(root, seed, origin, before)
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


def _rendered(root: Path, origin: dict[str, Any]) -> dict[str, str] | None:
    """Path -> SHA-256 of the files that were rendered before; None if they are those of `origin`.

    Raises:
        UserError: a manifest that is none, or other files without one.
    """
    if (root / MANIFEST).is_file():
        there = read_manifest(root)
        complete = all((root / file).is_file() for file in there.files)
        return None if complete and there.origin == origin else there.files
    if root.exists() and any(
        not entry.name.startswith((".", "lost+found")) for entry in root.iterdir()
    ):
        raise UserError(
            f"{root} holds files that are no mini worlds; give another folder or empty it"
        )
    return {}


def _render_and_swap(root: Path, seed: int, origin: dict[str, Any], before: dict[str, str]) -> None:
    partial = root / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a render that was cut off
    try:
        _render_all(partial, seed, origin)
        after = read_manifest(partial).files
        foreign = [file for file in after.keys() - before.keys() if (root / file).exists()]
        if foreign:
            raise UserError(
                f"{root / min(foreign)}: was not rendered, and a rendered file belongs there; move "
                "it away or give another --root"
            )
        for file, digest in after.items():
            if not _holds(root / file, digest):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).replace(root / file)
        (partial / MANIFEST).replace(root / MANIFEST)
        for file in before.keys() - after.keys():
            if _holds(root / file, before[file]):
                (root / file).unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _holds(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


class Manifest(Strict):
    """What was rendered.

    Attributes:
        origin: seed, and hash of the renderer.
        class_share: domain -> class -> share of pixels.
        boxes: list of a domain -> statistics.
        files: path below the manifest's folder -> SHA-256.
    """

    origin: dict[str, int | str]
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


def _render_all(root: Path, seed: int, origin: dict[str, Any]) -> None:
    with _mapping() as mapped:
        shares = {domain: _render_domain(root, domain, seed, mapped) for domain in WORLDS}
        boxes = {
            f"{domain}/{split}": writers.statistics(images)
            for domain in weather.WORLDS
            for split, images in weather.render_domain(root, domain, seed, mapped).items()
        }
    render_small_worlds(root, seed)
    files = sorted(f for f in root.rglob("*") if f.is_file())
    manifest = {
        "origin": origin,
        "class_share": shares,
        "boxes": boxes,
        "files": {
            f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in files
        },
    }
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1))


def renderer_hash() -> str:
    """SHA-256 over the source files that decide what a mini world looks like."""
    here = Path(__file__).parent
    names = ("canvas", "objects", "scenes", "styles", "appearance", "weather", "writers", "worlds")
    return hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in names)).hexdigest()


@contextmanager
def _mapping() -> Iterator[Callable[..., Iterable]]:
    """A `map` over processes, one for each processor; the plain one for a few images."""
    if sum(world.images for world in WORLDS.values()) <= FEW:
        yield map
        return
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=8)


def _render_domain(
    root: Path, domain: str, seed: int, mapped: Callable[..., Iterable]
) -> dict[str, float]:
    """Write one domain with the boxes of its objects; returns the share of pixels per class."""
    card, images = load_card(domain), WORLDS[domain].images
    counts = np.zeros(256, dtype=np.int64)
    boxes = []
    drawn = mapped(partial(_render_image, root, domain, seed), range(images))
    for pixels, objects in track(drawn, f"rendering {domain}", total=images, transient=True):
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
    write_pair(load_card(domain), root, WORLDS[domain].split, name, image, scene.labels, **parts)
    pixels = np.bincount(scene.labels.ravel(), minlength=256)
    return pixels, {"name": name, "objects": scene.boxes()}


def _file_name(domain: str, index: int) -> tuple[str, dict[str, str]]:
    """A name in the manner of the data set, and what else its file pattern needs."""
    if domain == "gtav":
        return f"{index + 1:05d}", {}
    if domain == "cityscapes":
        city = ("frankfurt", "lindau", "munster")[index % 3]
        return f"{city}_{index:06d}_000019", {"city": city}
    return hashlib.md5(f"{domain}{index}".encode(), usedforsecurity=False).hexdigest()[:17], {}


def contact_sheet(out: Path, columns: int = 5, scale: int = 2) -> Path:
    """Write contact_sheet.png: every domain, images above their labels."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(PALETTE)] = PALETTE
    rows = []
    for domain in WORLDS:
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
    out.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out / "contact_sheet.png"), sheet[:, :, ::-1])
    return out / "contact_sheet.png"


def class_shares(root: Path, out: Path) -> Path:
    """Write class_share.csv: percent of pixels per class (rows) and domain (columns)."""
    shares = read_manifest(root).class_share
    lines = [",".join(["class", *shares])]
    for name in next(iter(shares.values())):
        lines.append(",".join([name, *(f"{100 * share[name]:.2f}" for share in shares.values())]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "class_share.csv").write_text("\n".join(lines) + "\n")
    return out / "class_share.csv"
