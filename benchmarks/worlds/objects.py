"""Houses, plants, poles, people, vehicles: each function adds one to a canvas, in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.worlds.canvas import VOID, Canvas

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


BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION = 2, 3, 4, 5, 6, 7, 8
PERSON, RIDER, MOTORCYCLE, BICYCLE = 11, 12, 17, 18

Rng = np.random.Generator


def building(canvas: Canvas, rng: Rng, side: int, x: float, z: tuple[float, float]) -> None:
    """A house front along the street, its end wall towards the camera, and rows of windows."""
    height = rng.uniform(5.0, 15.0)
    look = (BUILDING, f"house{rng.integers(4)}")
    deep = x + side * rng.uniform(6.0, 12.0)
    canvas.facing((min(x, deep), max(x, deep)), z[0], (0.0, height), look, tone=0.85)
    canvas.along(x, z, (0.0, height), look)
    storey, bay = rng.uniform(2.6, 3.6), rng.uniform(2.2, 4.0)
    pane = (BUILDING, "window")
    for floor in range(int(height // storey)):
        low = floor * storey + 0.9
        for column in range(int((z[1] - z[0]) // bay)):
            start = z[0] + column * bay + 0.5
            if start < 25.0:  # farther panes are smaller than a pixel
                canvas.along(x, (start, start + bay * 0.5), (low, low + storey * 0.5), pane)


def far_houses(canvas: Canvas, rng: Rng, half_width: float) -> None:
    """The skyline that closes the street."""
    left = -half_width
    while left < half_width:
        width = rng.uniform(8.0, 25.0)
        look = (BUILDING, f"house{rng.integers(4)}")
        canvas.facing((left, left + width), 90.0, (0.0, rng.uniform(6.0, 28.0)), look, tone=0.9)
        left += width


def wall(canvas: Canvas, rng: Rng, x: float, z: tuple[float, float]) -> None:
    """A closed wall along the street, with a coping."""
    height = rng.uniform(1.6, 2.8)
    canvas.along(x, z, (0.0, height), (WALL, "wall"))
    canvas.along(x, z, (height - 0.25, height), (WALL, "wall"), tone=1.25)


def fence(canvas: Canvas, rng: Rng, x: float, z: tuple[float, float]) -> None:
    """A picket or mesh fence; as in hand-made labels, the gaps count as fence."""
    height = rng.uniform(1.3, 2.2)
    canvas.along(x, z, (0.0, height), (FENCE, "fence_gap"))
    for bar in np.arange(z[0], min(z[1], 30.0), rng.uniform(0.5, 0.9)):
        canvas.along(x, (bar, bar + 0.22), (0.0, height), (FENCE, "fence"))
    canvas.along(x, z, (height - 0.2, height), (FENCE, "fence"))


def tree(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A trunk under two to four irregular crowns."""
    height, crown = rng.uniform(3.5, 7.0), rng.uniform(1.2, 2.4)
    canvas.facing((x - 0.18, x + 0.18), z, (0.0, height), (VEGETATION, "trunk"))
    for _ in range(rng.integers(2, 5)):
        canvas.disc(
            x + rng.normal(0, crown * 0.45),
            height + rng.normal(0, crown * 0.35),
            z,
            (crown, crown * rng.uniform(0.7, 1.0)),
            (VEGETATION, "leaf"),
            tone=rng.uniform(0.75, 1.2),
            outline=rng.uniform(0.75, 1.15, 14),
        )


