"""SoMA as its public code runs it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import SoMA
from soma.initialise import default_linear_weight, svd_factors
from soma.method import added_field


@dataclass(frozen=True, kw_only=True)
class SoMARelease(SoMA):
    """Factors from the minor components of a random layer, the pretrained weight kept whole.

    The public code decomposes the backbone when it is constructed; the checkpoint is loaded later
    and overwrites the residual weight with the pretrained one, while the factors stay. So the start
    is not exact: B A of the random layer is added to each weight. The random layers are drawn here
    as PyTorch draws a linear. The code also trains `mask_token`, which no image passes through.
    """

    source: ClassVar[str] = (
        "github.com/ysj9909/SoMA, commit 7ea8c0e, as it behaves under mmengine 0.10"
    )
    draws: ClassVar[bool] = True

    subtract: bool = added_field(False)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Components of a random weight of the same shape: A (rank, in) and B (out, rank)."""
        return svd_factors(
            default_linear_weight(*weight.shape, like=weight),
            self.rank,
            self.components,
            self.scale,
        )

    def trains(self, name: str) -> bool:
        """The biases of the target linears, and the mask token."""
        return super().trains(name) or name == "mask_token"
