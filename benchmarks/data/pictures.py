"""What the pictures of both tasks share: colours, lines of text, and which images are shown."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# The usual Cityscapes colours, RGB, for pictures of labels and for palette PNGs.
PALETTE = np.array(
    [
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
        *((0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    ],
    dtype=np.uint8,
)

BACKGROUND, INK = 30, (235, 235, 235)
GAP, LINE = 6, 18  # pixels between pictures, height of a line of text
FONT, TEXT = cv2.FONT_HERSHEY_SIMPLEX, 0.4

Colour = tuple[int, int, int]


def header(words: Sequence[tuple[str, Colour]], width: int, swatch: bool = False) -> np.ndarray:
    """Words in their colours, on as many lines as it takes: RGB uint8 (H, width, 3).

    With `swatch` a square has the colour, and the word that of all text: dark colours too are read.
    """
    lines, line, place = [], np.full((LINE, width, 3), BACKGROUND, dtype=np.uint8), 4
    for text, colour in words:
        wide = cv2.getTextSize(text, FONT, TEXT, 1)[0][0] + 16 + 12 * swatch
        if place > 4 and place + wide > width:
            lines, line, place = [*lines, line], np.full_like(line, BACKGROUND), 4
        if swatch:
            cv2.rectangle(line, (place, 4), (place + 8, LINE - 5), colour, -1)
        write_text(line, text, place + 12 * swatch, INK if swatch else colour)
        place += wide
    return np.vstack([*lines, line])


def label_line(text: str, width: int) -> np.ndarray:
    """A line of text: RGB uint8 (LINE, width, 3)."""
    strip = np.full((LINE, width, 3), BACKGROUND, dtype=np.uint8)
    write_text(strip, text, 4)
    return strip


def write_text(strip: np.ndarray, text: str, left: int, colour: Colour = INK) -> None:
    """Draw text into a strip of the height of a line, RGB uint8 (LINE, width, 3)."""
    cv2.putText(strip, text, (left, LINE - 5), FONT, TEXT, colour, 1, cv2.LINE_AA)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Places of at most `wanted` images in a list of `count`, the first and the last among them."""
    places = np.linspace(0, count - 1, min(wanted, count)).round().astype(int)
    return places.tolist()
