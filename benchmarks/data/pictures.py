"""What the pictures of both tasks share: colours of classes, and which images are shown."""

from __future__ import annotations

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


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Places of at most `wanted` images in a list of `count`, the first and the last among them."""
    places = np.linspace(0, count - 1, min(wanted, count)).round().astype(int)
    return places.tolist()
