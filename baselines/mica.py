"""MiCA: minor component adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import orthonormal_factors


@dataclass(frozen=True, kw_only=True)
class MiCA(LowRank):
    """B is frozen at the left singular vectors of the smallest singular values, A learns from zero.

    y = W x + b + s U_r A x with the last `rank` columns U_r of W = U S V^T. A alone learns: half of
    LoRA's numbers on a square weight. Nothing is subtracted: the start is exact, and decay pulls
    towards the pretrained weight. Beside SoMA it shows what the minor subspace does alone.
    """

    source: ClassVar[str] = "MiCA, arXiv 2604.01694; github.com/huggingface/peft, commit 5d602fd"
    frozen: ClassVar[frozenset[str]] = frozenset({"b"})
    draws: ClassVar[bool] = False

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A (rank, in) zero, B (out, rank) the trailing columns of U."""
        # Not `svd_factors`: its B holds the root of S, next to nothing for minor components.
        _, b = orthonormal_factors(weight, self.rank, "minor")
        return weight.new_zeros(self.rank, weight.shape[1]), b
