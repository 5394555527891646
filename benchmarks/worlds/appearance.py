"""Turns the geometry of a scene into a photograph of it in a given style."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from benchmarks.worlds.scenes import Scene
from benchmarks.worlds.styles import GLOWING, MATERIALS, Style

_NAMES = list(MATERIALS)
_INDEX = {name: i for i, name in enumerate(_NAMES)}
_BASE = np.array([MATERIALS[n][0] for n in _NAMES], dtype=np.float32) / 255
_TEXTURE = np.array([MATERIALS[n][1] for n in _NAMES], dtype=np.float32)
_GLOWS = np.array([n in GLOWING for n in _NAMES])
_SEASONS = {
    "summer": {},
    "autumn": {"leaf": (176, 104, 38), "grass": (142, 126, 66)},
    "bare": {"leaf": (104, 92, 78), "grass": (120, 112, 84)},
}
_LAMPS = {"street": (1.0, 0.78, 0.45), "head": (1.0, 0.95, 0.82), "tail": (1.0, 0.12, 0.08)}


def render(scene: Scene, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Photograph of a scene: uint8 RGB (H, W, 3)."""
    image, materials = _albedo(scene, style, rng)
    glow = _GLOWS[materials]
    if style.snow:
        image = _snow(image, scene, materials, style)
    image = _daylight(image, scene, materials, style)
    if style.wet:
        image = _mirror(image, scene, style)
    if style.night:
        image = _night(image, scene, materials, glow, style, rng)
    if style.haze:
        image = _haze(image, scene, style)
    if style.rain:
        image = _rain(image, style, rng)
    return _sensor(image, style, rng)


