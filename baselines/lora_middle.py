"""LoRA on intermediate singular components."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class LoRAMiddle(LowRank):
    """Tune a run of intermediate singular components of each weight; the rest of it is frozen.

    y = (W - s B0 A0) x + b + s B A x as in PiSSA, with `rank` neighbouring singular values. A and B
    learn, the residual weight and b do not. The paper's rule for which run was not available: the
    centred one is our reading, that of the `mid` mode in MiLoRA's script.

    Attributes:
        component_start: index of the first component, or a float in [0, 1]: the share of the way
            from the largest components (0.0, PiSSA) to the smallest (1.0, MiLoRA).

    Raises:
        ValueError: a start below zero, or a share above one.
    """

    source: ClassVar[str] = "Least but not Last, arXiv 2602.03493 (abstract; no code was available)"
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    component_start: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.component_start
        if start < 0 or (isinstance(start, float) and start > 1):
            raise ValueError(f"component_start {start!r}: expected an index or a share in [0, 1]")

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The singular components from `component_start` on: A (rank, in) and B (out, rank)."""
        start = self.component_start
        if isinstance(start, float):
            # Not below zero: of a rank that is too large, `svd_factors` says so in its own words.
            start = int(start * max(0, min(weight.shape) - self.rank))
        return svd_factors(weight, self.rank, start, self.scale)
