"""RecycleLoRA: low-rank adaptation from a rank-revealing QR."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from soma import LowRank
from soma.initialise import pivoted_qr_factors


@dataclass(frozen=True, kw_only=True)
class RecycleLoRA(LowRank):
    """Two pairs of factors from a column-pivoted QR: a main one of minor directions, a sub one.

    y = (W - s B0 A0) x + b + s B A x with W P = Q R. B0 holds the last columns of Q (main) and its
    first ones (sub), A0 picks their pivot columns: B0 A0 is no component of W. Both pairs lie in
    one `lora_a` and `lora_b`, main first, and learn; the residual weight and b do not. s = 1 / 36
    makes for small steps: its learning rate is not comparable with SoMA's. Published on a fused
    qkv; here q, k and v are split as for every method. The release trains the mask token too, which
    no image passes.

    Attributes:
        rank: of both pairs together; published 32 + 4, or 32 + 2 between real domains.
        sub_rank: the sub pair's part of it.
        sub_rate: learning rate of the sub pair relative to the main one. The sub pair's factors are
            stored 1 / sub_rate times as large and a frozen core scales their product back: without
            weight decay Adam then moves them as it would at that rate (not so SGD).
        skip: which linears a `start_block` leaves out. "blocks" is what the paper means. "released"
            counts linears per parent module against 4 x `start_block`, as the code does: no parent
            has that many, so that any start but 0 adapts nothing.

    Raises:
        ValueError: more sub directions than directions, a rate of zero, or an unknown `skip`.
    """

    source: ClassVar[str] = (
        "RecycleLoRA, arXiv 2603.28142; github.com/chanseul01/RecycleLoRA, commit d094a7b"
    )
    subtract: ClassVar[bool] = True
    frozen: ClassVar[frozenset[str]] = frozenset({"core"})
    draws: ClassVar[bool] = False

    rank: int = 36
    alpha: float = 1.0
    adapter_decay: Literal["to_zero", "none", "to_init"] = "none"
    annealed_decay: bool = True
    sub_rank: int = 4
    sub_rate: float = 0.5
    skip: Literal["blocks", "released"] = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sub_rank <= self.rank or self.sub_rate <= 0:
            raise ValueError(
                f"sub_rank {self.sub_rank}, sub_rate {self.sub_rate}: in [0, rank], above 0"
            )
        if self.skip not in ("blocks", "released"):
            raise ValueError(f"skip {self.skip!r}: expected blocks or released")

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rows A (rank, in) that pick pivots, and their columns B (out, rank) of Q, the last first.

        Raises:
            ValueError: the rank is too large for the weight.
        """
        count = min(weight.shape)
        if self.rank > count:
            raise ValueError(f"rank {self.rank}: the weight has {count} directions")
        main = range(count - (self.rank - self.sub_rank), count)
        a, b = pivoted_qr_factors(weight, [*main, *range(self.sub_rank)])
        gain = self._rates(weight).reciprocal()
        # A step of Adam has one length whatever the gradient: a larger factor moves by a smaller
        # share of itself.
        return gain[:, None] * a, b * gain

    def core(self, weight: Tensor) -> Tensor:
        """Diagonal (rank, rank): takes back what the sub pair's factors are stored larger."""
        return self._rates(weight).square().diag()

    def _rates(self, weight: Tensor) -> Tensor:
        """Relative learning rate of each direction, (rank,)."""
        rates = torch.ones(self.rank, dtype=weight.dtype, device=weight.device)
        # The sub pair stands last in `factors`.
        rates[self.rank - self.sub_rank :] = self.sub_rate
        return rates

    def _attach(self, vit: nn.Module, *, empty: bool) -> None:
        if self.skip == "blocks" or self.first_block(vit) == 0:
            super()._attach(vit, empty=empty)
