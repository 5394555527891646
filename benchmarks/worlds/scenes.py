"""Random driving scenes: geometry only. Every domain draws from the same sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.worlds import objects
from benchmarks.worlds.canvas import VOID, Camera, Canvas

SIZE = (96, 160)  # height, width of a rendered image in pixels
ROAD, SIDEWALK, TERRAIN, SKY = 0, 1, 9, 10


@dataclass(frozen=True)
class Scene:
    """Geometry of one view; appearance comes later (see `appearance.render`)."""

    segments: np.ndarray  # int32 (H, W): which surface is seen
    labels: np.ndarray  # uint8 (H, W): trainId, 255 void
    depth: np.ndarray  # float32 (H, W), metres
    canvas: Canvas

    def boxes(self) -> list[dict]:
        """Counted objects: trainId, boxes (x1, y1, x2, y2 in pixels, exclusive ends) and pixels.

        `box` holds what is visible, `full_box` the whole object, also behind others and outside.
        """
        owner = np.array([s.instance for s in self.canvas.surfaces])
        seen = owner[self.segments]
        kept = []
        for instance in np.unique(seen[seen > 0]):
            rows, columns = np.nonzero(seen == instance)
            parts = [s for s in self.canvas.surfaces if s.instance == instance]
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            corners = np.concatenate([np.reshape(box, (2, 2)), *(s.points for s in parts)])
            whole = (*corners.min(axis=0), *corners.max(axis=0))
            kept.append(
                {
                    "train_id": parts[0].label,
                    "box": [int(v) for v in box],
                    "full_box": [round(float(v), 2) for v in whole],
                    "pixels": len(rows),
                }
            )
        return kept


def sample_scene(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Scene:
    """Draw a street: camera, ground strips, both sides of the road, then everything by depth."""
    height, width = size
    camera = Camera(
        height,
        width,
        horizon=height * rng.uniform(0.40, 0.50),
        centre=width * rng.uniform(0.40, 0.60),
        focal=width * rng.uniform(0.60, 0.75),
    )
    canvas = Canvas(camera)
    canvas.polygon([(0, 0), (width, 0), (width, height), (0, height)], (SKY, "sky"), 200.0)
    road = rng.uniform(3.4, 5.4)
    walk = rng.uniform(2.2, 4.5)
    _ground(canvas, rng, road, walk)
    if rng.random() < 0.6:
        objects.far_houses(canvas, rng, 90.0)
    counter = iter(range(1, 1000))
    things: list[tuple[float, Callable[[], None]]] = []
    for side in (-1, 1):
        _roadside(canvas, rng, side, road, walk, things)
        _pavement(canvas, rng, side, road, walk, things, counter)
    _traffic(canvas, rng, road, things, counter)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    segments = canvas.paint()
    labels = np.array([s.label for s in canvas.surfaces], dtype=np.uint8)[segments]
    depth = np.array([s.depth for s in canvas.surfaces], dtype=np.float32)[segments]
    flat = np.isin(labels, (ROAD, SIDEWALK, TERRAIN))
    depth = np.where(flat, np.broadcast_to(camera.ground_depth(), depth.shape), depth)
    return Scene(segments, labels, depth, canvas)


def _ground(canvas: Canvas, rng: np.random.Generator, road: float, walk: float) -> None:
    canvas.ground(-150, 150, (TERRAIN, "grass"))
    canvas.ground(-road - walk, road + walk, (SIDEWALK, "pavement"))
    canvas.ground(-road - 0.25, road + 0.25, (SIDEWALK, "kerb"))
    canvas.ground(-road, road, (ROAD, "asphalt"))
    for line in (-road + 0.4, road - 0.6):
        canvas.ground(line, line + 0.18, (ROAD, "marking"))
    dash, gap, start = rng.uniform(2, 4), rng.uniform(2, 5), rng.uniform(1.5, 5)
    while start < 50:
        canvas.ground_patch(-0.12, 0.12, start, start + dash, (ROAD, "marking"))
        start += dash + gap
    if rng.random() < 0.25:
        start = rng.uniform(5, 14)
        for stripe in np.arange(-road + 0.5, road - 0.5, 1.0):
            canvas.ground_patch(stripe, stripe + 0.5, start, start + 2.5, (ROAD, "marking"))
    if rng.random() < 0.5:  # the shade of something outside the picture
        start = rng.uniform(4, 20)
        canvas.ground_patch(-road, road, start, start + rng.uniform(1, 6), (ROAD, "shade"))


def _roadside(
    canvas: Canvas, rng: np.random.Generator, side: int, road: float, walk: float, things: list
) -> None:
    """What lines one side, in stretches: houses, or green behind a wall or fence."""
    edge = side * (road + walk)
    z = rng.uniform(0.0, 6.0)
    while z < 70:
        stretch = rng.uniform(6.0, 18.0)
        reach = (max(z, 2.3), z + stretch)
        if rng.random() < 0.5:
            at = edge + side * rng.choice([0.0, rng.uniform(0.5, 5.0)])
            things.append((reach[1] + 3, _later(objects.building, canvas, rng, side, at, reach)))
        else:
            verge = rng.uniform(0.3, 3.0)
            barrier = rng.choice([objects.wall, objects.fence, None], p=[0.38, 0.42, 0.2])
            if barrier is not None:
                things.append((reach[1], _later(barrier, canvas, rng, edge + side * verge, reach)))
            for _ in range(rng.integers(0, 4)):
                x, depth = edge + side * (verge + rng.uniform(0.5, 9.0)), rng.uniform(*reach) + 1.0
                plant = objects.tree if rng.random() < 0.65 else objects.bush
                things.append((depth + 4, _later(plant, canvas, rng, x, depth)))
        z += stretch + rng.uniform(0.0, 3.0)


def _pavement(
    canvas: Canvas,
    rng: np.random.Generator,
    side: int,
    road: float,
    walk: float,
    things: list,
    counter: object,
) -> None:
    """Poles, street trees, pedestrians, parked two-wheelers and bins on one pavement."""

    def place(near: float, far: float) -> tuple[float, float]:
        return side * (road + rng.uniform(0.3, walk)), near + (far - near) * rng.random() ** 1.5

    for _ in range(rng.integers(1, 4)):
        z = rng.uniform(5.5, 24.0)
        things.append((z, _later(objects.pole, canvas, rng, side * (road + 0.4), z)))
    if rng.random() < 0.35:
        x, z = place(6.0, 25.0)
        things.append((z, _later(objects.tree, canvas, rng, x, z)))
    for _ in range(rng.poisson(1.6)):
        x, z = place(4.5, 16.0)
        things.append((z, _later(objects.person, canvas, rng, x, z, next(counter))))
    for label, chance in ((objects.BICYCLE, 0.4), (objects.MOTORCYCLE, 0.3)):
        if rng.random() < chance:
            x, z = place(4.5, 13.0)
            things.append(
                (z, _later(objects.two_wheeler, canvas, rng, label, x, z, (next(counter), None)))
            )
    if rng.random() < 0.3:
        x, z = place(5.0, 16.0)
        things.append((z, _later(objects.bin_box, canvas, rng, x, z)))


def _traffic(
    canvas: Canvas, rng: np.random.Generator, road: float, things: list, counter: object
) -> None:
    """Vehicles queue in two lanes; riders keep to the edge of the road."""
    for lane in (-1, 1):
        z = rng.uniform(5.5, 11.0)
        while z < 45:
            label = int(
                rng.choice(
                    [objects.CAR, objects.TRUCK, objects.BUS, objects.TRAIN, -1],
                    p=[0.38, 0.13, 0.12, 0.12, 0.25],
                )
            )
            length = {
                objects.CAR: 5,
                objects.TRUCK: 10,
                objects.BUS: 13,
                objects.TRAIN: 30,
            }.get(label, 6)
            if label >= 0:
                x = lane * (road * 0.5 + rng.uniform(-0.3, 0.5))
                things.append((z, _later(objects.vehicle, canvas, rng, label, x, z, next(counter))))
            z += length + rng.uniform(2.0, 9.0)
    for label, chance in ((objects.BICYCLE, 0.55), (objects.MOTORCYCLE, 0.5)):
        if rng.random() < chance:
            x = rng.choice([-1, 1]) * (road - rng.uniform(0.6, 1.4))
            z = rng.uniform(4.5, 11.0)
            pair = (next(counter), next(counter))
            things.append((z, _later(objects.two_wheeler, canvas, rng, label, x, z, pair)))


def _later(
    draw: Callable[..., None], canvas: Canvas, rng: np.random.Generator, *args: object
) -> Callable[[], None]:
    """A generator of its own: the order of painting does not change what is drawn."""
    own = np.random.default_rng(rng.integers(2**63))
    return lambda: draw(canvas, own, *args)


__all__ = ["SIZE", "VOID", "Scene", "sample_scene"]
