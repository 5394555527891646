"""Rein: learned tokens refine the features between blocks."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from soma import Method, NotFoldable
from soma.backbone import patch_size, prefix_tokens


class Refinement(nn.Module):
    """What Rein adds to the patch tokens f (..., width) that leave a block.

    With the tokens T = A B of that block, P = softmax(f T^T / sqrt(width)) over the tokens, of
    which the first one is a sink and dropped afterwards, and D = P (W_t T + b_t):
    f + scale (W_f (D + f) + b_f). Both linears and the scale are shared by all blocks.

    Args:
        tokens: starting values A (blocks, count, rank) and B (blocks, rank, width).
        prefix: number of class and register tokens, which stay as they are.
        scale: starting value.
    """

    def __init__(self, tokens: tuple[Tensor, Tensor], *, prefix: int, scale: float) -> None:
        super().__init__()
        a, b = tokens
        width = b.shape[-1]
        self.tokens_a, self.tokens_b = nn.Parameter(a), nn.Parameter(b)
        self.token_linear = nn.Linear(width, width, dtype=b.dtype)
        self.feature_linear = nn.Linear(width, width, dtype=b.dtype)
        self.scale = nn.Parameter(torch.tensor(scale, dtype=b.dtype))
        self.prefix = prefix

    def refine(self, block: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Hook after a block, which knows its index among the adapted ones.

        y and the result are (B, tokens, width), class and register tokens first.
        """
        tokens = self.tokens_a[block.rein_index] @ self.tokens_b[block.rein_index]
        prefix, f = y[:, : self.prefix], y[:, self.prefix :]
        weights = (f @ tokens.T / math.sqrt(f.shape[-1])).softmax(dim=-1)
        # Dropped after the softmax: a feature that needs no change gives its weight to the sink.
        drawn = weights[..., 1:] @ self.token_linear(tokens[1:])
        refined = f + self.scale * self.feature_linear(drawn + f)
        return torch.cat([prefix, refined], dim=1)


@dataclass(frozen=True, kw_only=True)
class Rein(Method):
    """Between blocks, patch tokens attend to learned low-rank tokens; the backbone stays frozen.

    After block i: f + scale (W_f (D + f) + b_f), see `Refinement` for D. The tokens of each block,
    the two linears and the scale, which all blocks share, learn. Tokens and scale do not decay.

    This is the part in the backbone. The link from the tokens to the queries of a mask decoder,
    459,264 of the published 2,990,081 parameters, is left out: a method does not see the head.

    Attributes:
        tokens: number of tokens per block.
        rank: of the tokens of a block.
        scale: starting value of the learned factor on what is added.

    Raises:
        ValueError: fewer than two tokens, of which one is the sink, or a rank below one.
    """

    source: ClassVar[str] = "Rein, arXiv 2312.04265; github.com/w1oves/Rein, commit 7da85bc"
    needs: ClassVar[frozenset[str]] = frozenset({"token_sequence"})
    # Near, though: what is added starts at `scale`.
    exact_start: ClassVar[bool] = False

    tokens: int = 100
    rank: int = 16
    scale: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML gives an integer for 1: equal methods have to compare equal.
        object.__setattr__(self, "scale", float(self.scale))
        if self.tokens < 2 or self.rank < 1:
            raise ValueError(f"tokens {self.tokens}, rank {self.rank}: at least 2, at least 1")

    def attach(self, vit: nn.Module) -> None:
        """Add one module for all blocks, and a hook after each block from `start_block` on."""
        blocks, prefix = vit.blocks[self.first_block(vit) :], prefix_tokens(vit)
        like = next(vit.parameters())
        tokens = self._draw(vit, len(blocks), like.dtype)
        vit.rein = Refinement(tokens, prefix=prefix, scale=self.scale)
        # Drawn on the CPU and moved: a GPU's generator would give another start for the same seed.
        vit.rein.to(like.device).train(vit.training)
        for index, block in enumerate(blocks):
            # Kept on the block, not counted in the hook: a checkpointed block runs its hook twice.
            block.rein_index = index
            # A bound method: a deep copy of the backbone gets hooks on its own tokens.
            block.register_forward_hook(vit.rein.refine)

    def _draw(self, vit: nn.Module, blocks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B from U(-v, v), v = sqrt(6 / (3 P^2 + sqrt(width rank))) for patch size P."""
        height, width = patch_size(vit)
        bound = math.sqrt(6 / (3 * height * width + math.sqrt(vit.embed_dim * self.rank)))
        a = torch.empty(blocks, self.tokens, self.rank, dtype=dtype)
        b = torch.empty(blocks, self.rank, vit.embed_dim, dtype=dtype)
        return a.uniform_(-bound, bound), b.uniform_(-bound, bound)

    def fold(self, vit: nn.Module) -> None:
        """Not possible.

        Raises:
            NotFoldable: always.
        """
        raise NotFoldable(
            "what is added depends on the input through a softmax: no weight holds it"
        )

    def decay(self, name: str) -> str:
        """Only the two linears decay, as published."""
        return "to_zero" if "_linear." in name else "none"
