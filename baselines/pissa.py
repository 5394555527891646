"""PiSSA: principal singular values and vectors adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import svd_factors


@dataclass(frozen=True, kw_only=True)
class PiSSA(LowRank):
    """Tune the largest singular components of each weight; the rest of it is frozen.

    y = (W - s B0 A0) x + b + s B A x, where s B0 A0 is the sum of s_i u_i v_i^T over the `rank`
    largest singular values and each factor takes the root of s_i. A and B learn, the residual
    weight and b do not. Decay pulls away from the pretrained weight: it shrinks what matters most
    in it. Gradients grow with the root of those singular values: it wants a lower learning rate
    than LoRA.
    """

    source: ClassVar[str] = "PiSSA, arXiv 2404.02948; github.com/huggingface/peft, commit 5d602fd"
    subtract: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The leading singular components: A (rank, in) and B (out, rank)."""
        return svd_factors(weight, self.rank, "principal", self.scale)
