"""MiLoRA: minor singular component based low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class MiLoRA(LowRank):
    """Tune the smallest singular components of each weight; the rest of it is frozen.

    SoMA's start without its choice of blocks, biases and weight decay. The published script takes
    the update out of a half precision weight, which loses part of it; here weights are float32.
    """

    source: ClassVar[str] = (
        "MiLoRA, arXiv 2406.09044; github.com/sufenlp/MiLoRA, commit 4740756, mode min"
    )
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The trailing singular components."""
        return svd_factors(weight, self.rank, "minor", self.scale)
