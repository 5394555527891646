"""Methods with one mistake each, of the kinds that have been seen, for tests of the checks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from soma import LowRank, Method, NotApplicable
from soma.backbone import linears, replace_module
from soma.initialise import default_linear_weight, kaiming_factors
from soma.low_rank import LowRankLinear


@dataclass(frozen=True, kw_only=True)
class TrainsFrozen(Method):
    """Its new parameter is a pretrained weight under a second name."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        vit.gain = vit.blocks[-1].norm1.weight


@dataclass(frozen=True, kw_only=True)
class NotIdentity(LowRank):
    """Both factors drawn, though the start is said to be exact."""

    source: ClassVar[str] = "test"
    rank: int = 4

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        a, _ = kaiming_factors(weight, self.rank)
        return a, default_linear_weight(weight.shape[0], self.rank, like=weight)


@dataclass(frozen=True, kw_only=True)
class DeadPair(LowRank):
    """Both factors zero."""

    source: ClassVar[str] = "test"
    rank: int = 4

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.new_zeros(self.rank, weight.shape[1]), weight.new_zeros(
            len(weight), self.rank
        )


class Shift(nn.Module):
    """A learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))


@dataclass(frozen=True, kw_only=True)
class LeaksThroughCopy(Method):
    """The hook is a closure: in a copy it still reads the original's vector."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        for block in vit.blocks[self.first_block(vit) :]:
            block.shift = shift = Shift(vit.embed_dim).train(block.training)
            block.register_forward_hook(lambda _module, _args, y, shift=shift: y + shift.value)


@dataclass(frozen=True, kw_only=True)
class WrongFold(LowRank):
    """Folds without the scale alpha / rank."""

    source: ClassVar[str] = "test"
    rank: int = 4

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return kaiming_factors(weight, self.rank)

    def fold(self, vit: nn.Module) -> None:
        for module in vit.modules():
            if isinstance(module, LowRankLinear):
                module.scale = 1.0
        super().fold(vit)


class Wrapped(nn.Module):
    """A linear inside another module, with a learned gain."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.gain = base.requires_grad_(False), nn.Parameter(torch.ones(()))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.gain


@dataclass(frozen=True, kw_only=True)
class RenamesKeys(Method):
    """Wraps each `proj`, so that its weight gets the name of another module."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        for name, block, role, linear in linears(vit):
            if role == "proj" and block >= self.first_block(vit):
                replace_module(vit, name, Wrapped(linear))


@dataclass(frozen=True, kw_only=True)
class HiddenTensor(LeaksThroughCopy):
    """What learns is in a plain list, where no optimiser and no file finds it."""

    def attach(self, vit: nn.Module) -> None:
        hidden = [Shift(vit.embed_dim).value]
        vit.blocks[-1].register_forward_hook(lambda _module, _args, y: y + hidden[0])


@dataclass(frozen=True, kw_only=True)
class HalfRefuses(Method):
    """Refuses after it has begun."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        vit.blocks[0].shift = Shift(vit.embed_dim)
        raise NotApplicable("it has no gate")


@dataclass(frozen=True, kw_only=True)
class Wide(LowRank):
    """Correct, and too large for a small backbone."""

    source: ClassVar[str] = "test"
    rank: int = 64

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.rank > min(weight.shape):
            raise ValueError(f"rank {self.rank} is too large")
        return kaiming_factors(weight, self.rank)


@dataclass(frozen=True, kw_only=True)
class Raises(Method):
    """Cannot run a forward pass."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        vit.blocks[0].register_forward_hook(_refuse)


def _refuse(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
    raise RuntimeError("no such\nshape")
