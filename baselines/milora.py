"""MiLoRA: minor singular component based low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class MiLoRA(LowRank):
    """Tune the smallest singular components of each weight; the rest of it is frozen.

    y = (W - s B0 A0) x + b + s B A x as in PiSSA, with the `rank` smallest singular values. A and B
    learn, the residual weight and b do not. This is SoMA's start without its choice of blocks,
    biases and weight decay. The published script takes the update out of a half precision weight,
    which loses part of it: minor components are small beside the rounding. Here weights are
    float32.
    """

    source: ClassVar[str] = (
        "MiLoRA, arXiv 2406.09044; github.com/sufenlp/MiLoRA, commit 4740756, mode min"
    )
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The trailing singular components: A (rank, in) and B (out, rank)."""
        return svd_factors(weight, self.rank, "minor", self.scale)
