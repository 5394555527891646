"""Full fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from soma import Method


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Every parameter learns; with a `start_block` those blocks and what comes after them.

    The configuration of the official full fine-tuning row leaves norms, layer scales and embeddings
    out, but names a model that is not in the repository, so it cannot be followed to the letter.
    Its backbone learns at a hundredth of the head's rate, and its place among methods hinges on it.
    """

    source: ClassVar[str] = "standard practice; configs/fft_vfms of github.com/ysj9909/SoMA 7ea8c0e"

    def trains(self, name: str) -> bool:
        """All; the mask token only along with the embeddings."""
        return name != "mask_token" or self.start_block == 0
