"""A pinhole camera over a flat street, and a canvas painted back to front."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

CAMERA_HEIGHT = 1.6  # metres above the road
NEAREST = 2.2  # metres; nothing is drawn closer
_SUBPIXEL = 4  # fractional bits of polygon corners

VOID = 255  # class of everything that the 19 classes do not name


@dataclass(frozen=True)
class Camera:
    """Projects street coordinates to pixels: x to the right, y up, z ahead, in metres."""

    height: int
    width: int
    horizon: float
    centre: float
    focal: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel (column, row) of a street point; z is clamped to the nearest visible depth."""
        z = max(z, NEAREST)
        return (
            self.centre + self.focal * x / z,
            self.horizon + self.focal * (CAMERA_HEIGHT - y) / z,
        )

    def ground_depth(self) -> np.ndarray:
        """Depth in metres of the road at every pixel row, (height, 1); 200 above the horizon."""
        rows = np.arange(self.height, dtype=np.float32)[:, None] + 0.5
        below = np.maximum(rows - self.horizon, 1e-3)
        return np.minimum(self.focal * CAMERA_HEIGHT / below, 200.0)


@dataclass
class Surface:
    """One polygon of one material. `instance` is 0 for things that are not counted objects."""

    points: np.ndarray  # (corners, 2) pixels
    label: int  # trainId, or VOID
    material: str
    depth: float
    instance: int = 0
    tone: float = 1.0  # brightness factor: side faces, doors, shades


@dataclass
class Canvas:
    """Collects the surfaces of one scene and paints them into a segment-id map."""

    camera: Camera
    surfaces: list[Surface] = field(default_factory=list)
    lamps: list[tuple[float, float, float, str]] = field(default_factory=list)
    """Light sources at night: column, row, radius in pixels, kind (street, head, tail)."""

    def polygon(
        self,
        points: list[tuple[float, float]] | np.ndarray,
        look: tuple[int, str],
        depth: float,
        instance: int = 0,
        tone: float = 1.0,
    ) -> None:
        """Add a polygon in pixels; `look` is (trainId, material)."""
        corners = np.asarray(points, dtype=np.float32)
        self.surfaces.append(Surface(corners, *look, depth, instance, tone))

    def ground(self, x1: float, x2: float, look: tuple[int, str], tone: float = 1.0) -> None:
        """A strip of ground from x1 to x2 metres, running from the camera to the horizon."""
        near, far = 0.6, 180.0
        self.ground_patch(x1, x2, near, far, look, tone)

    def ground_patch(
        self, x1: float, x2: float, z1: float, z2: float, look: tuple[int, str], tone: float = 1.0
    ) -> None:
        """A rectangle that lies on the road plane."""
        c = self.camera
        corners = [
            (c.centre + c.focal * x / z, c.horizon + c.focal * CAMERA_HEIGHT / z)
            for x, z in ((x1, z1), (x2, z1), (x2, z2), (x1, z2))
        ]
        self.polygon(corners, look, (z1 + min(z2, 60.0)) / 2, tone=tone)

    def along(
        self,
        x: float,
        z: tuple[float, float],
        y: tuple[float, float],
        look: tuple[int, str],
        instance: int = 0,
        tone: float = 1.0,
    ) -> None:
        """A vertical plane that runs along the street at lateral position x."""
        p = self.camera.project
        corners = [p(x, y[0], z[0]), p(x, y[0], z[1]), p(x, y[1], z[1]), p(x, y[1], z[0])]
        self.polygon(corners, look, (z[0] + z[1]) / 2, instance, tone)

    def facing(
        self,
        x: tuple[float, float],
        z: float,
        y: tuple[float, float],
        look: tuple[int, str],
        instance: int = 0,
        tone: float = 1.0,
    ) -> None:
        """A vertical rectangle that faces the camera at depth z."""
        p = self.camera.project
        corners = [p(x[0], y[0], z), p(x[1], y[0], z), p(x[1], y[1], z), p(x[0], y[1], z)]
        self.polygon(corners, look, z, instance, tone)

    def disc(  # noqa: PLR0913 - a point, its size and its look
        self,
        x: float,
        y: float,
        z: float,
        radius: tuple[float, float],
        look: tuple[int, str],
        instance: int = 0,
        tone: float = 1.0,
        outline: np.ndarray | None = None,
    ) -> None:
        """An ellipse (radii in metres) facing the camera; `outline` scales each of its corners."""
        corners = 12 if outline is None else len(outline)
        angle = np.arange(corners) * (2 * np.pi / corners)
        scale = np.ones(corners) if outline is None else outline
        column, row = self.camera.project(x, y, z)
        pixels = self.camera.focal / max(z, NEAREST)
        points = np.stack(
            [
                column + radius[0] * pixels * scale * np.cos(angle),
                row + radius[1] * pixels * scale * np.sin(angle),
            ],
            axis=1,
        )
        self.polygon(points, look, z, instance, tone)

    def lamp(self, x: float, y: float, z: float, radius: float, kind: str) -> None:
        """A light source that glows at night; radius in metres."""
        column, row = self.camera.project(x, y, z)
        self.lamps.append((column, row, radius * self.camera.focal / max(z, NEAREST), kind))

    def paint(self) -> np.ndarray:
        """Index of the surface seen at every pixel, int32 (height, width); later ones cover."""
        segments = np.zeros((self.camera.height, self.camera.width), dtype=np.int32)
        for index, surface in enumerate(self.surfaces):
            # clipping keeps fixed-point corners of very near polygons inside 32 bits
            corners = np.clip(surface.points, -4000, 4000) * (1 << _SUBPIXEL)
            cv2.fillPoly(segments, [corners.round().astype(np.int32)], index, shift=_SUBPIXEL)
        return segments