def bush(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A low round plant."""
    size = rng.uniform(0.6, 1.3)
    look = (VEGETATION, "leaf")
    canvas.disc(x, size * 0.6, z, (size, size * 0.7), look, outline=rng.uniform(0.8, 1.15, 12))


def pole(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """A pole that carries a street lamp, a traffic light or one or two signs."""
    toward_road = -np.sign(x)
    thick = rng.uniform(0.14, 0.24)
    cargo = rng.choice(["lamp", "light", "sign", "light+sign"], p=[0.2, 0.3, 0.25, 0.25])
    height = rng.uniform(5.0, 7.0) if cargo == "lamp" else rng.uniform(3.4, 4.6)
    canvas.facing((x - thick, x + thick), z, (0.0, height), (POLE, "pole"))
    if cargo == "lamp":
        end = x + toward_road * rng.uniform(1.0, 2.0)
        canvas.facing(tuple(sorted((x, end))), z, (height - 0.2, height), (POLE, "pole"))
        canvas.lamp(end, height - 0.3, z, 2.5, "street")
    if "light" in cargo:
        centre = x + toward_road * rng.uniform(0.0, 0.5)
        low = height - 1.6
        canvas.facing((centre - 0.38, centre + 0.38), z, (low, height + 0.2), (LIGHT, "light_box"))
        lit = rng.integers(3)
        for lamp, colour in enumerate(("lamp_green", "lamp_amber", "lamp_red")):
            material = colour if lamp == lit else "lamp_off"
            y = low + 0.35 + 0.55 * lamp
            canvas.disc(centre, y, z, (0.24, 0.24), (LIGHT, material))
    if "sign" in cargo:
        y = height - (2.2 if "light" in cargo else 0.3)
        _sign(canvas, rng, x, y, z)


def _sign(canvas: Canvas, rng: Rng, x: float, y: float, z: float) -> None:
    face = (SIGN, str(rng.choice(["sign_red", "sign_blue", "sign_yellow", "sign_green"])))
    size = rng.uniform(0.5, 0.75)
    if rng.random() < 0.5:
        canvas.disc(x, y, z, (size, size), face)
        canvas.disc(x, y, z, (size * 0.6, size * 0.6), (SIGN, "sign_white"))
    else:
        canvas.facing((x - size, x + size), z, (y - size * 0.8, y + size * 0.8), face)
        canvas.facing(
            (x - size * 0.7, x + size * 0.7), z, (y - 0.12, y + 0.12), (SIGN, "sign_white")
        )


def bin_box(canvas: Canvas, rng: Rng, x: float, z: float) -> None:
    """Street furniture outside the 19 classes: void, as in the real label sets."""
    canvas.facing((x - 0.4, x + 0.4), z, (0.0, rng.uniform(0.9, 1.3)), (VOID, "bin"))


def person(canvas: Canvas, rng: Rng, x: float, z: float, instance: int) -> None:
    """A standing or walking pedestrian."""
    tall = rng.uniform(1.55, 1.95)
    top, bottom = f"cloth{rng.integers(6)}", f"cloth{rng.integers(6)}"
    step = rng.uniform(0.05, 0.3)
    for foot in (-step, step):
        canvas.facing(
            (x + foot - 0.13, x + foot + 0.13),
            z,
            (0.0, tall * 0.5),
            (PERSON, bottom),
            instance,
            0.8,
        )
    canvas.facing((x - 0.32, x + 0.32), z, (tall * 0.45, tall * 0.86), (PERSON, top), instance)
    canvas.disc(x, tall * 0.92, z, (0.17, 0.19), (PERSON, "skin"), instance)


def two_wheeler(
    canvas: Canvas, rng: Rng, label: int, x: float, z: float, instances: tuple[int, int | None]
) -> None:
    """A bicycle or motorcycle seen half from the side; a second instance puts a rider on it."""
    bike, rider = instances
    motor = label == MOTORCYCLE
    radius, reach = (0.36, 0.62) if motor else (0.40, 0.62)
    body = (label, "moto_paint" if motor else "bike_frame")
    for end in (-reach, reach):
        canvas.disc(x + end, radius, z, (radius * 0.8, radius), (label, "tyre"), bike)
        hub = "metal" if motor else "spokes"
        canvas.disc(x + end, radius, z, (radius * 0.45, radius * 0.6), (label, hub), bike)
    if motor:
        canvas.facing((x - 0.6, x + 0.65), z, (0.45, 0.95), body, bike)
        canvas.facing((x + 0.4, x + 0.6), z, (0.9, 1.25), (label, "metal"), bike)
        canvas.lamp(x + 0.6, 0.9, z, 0.5, "head")
    else:
        canvas.facing((x - 0.55, x + 0.55), z, (0.5, 0.72), body, bike)
        canvas.facing((x + 0.42, x + 0.56), z, (0.5, 1.15), body, bike)
        canvas.facing((x - 0.45, x - 0.25), z, (0.5, 1.0), body, bike)
    if rider is not None:
        cloth = f"cloth{rng.integers(6)}"
        canvas.facing((x - 0.28, x + 0.05), z, (0.55, 1.05), (RIDER, "cloth0"), rider, 0.8)
        canvas.facing((x - 0.3, x + 0.25), z, (0.95, 1.6), (RIDER, cloth), rider)
        helmet = "helmet" if motor or rng.random() < 0.5 else "skin"
        canvas.disc(x + 0.05, 1.74, z, (0.19, 0.21), (RIDER, helmet), rider)
