"""How each mini domain looks: palettes, light, weather and sensor, drawn anew for every image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Rng = np.random.Generator

# Daylight colours (RGB, 0-255) and texture strength of every material.
MATERIALS: dict[str, tuple[tuple[int, int, int], float]] = {
    "sky": ((120, 170, 225), 0.03),
    "asphalt": ((98, 98, 102), 0.10),
    "marking": ((205, 205, 198), 0.06),
    "shade": ((60, 60, 68), 0.08),
    "shadow": ((45, 45, 50), 0.05),
    "pavement": ((158, 150, 142), 0.10),
    "kerb": ((185, 182, 176), 0.05),
    "grass": ((92, 128, 58), 0.22),
    "house0": ((178, 140, 108), 0.08),
    "house1": ((150, 92, 74), 0.12),
    "house2": ((200, 192, 176), 0.06),
    "house3": ((122, 126, 134), 0.08),
    "window": ((62, 78, 98), 0.10),
    "wall": ((168, 156, 140), 0.14),
    "fence": ((112, 92, 70), 0.06),
    "fence_gap": ((70, 84, 62), 0.18),
    "pole": ((88, 90, 92), 0.04),
    "light_box": ((34, 36, 34), 0.04),
    "lamp_off": ((62, 58, 52), 0.02),
    "lamp_red": ((240, 52, 40), 0.0),
    "lamp_amber": ((250, 176, 40), 0.0),
    "lamp_green": ((60, 232, 130), 0.0),
    "sign_red": ((206, 40, 44), 0.03),
    "sign_blue": ((38, 82, 186), 0.03),
    "sign_yellow": ((240, 200, 46), 0.03),
    "sign_green": ((30, 122, 74), 0.03),
    "sign_white": ((236, 236, 232), 0.02),
    "leaf": ((58, 102, 42), 0.30),
    "trunk": ((86, 66, 48), 0.10),
    "bin": ((66, 84, 74), 0.05),
    "skin": ((206, 160, 132), 0.04),
    "helmet": ((220, 220, 224), 0.03),
    "glass": ((48, 58, 70), 0.08),
    "tyre": ((28, 28, 30), 0.04),
    "metal": ((120, 122, 126), 0.05),
    "spokes": ((120, 118, 114), 0.16),
    "bike_frame": ((170, 48, 44), 0.03),
    "moto_paint": ((40, 44, 60), 0.05),
    "lamp_head": ((250, 246, 226), 0.0),
    "lamp_tail": ((196, 34, 30), 0.0),
    "truck_cab": ((188, 60, 44), 0.03),
    "train_stripe": ((232, 226, 210), 0.03),
    "bus_board": ((30, 30, 28), 0.02),
}
for _family, _colours in {
    "car": [
        (182, 30, 34),
        (34, 62, 140),
        (224, 224, 226),
        (38, 40, 44),
        (146, 150, 156),
        (196, 170, 60),
    ],
    "truck": [(206, 202, 192), (70, 112, 160), (190, 150, 80)],
    "bus": [(222, 160, 32), (190, 44, 40), (56, 130, 90)],
    "train": [(66, 120, 70), (170, 40, 54), (60, 74, 132)],
    "cloth": [
        (48, 56, 92),
        (150, 44, 52),
        (216, 208, 194),
        (40, 42, 44),
        (74, 120, 92),
        (200, 148, 62),
    ],
}.items():
    MATERIALS |= {f"{_family}{i}": (colour, 0.03) for i, colour in enumerate(_colours)}

GLOWING = frozenset(m for m in MATERIALS if m.startswith("lamp_") and m != "lamp_off")


@dataclass(frozen=True)
class Style:
    """Appearance of one image. Factors are relative to a clear day; 0 switches an effect off."""

    palette_shift: float = 0.04  # sd of the colour of each material, 0-1
    palette_mix: float = 0.0  # share of a random colour in every material's colour
    part_shift: float = 0.03  # sd of the colour of each single surface
    texture: float = 1.0
    season: str = "summer"  # summer | autumn | bare
    saturation: float = 1.0
    contrast: float = 1.0
    exposure: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0  # extinction per metre
    haze_colour: tuple[int, int, int] = (200, 205, 210)
    overcast: float = 0.0  # 0 blue sky, hard light; 1 white sky, flat light
    night: float = 0.0  # 1: lamps are the only light
    wet: float = 0.0  # mirror strength of the road
    rain: float = 0.0  # streak density
    snow: float = 0.0  # cover on ground, leaves
    dusk: float = 0.0  # warm low sun
    blur: float = 0.35  # sd in pixels
    noise: float = 0.008  # sd of sensor noise, 0-1
    vignette: float = 0.0
    sun: float = 0.3  # contrast between the lit and the unlit side of the street


def _cast(rng: Rng, strength: float) -> tuple[float, float, float]:
    return tuple(1.0 + rng.normal(0, strength, 3))


def gtav(rng: Rng) -> Style:
    """A video game: sunny, saturated, crisp, always much the same."""
    return Style(
        palette_shift=0.035,
        texture=0.7,
        saturation=rng.uniform(1.15, 1.4),
        contrast=rng.uniform(1.05, 1.2),
        exposure=rng.uniform(0.95, 1.1),
        cast=(1.04, 1.0, 0.95),
        haze=rng.uniform(0.0, 0.003),
        overcast=rng.uniform(0.0, 0.25),
        dusk=rng.choice([0.0, 0.0, 0.0, rng.uniform(0.1, 0.4)]),
        blur=rng.uniform(0.2, 0.4),
        noise=0.004,
        sun=rng.uniform(0.25, 0.5),
    )


def cityscapes(rng: Rng) -> Style:
    """One camera in overcast German cities: flat light, low saturation, a green cast, some blur."""
    return Style(
        palette_shift=0.06,
        texture=1.2,
        season=str(rng.choice(["summer", "summer", "autumn", "bare"])),
        saturation=rng.uniform(0.35, 0.65),
        contrast=rng.uniform(0.7, 0.9),
        exposure=rng.uniform(0.8, 1.05),
        cast=(0.93, 1.05, 0.97),
        haze=rng.uniform(0.002, 0.012),
        overcast=rng.uniform(0.6, 1.0),
        blur=rng.uniform(0.5, 0.9),
        noise=rng.uniform(0.012, 0.025),
        vignette=rng.uniform(0.1, 0.3),
        sun=rng.uniform(0.0, 0.15),
    )


def bdd100k(rng: Rng) -> Style:
    """American dash cameras: half by night, some rain, noise, strong exposure changes."""
    base = Style(
        palette_shift=0.07,
        texture=1.1,
        season=str(rng.choice(["summer", "autumn"])),
        saturation=rng.uniform(0.6, 1.0),
        contrast=rng.uniform(0.8, 1.25),
        exposure=rng.uniform(0.7, 1.25),
        cast=_cast(rng, 0.05),
        overcast=rng.uniform(0.0, 0.9),
        blur=rng.uniform(0.4, 0.9),
        noise=rng.uniform(0.015, 0.04),
        vignette=rng.uniform(0.0, 0.35),
        sun=rng.uniform(0.1, 0.4),
    )
    if rng.random() < 0.5:
        base = replace(
            base,
            night=rng.uniform(0.6, 0.95),
            cast=(1.08, 0.98, 0.86),
            noise=rng.uniform(0.03, 0.06),
        )
    if rng.random() < 0.3:
        base = replace(
            base, rain=rng.uniform(0.3, 0.9), wet=rng.uniform(0.3, 0.7), haze=0.012, overcast=0.95
        )
    return base


def mapillary(rng: Rng) -> Style:
    """Any phone, place, season and weather: other palettes, autumn, snow, fog and dusk."""
    base = Style(
        palette_shift=0.12,
        palette_mix=rng.uniform(0.0, 0.35),
        part_shift=0.06,
        texture=rng.uniform(0.8, 2.0),
        season=str(rng.choice(["summer", "autumn", "bare"])),
        saturation=rng.uniform(0.5, 1.3),
        contrast=rng.uniform(0.75, 1.2),
        exposure=rng.uniform(0.75, 1.2),
        cast=_cast(rng, 0.09),
        overcast=rng.uniform(0.0, 1.0),
        blur=rng.uniform(0.3, 0.8),
        noise=rng.uniform(0.005, 0.03),
        sun=rng.uniform(0.0, 0.5),
    )
    weather = rng.choice(["fair", "fog", "snow", "dusk"], p=[0.4, 0.2, 0.2, 0.2])
    if weather == "fog":
        return replace(base, haze=rng.uniform(0.02, 0.05), overcast=1.0)
    if weather == "snow":
        return replace(base, snow=rng.uniform(0.5, 0.9), overcast=0.9, season="bare")
    if weather == "dusk":
        return replace(base, dusk=rng.uniform(0.5, 1.0), exposure=0.75)
    return base


def synthia(rng: Rng) -> Style:
    """An early game engine: flat surfaces in odd colours, bluish light, any season, no sensor."""
    return Style(
        palette_shift=0.08,
        palette_mix=rng.uniform(0.0, 0.15),
        part_shift=0.01,
        texture=0.4,
        season=str(rng.choice(["summer", "autumn", "bare"])),
        saturation=rng.uniform(0.8, 1.1),
        contrast=rng.uniform(0.85, 1.0),
        exposure=rng.uniform(0.85, 1.2),
        cast=(0.96, 0.99, 1.08),
        overcast=rng.uniform(0.2, 0.9),
        dusk=rng.choice([0.0, 0.0, rng.uniform(0.2, 0.6)]),
        blur=rng.uniform(0.1, 0.25),
        noise=0.002,
        sun=rng.uniform(0.1, 0.6),
    )


def urbansyn(rng: Rng) -> Style:
    """A path tracer: rich textures, warm hard light, high contrast, a lens and a little noise."""
    return Style(
        palette_shift=0.05,
        part_shift=0.05,
        texture=1.5,
        season=str(rng.choice(["summer", "summer", "autumn"])),
        saturation=rng.uniform(0.75, 1.05),
        contrast=rng.uniform(1.1, 1.3),
        exposure=rng.uniform(1.0, 1.25),
        cast=(1.06, 1.0, 0.92),
        haze=rng.uniform(0.002, 0.008),
        overcast=rng.uniform(0.1, 0.7),
        blur=rng.uniform(0.35, 0.55),
        noise=rng.uniform(0.006, 0.012),
        vignette=rng.uniform(0.1, 0.3),
        sun=rng.uniform(0.35, 0.6),
    )


def rainy_day(rng: Rng) -> Style:
    """Rain under a white sky: wet road, streaks, mist, a soft picture."""
    return Style(
        palette_shift=0.06,
        season=str(rng.choice(["summer", "autumn", "bare"])),
        saturation=rng.uniform(0.5, 0.85),
        contrast=rng.uniform(0.75, 1.0),
        exposure=rng.uniform(0.7, 0.95),
        cast=(0.95, 1.0, 1.03),
        haze=rng.uniform(0.006, 0.016),
        overcast=rng.uniform(0.85, 1.0),
        rain=rng.uniform(0.4, 1.0),
        wet=rng.uniform(0.4, 0.8),
        blur=rng.uniform(0.6, 1.1),
        noise=rng.uniform(0.012, 0.03),
        sun=0.05,
    )


def snowy_day(rng: Rng) -> Style:
    """The camera of the Cityscapes domain, in a covered street."""
    return replace(cityscapes(rng), snow=rng.uniform(0.5, 0.9), season="bare")


def pretraining(rng: Rng) -> Style:
    """What the backbone has seen: broader than any benchmark domain, centred on none."""
    style = Style(
        palette_shift=rng.uniform(0.03, 0.2),
        palette_mix=rng.choice([0.0, rng.uniform(0.0, 0.9)]),
        part_shift=rng.uniform(0.0, 0.1),
        texture=rng.uniform(0.3, 2.5),
        season=str(rng.choice(["summer", "autumn", "bare"])),
        saturation=rng.uniform(0.1, 1.6),
        contrast=rng.uniform(0.55, 1.4),
        exposure=rng.uniform(0.55, 1.35),
        cast=_cast(rng, 0.12),
        haze=rng.choice([0.0, rng.uniform(0.0, 0.06)]),
        haze_colour=tuple(int(v) for v in rng.integers(120, 235, 3)),
        overcast=rng.uniform(0.0, 1.0),
        dusk=rng.choice([0.0, 0.0, rng.uniform(0.0, 1.0)]),
        blur=rng.uniform(0.1, 1.1),
        noise=rng.uniform(0.0, 0.06),
        vignette=rng.uniform(0.0, 0.4),
        sun=rng.uniform(0.0, 0.6),
    )
    if rng.random() < 0.25:
        style = replace(style, night=rng.uniform(0.3, 0.95))
    if rng.random() < 0.2:
        style = replace(style, rain=rng.uniform(0.0, 1.0), wet=rng.uniform(0.0, 0.8))
    if rng.random() < 0.15:
        style = replace(style, snow=rng.uniform(0.2, 1.0))
    return style
