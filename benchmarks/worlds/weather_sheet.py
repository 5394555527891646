"""Pictures and figures of the weather domains, for results/mini."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np

from benchmarks.worlds.annotations import CLASSES, Annotated, annotate
from benchmarks.worlds.weather import WORLDS, sample
from benchmarks.worlds.worlds import MANIFEST, SEED

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


def contact_sheet(out: Path, columns: int = 3, scale: int = 2) -> Path:
    """Write contact_sheet_detection.png: one row of images per domain, with their boxes.

    Difficult objects have a thin grey box without a name.
    """
    rows = []
    for domain in WORLDS:
        tiles = []
        for index in range(columns):
            scene, image = sample(domain, index, SEED)
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
    lists = json.loads((root / MANIFEST).read_text())["boxes"]
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
