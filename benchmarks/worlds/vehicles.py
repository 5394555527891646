"""Cars, trucks, buses and trains: boxes in metres with the details that tell them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.worlds.canvas import Canvas

ROAD, CAR, TRUCK, BUS, TRAIN = 0, 13, 14, 15, 16

_SIZES = {  # label: width, height, length (metres)
    CAR: ((1.7, 2.0), (1.35, 1.75), (3.8, 4.8)),
    TRUCK: ((2.3, 2.6), (2.8, 3.8), (6.0, 10.0)),
    BUS: ((2.4, 2.6), (2.8, 3.3), (9.0, 13.0)),
    TRAIN: ((2.5, 2.8), (3.4, 4.0), (18.0, 30.0)),
}
_SILL = 0.3

Span = tuple[float, float]


@dataclass(frozen=True)
class Body:
    """A vehicle's box: x from `left` to `right`, z from `near` to `far`, y up to `height`."""

    canvas: Canvas
    label: int
    instance: int
    left: float
    right: float
    near: float
    far: float
    height: float

    @property
    def oncoming(self) -> bool:
        """Left of the camera axis traffic comes towards it."""
        return self.left + self.right < 0

    def face(self, x: Span, y: Span, material: str, tone: float = 1.0) -> None:
        """A rectangle on the near end; x from the left edge, or from the right one if negative."""
        ends = tuple(self.left + v if v >= 0 else self.right + v for v in x)
        self.canvas.facing(ends, self.near, y, (self.label, material), self.instance, tone)

    def flank(self, z: Span, y: Span, material: str, tone: float = 1.0) -> None:
        """A rectangle on the side that faces the camera axis; z in metres from the near end."""
        side = self.left if self.left + self.right > 0 else self.right
        reach = (self.near + z[0], self.near + z[1])
        self.canvas.along(side, reach, y, (self.label, material), self.instance, tone)


def vehicle(
    canvas: Canvas, rng: np.random.Generator, label: int, x: float, z: float, instance: int
) -> None:
    """A car, truck, bus or train whose near end stands at (x, z)."""
    width, height, length = (rng.uniform(*bounds) for bounds in _SIZES[label])
    body = Body(canvas, label, instance, x - width / 2, x + width / 2, z, z + length, height)
    canvas.ground_patch(body.left - 0.2, body.right + 0.2, z, body.far, (ROAD, "shadow"))
    paints = {
        CAR: f"car{rng.integers(6)}",
        TRUCK: f"truck{rng.integers(3)}",
        BUS: f"bus{rng.integers(3)}",
        TRAIN: f"train{rng.integers(3)}",
    }
    top = height * 0.55 if label == CAR else height
    body.flank((0, length), (_SILL, top), paints[label], 0.8)
    body.face((0, width), (_SILL, top), paints[label])
    {CAR: _car, TRUCK: _truck, BUS: _bus, TRAIN: _train}[label](body, length, paints[label])
    if label != TRAIN:
        _wheels(body, length, 0.33 if label == CAR else 0.5)
    _lamps(body, 0.75 if label == CAR else 0.9)


def _car(body: Body, length: float, paint: str) -> None:
    waist, inset = body.height * 0.55, (body.right - body.left) * 0.12
    body.flank((length * 0.2, length * 0.8), (waist, body.height), "glass", 0.9)
    project = body.canvas.camera.project
    cabin = [
        project(body.left, waist, body.near + 0.3),
        project(body.right, waist, body.near + 0.3),
        project(body.right - inset, body.height, body.near + 0.6),
        project(body.left + inset, body.height, body.near + 0.6),
    ]
    body.canvas.polygon(cabin, (CAR, paint), body.near, body.instance, 0.95)
    body.face((inset * 1.4, -inset * 1.4), (waist + 0.02, body.height - 0.14), "glass")


def _truck(body: Body, length: float, paint: str) -> None:
    body.flank((0, length * 0.25), (_SILL, body.height * 0.75), "truck_cab", 0.9)
    half = (body.right - body.left) / 2
    if body.oncoming:
        body.face((0, 2 * half), (_SILL, body.height * 0.72), "truck_cab")
        body.face((0.2, -0.2), (body.height * 0.42, body.height * 0.66), "glass")
    else:  # the gap between the doors
        body.face((half - 0.05, half + 0.05), (_SILL, body.height - 0.1), "metal", 0.7)
    body.face((0, 2 * half), (_SILL, _SILL + 0.25), "metal", 0.6)


def _bus(body: Body, length: float, paint: str) -> None:
    _windows(body, length, bay=1.6, y=(1.2, body.height - 0.5))
    body.face((0.5, -0.5), (body.height - 0.4, body.height - 0.1), "bus_board")


def _train(body: Body, length: float, paint: str) -> None:
    _windows(body, length, bay=2.4, y=(1.7, body.height - 0.9))
    width = body.right - body.left
    body.face((0, width), (0.9, 1.4), "train_stripe")
    body.flank((0, length), (0.9, 1.4), "train_stripe")
    centre, top = (body.left + body.right) / 2, (body.height, body.height + 0.9)
    pantograph = (centre - 0.1, centre + 0.1)
    body.canvas.facing(pantograph, body.near + 1.0, top, (TRAIN, "metal"), body.instance)


def _windows(body: Body, length: float, bay: float, y: Span) -> None:
    body.face((0.15, -0.15), y, "glass")
    for start in np.arange(0.4, min(length - bay, 40.0 - body.near), bay):
        body.flank((start, start + bay * 0.75), y, "glass")


def _wheels(body: Body, length: float, radius: float) -> None:
    for axle in (length * 0.18, length * 0.8):
        body.flank((axle - radius, axle + radius), (0.0, radius * 1.8), "tyre")
    body.face((0.05, 0.35), (0.0, 0.35), "tyre")
    body.face((-0.35, -0.05), (0.0, 0.35), "tyre")


def _lamps(body: Body, y: float) -> None:
    kind = "head" if body.oncoming else "tail"
    for start in (0.08, -0.38):
        body.face((start, start + 0.3), (y - 0.1, y + 0.1), f"lamp_{kind}")
        x = (body.left if start > 0 else body.right) + start + 0.15
        body.canvas.lamp(x, y, body.near, 0.9 if body.oncoming else 0.5, kind)
