"""DoRA: weight-decomposed low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import kaiming_factors


@dataclass(frozen=True, kw_only=True)
class DoRA(LowRank):
    """LoRA on the direction of each output row, and a learned length per row.

    The low-rank layer takes the norm per output row; the lengths do not decay.

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
        """A from Kaiming uniform, B zero."""
        return kaiming_factors(weight, self.rank)
