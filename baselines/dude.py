"""DuDe: dual decomposition of weights and singular value low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class DuDe(LowRank):
    """PiSSA's start inside DoRA: principal components as the direction, a learned length per row.

    y = m V x / ||V|| + b with V = W - s B0 A0 + s B A, the norm per output row. A, B and m learn;
    m starts at the lengths of the pretrained rows, ||W||, not at those of the residual weight. The
    paper's settings for vision were not available; rank and alpha are those of PiSSA and DoRA here.
    """

    source: ClassVar[str] = (
        "DuDe, arXiv 2505.14367 (abstract; no code was found); as in github.com/huggingface/peft "
        "5d602fd with the initialisation pissa and use_dora"
    )
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    magnitude: ClassVar[bool] = True

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The leading singular components: A (rank, in) and B (out, rank)."""
        return svd_factors(weight, self.rank, "principal", self.scale)
