"""LoRA: low-rank adaptation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from soma import LowRank
from soma.initialise import kaiming_factors


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRank):
    """W + s B A with A drawn and B zero: training starts at the pretrained weight.

    y = W x + b + s B A x with s = alpha / rank (equation 3 of the paper). A and B learn; W does
    not, nor b unless `train_bias` is set. Decay pulls B A to zero, so towards the pretrained
    weight. There is no dropout on x: zero is its default in both codes.

    With SoMA's `start_block`, `train_bias` and `annealed_decay` this is SoMA without its SVD.
    """

    source: ClassVar[str] = "LoRA, arXiv 2106.09685; github.com/huggingface/peft, commit 5d602fd"

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A from Kaiming uniform, B zero: A (rank, in) and B (out, rank)."""
        return kaiming_factors(weight, self.rank)
