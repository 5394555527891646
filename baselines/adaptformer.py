"""AdaptFormer: a bottleneck beside the MLP of each block."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from soma import Method, NotApplicable, NotFoldable
from soma.backbone import width

Reads = Literal["stream", "norm2", "own_norm"]


class Bottleneck(nn.Module):
    """What is added to the output of a block: scale * up(dropout(relu(down(x)))).

    x is read at the norm before the MLP. What it gives is added after the block, outside of layer
    scale and stochastic depth.

    Args:
        width: of the tokens.
        size: of the bottleneck.
        scale: factor on the output.
        dropout: probability, between the two linears.
        reads: x is what enters that norm, what leaves it, or the former in a layer norm of its own.
        like: of any shape; the new tensors get its type and device. The draw is made on the CPU.
    """

    def __init__(
        self, width: int, size: int, *, scale: float, dropout: float, reads: Reads, like: Tensor
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if reads == "own_norm" else nn.Identity()
        self.down = nn.Linear(width, size, dtype=like.dtype)  # Kaiming uniform with a = sqrt(5)
        self.up = nn.Linear(size, width, dtype=like.dtype)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.dropout = nn.Dropout(dropout)
        self.scale, self.reads = scale, reads
        self.branch: Tensor | None = None
        # Drawn on the CPU and moved: a GPU's generator would give another start for the same seed.
        self.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.up(self.dropout(functional.relu(self.down(self.norm(x))))) * self.scale

    def read(self, norm: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Hook on the norm before the MLP: keeps the branch (..., width)."""
        self.branch = self(y if self.reads == "norm2" else args[0])

    def add(self, block: nn.Module, args: tuple[Tensor, ...], y: Tensor | None) -> Tensor | None:
        """Hook after the block: y (..., width) plus the branch.

        Called where the block broke off, too (y is None): nothing outlives the pass.
        """
        branch, self.branch = self.branch, None
        return None if y is None else y + branch.reshape(y.shape)


@dataclass(frozen=True, kw_only=True)
class AdaptFormer(Method):
    """Two linears with a ReLU between them, parallel to the MLP; the backbone stays frozen.

    block(x) + scale Up(Dropout(ReLU(Down(h)))) with h as `reads` says. Down (bottleneck, width) and
    Up (width, bottleneck) and their biases learn; Up starts at zero, so that the start is exact.

    Attributes:
        bottleneck: width between the two linears.
        scale: factor on what is added.
        dropout: probability, in the bottleneck.
        reads: "norm2": the tokens as the MLP reads them, normalised, the formula of the paper as we
            know it. "stream": as they leave the attention, like the released code. "own_norm":
            through a layer norm that learns too; known copies have that, and a scale of 1.

    Raises:
        ValueError: a bottleneck below 1, a dropout outside [0, 1), or an unknown `reads`.
    """

    source: ClassVar[str] = (
        "AdaptFormer, arXiv 2205.13535; github.com/ShoufaChen/AdaptFormer, commit 6967d67"
    )

    bottleneck: int = 64
    scale: float = 0.1
    dropout: float = 0.1
    reads: Reads = "norm2"

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML gives an integer for 1: equal methods have to compare equal.
        object.__setattr__(self, "scale", float(self.scale))
        if self.bottleneck < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"bottleneck {self.bottleneck}, dropout {self.dropout}: at least 1, in [0, 1)"
            )
        if self.reads not in ("stream", "norm2", "own_norm"):
            raise ValueError(f"reads {self.reads!r}: expected stream, norm2 or own_norm")

    def attach(self, vit: nn.Module) -> None:
        """Put a bottleneck beside each MLP from `start_block` on.

        Raises:
            NotApplicable: a block has no norm of its own before the MLP.
        """
        blocks = vit.blocks[self.first_block(vit) :]
        for block in blocks:
            order = [name for name, _ in block.named_children() if name in ("norm2", "mlp")]
            if order != ["norm2", "mlp"]:
                raise NotApplicable(f"{type(block).__name__} has no norm2 before its mlp")
        like, wide = next(vit.parameters()), width(vit)
        options = {"scale": self.scale, "dropout": self.dropout, "reads": self.reads}
        for block in blocks:
            beside = Bottleneck(wide, self.bottleneck, **options, like=like)
            block.adaptformer = beside.train(block.training)
            # Bound methods: a deep copy of the backbone gets hooks on its own linears.
            block.norm2.register_forward_hook(block.adaptformer.read)
            # A checkpointed block breaks off in the backward pass once it has what it needs.
            block.register_forward_hook(block.adaptformer.add, always_call=True)

    def fold(self, vit: nn.Module) -> None:
        """Not possible.

        Raises:
            NotFoldable: always.
        """
        raise NotFoldable("a ReLU stands between the two linears: no weight holds what they do")
