"""What the evaluation of a model on one domain gives, in every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Result on one domain.

    Attributes:
        metrics: name -> percent, or percent per class; None where undefined.
        arrays: name -> array with one entry per image, kept in one .npz beside the record.
        images: number of scored images.
        files: ending of a file's name -> function that writes that file, kept beside the record
            too.
    """

    metrics: dict[str, float | list[float | None] | None]
    arrays: dict[str, np.ndarray]
    images: int
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
