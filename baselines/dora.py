"""DoRA: weight-decomposed low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import kaiming_factors


@dataclass(frozen=True, kw_only=True)
class DoRA(LowRank):
    """LoRA on the direction of each output row, and a learned length per row.

    y = m V x / ||V|| + b with V = W + s B A (equation 5 of the paper). A, B and the lengths m
    (out,) learn; W and b do not. m starts at ||W||, so that the start is exact. The norm is that of
    V and not of W, and per output row: the paper writes W transposed, and says column. The bias
    gets no gain, and m does not decay, which would shrink the outputs.

    Attributes:
        detach_norm: no gradient through the norm, as section 4.3 of the paper proposes and the
            released code does by default (its `dora_simple`).
    """

    source: ClassVar[str] = (
        "DoRA, arXiv 2402.09353; github.com/NVlabs/DoRA and huggingface/peft 5d602fd"
    )
    magnitude: ClassVar[bool] = True

    detach_norm: bool = True

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A from Kaiming uniform, B zero: A (rank, in) and B (out, rank)."""
        return kaiming_factors(weight, self.rank)