def _albedo(scene: Scene, style: Style, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Surface colours with texture, float (H, W, 3) in 0-1, and the material of every pixel."""
    surfaces = scene.canvas.surfaces
    material = np.array([_INDEX[s.material] for s in surfaces])
    palette = _BASE.copy()
    for name, colour in _SEASONS[style.season].items():
        palette[_INDEX[name]] = np.array(colour) / 255
    if style.palette_mix:
        palette += style.palette_mix * (rng.random(palette.shape) - palette)
    palette += rng.normal(0, style.palette_shift, palette.shape)
    colour = palette[material] + rng.normal(0, style.part_shift, (len(surfaces), 3))
    colour = np.clip(colour, 0.02, 1.0) * np.array([s.tone for s in surfaces])[:, None]
    materials = material[scene.segments]
    strength = style.texture * _TEXTURE[materials]
    fine, coarse = _grain(rng, materials.shape)
    image = colour[scene.segments] * (1.0 + strength * (0.7 * fine + 0.7 * coarse))[..., None]
    return image.astype(np.float32), materials


@cache
def _noise_bank() -> tuple[np.ndarray, np.ndarray]:
    """Fixed white and smooth noise, unit variance; images take random windows of it."""
    white = np.random.default_rng(20241204).standard_normal((512, 512)).astype(np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), 2.5)
    return white, smooth / smooth.std()


def _grain(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    bank = _noise_bank()
    rows, columns = rng.integers(0, 512 - shape[0]), rng.integers(0, 512 - shape[1])
    fine, coarse = (b[rows : rows + shape[0], columns : columns + shape[1]] for b in bank)
    return fine, coarse[::-1]


def _snow(image: np.ndarray, scene: Scene, materials: np.ndarray, style: Style) -> np.ndarray:
    cover = np.zeros(len(_NAMES), dtype=np.float32)
    for name, share in (
        ("grass", 1.0),
        ("leaf", 0.6),
        ("pavement", 0.8),
        ("kerb", 0.7),
        ("asphalt", 0.45),
        ("marking", 0.5),
    ):
        cover[_INDEX[name]] = share
    share = (style.snow * cover)[materials][..., None]
    return image * (1 - share) + np.float32([0.90, 0.92, 0.95]) * share


def _daylight(image: np.ndarray, scene: Scene, materials: np.ndarray, style: Style) -> np.ndarray:
    height, width = materials.shape
    sky = materials == _INDEX["sky"]
    up = (np.arange(height, dtype=np.float32) / height)[:, None, None]
    blue = image * (0.75 + 0.6 * up)
    white = np.float32([0.86, 0.88, 0.90]) * (0.95 + 0.1 * up)
    dome = blue * (1 - style.overcast) + white * style.overcast
    if style.dusk:
        glow = np.float32([1.0, 0.62, 0.36]) * (0.35 + 1.1 * up)
        dome = dome * (1 - style.dusk) + glow * style.dusk
    across = np.linspace(1 + style.sun * 0.5, 1 - style.sun * 0.5, width, dtype=np.float32)[
        None, :, None
    ]
    lit = image * across * (1 - 0.12 * style.overcast)
    if style.dusk:
        lit = lit * (1 - style.dusk * (1 - np.float32([0.95, 0.68, 0.52])))
    return np.where(sky[..., None], dome, lit)


def _mirror(image: np.ndarray, scene: Scene, style: Style) -> np.ndarray:
    """The road reflects what stands above the horizon."""
    horizon = int(np.clip(scene.canvas.camera.horizon, 1, image.shape[0] - 2))
    below = image.shape[0] - horizon
    above = image[max(horizon - below, 0) : horizon][::-1]
    reflection = image.copy()
    reflection[horizon : horizon + len(above)] = cv2.GaussianBlur(
        above, (0, 0), sigmaX=0.8, sigmaY=3
    )
    road = (scene.labels == 0)[..., None] * np.float32(style.wet * 0.7)
    return image * (1 - road) + reflection * road


def _night(
    image: np.ndarray,
    scene: Scene,
    materials: np.ndarray,
    glow: np.ndarray,
    style: Style,
    rng: np.random.Generator,
) -> np.ndarray:
    height, width = materials.shape
    ambient = np.float32([0.34, 0.35, 0.44]) * (1.25 - style.night)
    light = np.ones((height, width, 3), dtype=np.float32) * ambient
    # the own headlights: a cone on the road ahead
    depth = scene.depth
    beam = np.exp(-(((np.arange(width) - width / 2) / (width * 0.33)) ** 2))[None, :]
    light += (1.1 * np.clip(9.0 / np.maximum(depth, 5.0), 0, 1.2) * beam * (depth < 60))[
        ..., None
    ] * 0.5
    halo = np.zeros((height, width, 3), dtype=np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for column, row, radius, kind in scene.canvas.lamps:
        if not (-10 < column < width + 10 and -10 < row < height + 10):
            continue
        reach = np.clip(radius, 1.0, 7.0) * (2.0 if kind == "street" else 0.9)
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * reach**2))
        halo = np.maximum(halo, spot[..., None] * np.float32(_LAMPS[kind]))
    dark = image * (1 - style.night) + image * (light + 0.8 * halo) * style.night
    windows = materials == _INDEX["window"]
    lit = windows & (_grain(rng, materials.shape)[1] > 0.3)
    dark = np.where(
        lit[..., None],
        np.float32([0.85, 0.68, 0.38]) * style.night + dark * (1 - style.night),
        dark,
    )
    dark = np.where(glow[..., None], image, dark)
    return dark + 0.25 * style.night * halo


def _haze(image: np.ndarray, scene: Scene, style: Style) -> np.ndarray:
    through = np.exp(-style.haze * scene.depth)[..., None]
    colour = np.float32(style.haze_colour) / 255 * (1 - 0.8 * style.night)
    return image * through + colour * (1 - through)


def _rain(image: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    streaks = np.zeros((height, width), dtype=np.float32)
    slope = rng.normal(0, 0.15)
    for _ in range(int(90 * style.rain)):
        x, y, length = rng.uniform(0, width), rng.uniform(-8, height), rng.uniform(4, 14)
        end = (int(x + slope * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, float(rng.uniform(0.1, 0.35)), 1, cv2.LINE_AA)
    return image + streaks[..., None] * (1 - 0.6 * style.night)


def _sensor(image: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    image = image * np.float32(style.cast) * style.exposure
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * style.saturation
    image = 0.45 + (image - 0.45) * style.contrast
    if style.vignette:
        rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        image = image * (1 - style.vignette * (rows**2 + columns**2) / 2)[..., None]
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(style.blur, 0.1))
    if style.noise:
        start = rng.integers(0, 512 * 512 - image.size // 3, 3)
        white = _noise_bank()[0].ravel()
        grain = np.stack([white[s : s + height * width] for s in start], axis=1)
        image = image + style.noise * grain.reshape(height, width, 3)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
