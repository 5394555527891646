"""EDoRA: efficient weight-decomposed low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from soma import LowRank
from soma.initialise import default_linear_weight, orthonormal_factors


@dataclass(frozen=True, kw_only=True)
class EDoRA(LowRank):
    """DoRA with frozen factors: a core R between them and a length per output row learn.

    y = m V x / ||V|| + b with V = W + s B R A, the norm per output row. R (rank, rank) and m (out,)
    learn; A, B and the pretrained weight, which is not reduced, stay. R starts as noise, the only
    thing that keeps the start from being exact. R mixes singular vectors, whose signs another
    library draws otherwise: A and B are saved with the adapter. Few numbers learn: it wants a
    higher rate than LoRA.

    Attributes:
        init: "svd" is the paper's: B = U and A = diag(S) Vh of the leading components, without a
            root. "random" is what the released script runs: Kaiming uniform factors.
        sigma: standard deviation of R at the start; published with 1e-5 and 5e-6.

    Raises:
        ValueError: an unknown `init`, or a negative `sigma`.
    """

    source: ClassVar[str] = (
        "EDoRA, arXiv 2501.12067; github.com/Hamid-Nasiri/EDoRA, commit 40cbbcd, with an exact SVD "
        "in the place of a randomised one"
    )
    # For the noise in R.
    exact_start: ClassVar[bool] = False
    magnitude: ClassVar[bool] = True
    frozen: ClassVar[frozenset[str]] = frozenset({"a", "b"})

    rank: int = 32
    init: Literal["svd", "random"] = "svd"
    sigma: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("svd", "random") or self.sigma < 0:
            raise ValueError(f"init {self.init!r}, sigma {self.sigma}: svd or random, at least 0")

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank): the leading singular components, or random directions.

        The latter are drawn as the release does.
        """
        if self.init == "svd":
            # The root of S is not shared out: with it, R would be weighed otherwise than published.
            return orthonormal_factors(weight, self.rank, "principal")
        rows, columns = weight.shape
        # The release draws the transposed factors: bounds 1/sqrt(rank) for A, 1/sqrt(out) for B.
        a = default_linear_weight(columns, self.rank, like=weight).T
        return a, default_linear_weight(self.rank, rows, like=weight).T

    def core(self, weight: Tensor) -> Tensor:
        """R (rank, rank) from N(0, sigma^2)."""
        if weight.is_meta:
            return weight.new_empty(self.rank, self.rank)
        # On the CPU, like all draws: a GPU's generator gives other numbers for the same seed.
        noise = torch.randn(self.rank, self.rank, dtype=weight.dtype)
        return (self.sigma * noise).to(weight.device)
