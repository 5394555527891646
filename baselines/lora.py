"""LoRA: low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import kaiming_factors


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRank):
    """W + s B A with A drawn and B zero: training starts at the pretrained weight.

    With SoMA's `start_block`, `train_bias` and `annealed_decay` this is SoMA without its SVD.
    """

    source: ClassVar[str] = "LoRA, arXiv 2106.09685; github.com/huggingface/peft, commit 5d602fd"

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A from Kaiming uniform, B zero."""
        return kaiming_factors(weight, self.rank)
