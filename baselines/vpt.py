"""VPT: visual prompt tuning, shallow and deep."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from soma import Method, NotApplicable, NotFoldable
from soma.backbone import patch_size, prefix_tokens

_CARRIED = "vpt_prompts"

# Attributes of timm's attentions that add one number per pair of the tokens they were built for.
_FIXED_BIASES = ("relative_position_bias_table", "rel_pos", "shared_rel_pos")


class Prompts(nn.Module):
    """Prompt tokens of one block, put in before it and taken out after it.

    The block sees [prefix, prompts, patches]; what leaves it is [prefix, patches], the layout that
    every consumer of features expects. A block without `tokens` of its own goes on with the prompts
    that left the block before: they travel on the token tensor, not in this module, so that several
    forward passes, checkpointed ones too, never see each other's.

    Args:
        tokens: (tokens, width), or None to go on with those of the block before.
        count: number of prompts.
        prefix: number of class and register tokens.
        dropout: probability, on the prompts as they are put in.
        carry: hand the prompts on to the next block.
    """

    def __init__(
        self, tokens: Tensor | None, *, count: int, prefix: int, dropout: float, carry: bool
    ) -> None:
        super().__init__()
        self.tokens = None if tokens is None else nn.Parameter(tokens)
        self.dropout = nn.Dropout(dropout)
        self.count, self.prefix, self.carry = count, prefix, carry

    def insert(self, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hook before the block: (B, tokens, width) with the prompts after the prefix.

        Raises:
            RuntimeError: the block goes on with prompts, and none came with the tokens.
        """
        x, *rest = args
        if self.tokens is None:
            prompts = getattr(x, _CARRIED, None)
            if prompts is None:
                raise RuntimeError(
                    "the prompts of the block before are lost: shallow VPT needs the output of a "
                    "block to reach the next as it is (checkpointing with use_reentrant=False)"
                )
        else:
            prompts = self.dropout(self.tokens.to(x.dtype).expand(len(x), -1, -1))
        return torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix :]], dim=1), *rest

    def remove(self, block: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Hook after the block: (B, tokens, width) with the prompts taken out."""
        end = self.prefix + self.count
        standard = torch.cat([y[:, : self.prefix], y[:, end:]], dim=1)
        if self.carry:
            setattr(standard, _CARRIED, y[:, self.prefix : end])
        return standard


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Learned tokens beside the patches; the backbone itself stays frozen.

    Block i reads [prefix, T_i, patches]: T_i (prompts, width) learns, drawn from U(-v, v) with
    v = sqrt(6 / (3 P^2 + width)) for patch size P. Prompts have no positions and stand from block
    `start_block` on. With register tokens or rotary positions they count as further prefix tokens.
    They cost compute at test time too. The released code searches SGD rates from 0.05 to 50, so the
    one rate of a recipe for all methods can be far too low for them.

    Attributes:
        prompts: number of tokens. 150 deep ones on ViT-L are the 3.69 M of published tables.
        deep: new tokens in each block instead of one set that passes through all of them.
        dropout: probability, on the prompts wherever new ones are put in.

    Raises:
        ValueError: no prompts, or a dropout outside [0, 1).
    """

    source: ClassVar[str] = "VPT, arXiv 2203.12119; github.com/KMnP/vpt, commit 4410440"
    needs: ClassVar[frozenset[str]] = frozenset({"token_sequence"})
    # Random tokens take part in the attention from the start.
    exact_start: ClassVar[bool] = False

    prompts: int = 50
    deep: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts < 1 or not 0 <= self.dropout < 1:
            numbers = f"prompts {self.prompts}, dropout {self.dropout}"
            raise ValueError(f"{numbers}: at least 1, in [0, 1)")

    def attach(self, vit: nn.Module) -> None:
        """Register tokens and hooks on the blocks from `start_block` on.

        Raises:
            NotApplicable: blocks count on the tokens that the backbone was built for (BEiT, XCiT).
        """
        start, prefix = self.first_block(vit), prefix_tokens(vit)
        for name, module in vit.named_modules():
            if any(getattr(module, part, None) is not None for part in _FIXED_BIASES):
                raise NotApplicable(
                    f"{name} has a position bias for each pair of tokens, and none for prompts"
                )
            if hasattr(module, "local_mp"):
                raise NotApplicable(f"{name} convolves its tokens as an image, without prompts")
        for block in vit.blocks[start:]:
            first, last = block is vit.blocks[start], block is vit.blocks[-1]
            prompts = Prompts(
                self._draw(vit) if first or self.deep else None,
                count=self.prompts,
                prefix=prefix,
                dropout=self.dropout,
                carry=not (self.deep or last),
            )
            block.prompts = prompts.train(block.training)
            # Bound methods: a deep copy of the backbone gets hooks on its own tokens.
            block.register_forward_pre_hook(block.prompts.insert)
            block.register_forward_hook(block.prompts.remove)
            if hasattr(block.attn, "num_prefix_tokens"):
                # Tokens that rotary positions skip: prompts have no place in the image.
                block.attn.num_prefix_tokens += self.prompts

    def _draw(self, vit: nn.Module) -> Tensor:
        """Tokens (prompts, width) from U(-v, v), v = sqrt(6 / (3 P^2 + width)) for patch size P."""
        height, width = patch_size(vit)
        bound = math.sqrt(6 / (3 * height * width + vit.embed_dim))
        weight = next(vit.parameters())
        tokens = torch.empty(self.prompts, vit.embed_dim, dtype=weight.dtype)
        return tokens.uniform_(-bound, bound).to(weight.device)

    def fold(self, vit: nn.Module) -> None:
        """Not possible.

        Raises:
            NotFoldable: always.
        """
        raise NotFoldable("prompts are tokens: no weight holds what they do")


@dataclass(frozen=True, kw_only=True)
class VPTShallow(VPT):
    """VPT with one set of tokens, which passes through all blocks from `start_block` on."""

    deep: bool = False
