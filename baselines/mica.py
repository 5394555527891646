"""MiCA: minor component adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import orthonormal_factors


@dataclass(frozen=True, kw_only=True)
class MiCA(LowRank):
    """B is frozen at the left singular vectors of the smallest singular values, A learns from zero.

    Nothing is subtracted: the start is exact, and decay pulls towards the pretrained weight. Beside
    SoMA it shows what the minor subspace does alone.
    """

    source: ClassVar[str] = "MiCA, arXiv 2604.01694; github.com/huggingface/peft, commit 5d602fd"
    frozen: ClassVar[frozenset[str]] = frozenset({"b"})
    draws: ClassVar[bool] = False

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A zero, B the trailing columns of U."""
        _, b = orthonormal_factors(weight, self.rank, "minor")
        return weight.new_zeros(self.rank, weight.shape[1]), b
