"""SoMA: singular value decomposed minor components adaptation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from soma.initialise import Components, kaiming_factors, svd_factors
from soma.low_rank import LowRank
from soma.method import added_field


@dataclass(frozen=True, kw_only=True)
class SoMA(LowRank):
    """Tune the smallest singular components of each weight, in the last two thirds of the blocks.

    y = (W - s B0 A0) x + b + s B A x, where s B0 A0 is the sum of s_i u_i v_i^T over the `rank`
    smallest singular values of W and each factor takes the root of s_i. A, B and the biases of the
    adapted linears learn; the residual weight, norms, layer scales, embeddings and the blocks
    before `start_block` do not. Decay pulls away from the pretrained weight; the method's own
    recipe anneals it.

    This is the paper's definition. `components` and `start_block` are its two claims, free to vary.

    Attributes:
        components: which singular components become the factors: "minor", "principal", "middle",
            "random" or the index of the first one. "zero" is LoRA's start: none of them, B is zero.
        subtract: the starting update is taken out of the frozen weight, so that the start is exact.
            False adds it to a whole weight.
    """

    source: ClassVar[str] = (
        "SoMA, arXiv 2412.04077; github.com/ysj9909/SoMA, commit 7ea8c0e. The factors are those of "
        "the pretrained weight, as the paper says; the code's are not (soma-release)"
    )

    components: Components | Literal["zero"] = "minor"
    start_block: int | float = 1 / 3
    train_bias: bool = True
    annealed_decay: bool = True
    subtract: bool = added_field(True)

    @property
    def draws(self) -> bool:
        """Only which components, where they are random, or directions where there are none."""
        return self.components in ("random", "zero")

    @property
    def exact_start(self) -> bool:
        """Not where the start is added to a whole weight."""
        return self.subtract or self.components == "zero"

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Singular components of the pretrained weight: A (rank, in) and B (out, rank)."""
        if self.components == "zero":
            return kaiming_factors(weight, self.rank)
        return svd_factors(weight, self.rank, self.components, self.scale)
