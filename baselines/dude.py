"""DuDe: dual decomposition of weights and singular value low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class DuDe(LowRank):
    """PiSSA's start inside DoRA: principal components as the direction, a learned length per row.

    The lengths are those of the pretrained rows. The paper's settings for vision were not
    available; rank and alpha are those of PiSSA and DoRA here.
    """

    source: ClassVar[str] = (
        "DuDe, arXiv 2505.14367 (abstract; no code was found); as in github.com/huggingface/peft "
        "5d602fd with the initialisation pissa and use_dora"
    )
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    magnitude: ClassVar[bool] = True

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The leading singular components."""
        return svd_factors(weight, self.rank, "principal", self.scale)
