"""SoMA: singular value decomposed minor components adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma.initialise import Components, svd_factors
from soma.low_rank import LowRank


@dataclass(frozen=True, kw_only=True)
class SoMA(LowRank):
    """Tune the smallest singular components of each weight, in the last two thirds of the blocks.

    This is the paper's definition. `components` and `start_block` are its two claims, free to vary.

    Attributes:
        components: which singular components become the factors: "minor", "principal", "middle",
            "random" or the index of the first one.
    """

    source: ClassVar[str] = (
        "SoMA, arXiv 2412.04077; github.com/ysj9909/SoMA, commit 7ea8c0e. The factors are those of "
        "the pretrained weight, as the paper says; the code's are not (soma-release)"
    )
    subtract: ClassVar[bool] = True

    components: Components = "minor"
    start_block: int | float = 1 / 3
    train_bias: bool = True
    annealed_decay: bool = True

    @property
    def draws(self) -> bool:
        """Only which components, where they are random."""
        return self.components == "random"

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Singular components of the pretrained weight."""
        return svd_factors(weight, self.rank, self.components, self.scale)
