"""BitFit: only the biases learn."""

from dataclasses import dataclass
from typing import ClassVar

from soma import Method


@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Every bias learns: of linears, norms, the final norm and the patch embedding.

    With a `start_block` those of the embeddings and of earlier blocks do not. Leaf names count, so
    that a table of relative position biases is none. The bias of k counts, though softmax takes its
    gradient away unless positions are rotary: Adam moves it by rounding. Published with a learning
    rate of 1e-3.
    """

    source: ClassVar[str] = (
        "BitFit, arXiv 2106.10199; github.com/benzakenelad/BitFit, commit 7ead19a"
    )

    def trains(self, name: str) -> bool:
        """The biases; the first EVA models keep those of q and v under names of their own."""
        return name.rpartition(".")[2] in ("bias", "q_bias", "v_bias")

    def decay(self, name: str) -> str:
        """Published without weight decay."""
        return "none"
