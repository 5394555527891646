"""Methods with one mistake each that no run would show, by the property that is to catch it.

`Hooked` is right: a vector is added to what leaves each adapted block. The others are it, or a
low-rank method, with a mistake.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from soma import LowRank, Method
from soma.backbone import linear_of, linears, replace_module
from soma.initialise import kaiming_factors
from soma.low_rank import LowRankLinear


class Extra(nn.Module):
    """A learned vector, added to the output of a module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value


@dataclass(frozen=True, kw_only=True)
class Hooked(Method):
    """A vector is added to what leaves each adapted block."""

    source: ClassVar[str] = "test"
    extra: ClassVar[type[Extra]] = Extra

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return list(vit.blocks[self.first_block(vit) :])

    def attach(self, vit: nn.Module) -> None:
        for place in self.places(vit):
            place.extra = self.extra(vit.embed_dim).train(place.training)
            place.register_forward_hook(place.extra.hook)


class InFloat32(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.fixed = [torch.eye(width)]

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + ((y.float() @ self.fixed[0]) * self.value.float()).to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class ComputesInFloat32(Hooked):
    """Right, with a gradient as coarse as float32 is."""

    extra: ClassVar[type[Extra]] = InFloat32


WRONG: dict[type[Method], str] = {}


def wrong(property: str) -> Any:
    """A dataclass, listed with the property that catches it."""

    def listed(kind: type[Method]) -> type[Method]:
        kind = dataclass(frozen=True, kw_only=True)(kind)
        WRONG[kind] = property
        return kind

    return listed


# What learns must be read by the tasks.


class OnPrefix(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return torch.cat([y[:, :1] + self.value, y[:, 1:]], dim=1)


@wrong("gradient in the tasks")
class ClassTokenAlone(Hooked):
    """In the last block the class token has nobody left to tell."""

    extra = OnPrefix


@wrong("gradient in the tasks")
class FinalNormToo(Hooked):
    """A vector after the final norm as well."""

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return [*super().places(vit), vit.norm]


@wrong("gradient in the tasks")
class FinalNormAlone(Method):
    """Tunes a pretrained tensor that no task reads."""

    source: ClassVar[str] = "test"

    def trains(self, name: str) -> bool:
        return name.startswith("norm.")


@wrong("gradient in the tasks")
class KeysAlone(Hooked):
    """All that learns is a shift of the keys, to which the attention is blind."""

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return [m for _, block, role, m in linears(vit) if role == "k"][self.first_block(vit) :]


class WithoutBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


@wrong("gradient in the tasks")
class KeyBiasIgnored(Hooked):
    """Trains biases of the keys that its layer leaves out, which changes no output."""

    def attach(self, vit: nn.Module) -> None:
        super().attach(vit)
        for name, _, role, linear in linears(vit):
            if role == "k":
                other = WithoutBias(linear.in_features, linear.out_features)
                other.weight, other.bias = linear.weight, linear.bias
                replace_module(vit, name, other.train(linear.training))

    def trains(self, name: str) -> bool:
        return name.endswith("attn.qkv.k.bias")


# Folding must hold for every value of the fields, with biases and without.


@dataclass(frozen=True, kw_only=True)
class Scaled(LowRank):
    """LoRA whose rank and alpha are equal, and so large that the check makes both small."""

    source: ClassVar[str] = "test"
    rank: int = 64
    alpha: int = 64

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.rank > min(weight.shape):
            raise ValueError(f"rank {self.rank} is too large")
        return kaiming_factors(weight, self.rank)

    def folded_scale(self) -> float:
        return self.scale

    def fold(self, vit: nn.Module) -> None:
        for module in vit.modules():
            if isinstance(module, LowRankLinear):
                module.scale = self.folded_scale()
        super().fold(vit)


@wrong("fold with other numbers")
class FoldsUnscaled(Scaled):
    """Forgets alpha / rank, which is one."""

    def folded_scale(self) -> float:
        return 1.0


@wrong("fold with other numbers")
class FoldsWithRoot(Scaled):
    """Rank-stabilised where it folds, alpha / root(rank), and equal for alpha = rank = 1 alone."""

    rank: int = 1
    alpha: int = 1

    def folded_scale(self) -> float:
        return self.alpha / math.sqrt(self.rank)


@dataclass(frozen=True, kw_only=True)
class OnLinears(Hooked):
    """A vector after each second linear of the MLPs, folded into its bias."""

    def places(self, vit: nn.Module) -> list[nn.Module]:
        first = self.first_block(vit)
        return [m for _, block, role, m in linears(vit) if role == "fc2" and block >= first]

    def folded_bias(self, linear: nn.Linear) -> Tensor | None:
        raise NotImplementedError

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        for name, _, _, linear in linears(vit):
            if hasattr(linear, "extra"):
                bias = self.folded_bias(linear)
                replace_module(vit, name, linear_of(linear.weight.clone(), bias, like=linear))
        super().fold(vit)


@wrong("fold without biases")
class DropsTheShift(OnLinears):
    """Where there is no bias to hold it, the vector is lost."""

    def folded_bias(self, linear: nn.Linear) -> Tensor | None:
        return None if linear.bias is None else linear.bias + linear.extra.value


@wrong("fold without biases")
class WantsABias(OnLinears):
    """Reads a bias that is not always there."""

    def folded_bias(self, linear: nn.Linear) -> Tensor | None:
        return linear.bias + linear.extra.value


# An image's output is its own.


class Centred(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * (y - y.mean((0, 1)))


@wrong("each image alone")
class CentredInTheBatch(Hooked):
    """The mean is over the images, too."""

    extra = Centred


class FromTheFirst(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * y[:1, :1]


@wrong("each image alone")
class ReadsTheFirstImage(Hooked):
    """f(x)[:1] is right, the other images read the first one's class token."""

    extra = FromTheFirst


class Remembering(Extra):
    before = 0.0

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        mixed = y + self.value * self.before
        self.before = y.detach().mean((0, 1))
        return mixed


@wrong("each image alone")
class ReadsTheBatchBefore(Hooked):
    """Something of the last forward pass is left."""

    extra = Remembering


# What learns begins in the first adapted block.


@wrong("start_block")
class BeginsOneLate(Hooked):
    """`>` where `>=` is meant."""

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return list(vit.blocks[self.first_block(vit) + 1 :])


@wrong("start_block")
class BeginsOneEarly(Hooked):
    """Acts on what enters the first adapted block: it leaves the one before."""

    def attach(self, vit: nn.Module) -> None:
        vit.extra = nn.ModuleList()
        for index in range(max(self.first_block(vit) - 1, 0), len(vit.blocks)):
            vit.extra.append(Extra(vit.embed_dim).train(vit.training))
            vit.blocks[index].register_forward_hook(vit.extra[-1].hook)


@wrong("start_block")
class TunesTheEmbedding(Hooked):
    """A vector on the embedded patches wherever the placement begins."""

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return [*super().places(vit), vit.patch_embed]


# Without dropout, training mode computes what `eval` does.


class Noisy(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * (1 + 0.1 * torch.randn_like(y) if module.training else 1)


@wrong("training mode")
class NoisyInTraining(Hooked):
    """Noise that no field switches off."""

    extra = Noisy


class OverTheBatch(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm1d(width, affine=False, track_running_stats=True)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * self.norm(y.flatten(0, -2)).reshape(y.shape)


@wrong("training mode")
class NormalisesTheBatch(Hooked):
    """Batch statistics in training, running ones afterwards."""

    extra = OverTheBatch


class Shrunk(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * (1 if module.training else 0.9)


@wrong("training mode")
class ShrinksInEval(Hooked):
    """Scales by one minus the dropout rate, which PyTorch has done in training."""

    extra = Shrunk


@wrong("train() and eval()")
class LeavesTrainingModeOn(Hooked):
    """New modules as PyTorch makes them, on a backbone in eval mode."""

    def attach(self, vit: nn.Module) -> None:
        super().attach(vit)
        for place in self.places(vit):
            place.extra.train()


# The seed decides what is drawn, and nothing else.


class Drawn(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.left = nn.Parameter(self.draw(width))

    def draw(self, width: int) -> Tensor:
        raise NotImplementedError

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * self.left


class FromItsOwn(Drawn):
    def draw(self, width: int) -> Tensor:
        return torch.randn(width, generator=torch.Generator().manual_seed(0))


@wrong("another seed")
class DrawsFromItsOwnSeed(Hooked):
    """Three seeds of a run are one."""

    extra = FromItsOwn


class Reseeding(Drawn):
    def draw(self, width: int) -> Tensor:
        torch.manual_seed(42)
        return torch.randn(width)


@wrong("another seed")
class SeedsForAll(Hooked):
    """What is drawn later is the same for all seeds."""

    extra = Reseeding


class Rewinding(Drawn):
    def draw(self, width: int) -> Tensor:
        state = torch.get_rng_state()
        value = torch.randn(width)
        torch.set_rng_state(state)
        return value


@wrong("another seed")
class RewindsTheGenerator(Hooked):
    """What is drawn next are the same numbers again, in the next block already."""

    extra = Rewinding


# Weight decay does what the method says.


class Pulled(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.value.register_hook(lambda gradient: gradient + 0.1 * self.value.detach())


@wrong("weight decay alone")
class DecaysByItself(Hooked):
    """Declares none, and adds one to the gradient."""

    extra = Pulled

    def decay(self, name: str) -> str:
        return "none"


class Twice(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.other = nn.Parameter(self.value.data)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value + self.other


@wrong("weight decay alone")
class OneMemoryTwice(Hooked):
    """Two parameters in one memory, which decays twice."""

    extra = Twice


class Clipped(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if module.training:
            with torch.no_grad():
                self.value.mul_(0.5 / self.value.norm().clamp_min(0.5))
        return y + self.value


@wrong("weight decay alone")
class ClipsItself(Hooked):
    """The forward pass moves the parameter besides."""

    extra = Clipped


# The gradient is that of the output.


class Detached(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.value * torch.tanh(y.detach())


@wrong("slope along the gradient")
class DetachesItsInput(Hooked):
    """Every vector gets a gradient; that of the earlier blocks lacks a part."""

    extra = Detached


class StraightThrough(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        value = 10 * self.value
        return y + value + (torch.tanh(value) - value).detach()


@wrong("slope along the gradient")
class PassesStraightThrough(Hooked):
    """The gradient of the identity for a tanh."""

    extra = StraightThrough


@wrong("slope along the gradient")
class DetachesANormInSilence(LowRank):
    """DoRA without a word about its gradient."""

    source: ClassVar[str] = "test"
    magnitude: ClassVar[bool] = True
    exact_gradient: ClassVar[bool] = True
    rank: int = 4

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return kaiming_factors(weight, self.rank)


# Images of any size.


class PerToken(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.value = nn.Parameter(torch.zeros(17, width))


@wrong("another image size")
class OneVectorPerToken(Hooked):
    """Knows the number of tokens of the training images alone."""

    extra = PerToken


class InSquares(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.conv.bias)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        side = math.isqrt(y.shape[1] - 1)
        patches = y[:, 1 : 1 + side**2].mT.unflatten(2, (side, side))
        added = self.conv(patches).flatten(2).mT + self.value
        return torch.cat([y[:, :1], y[:, 1 : 1 + side**2] + added, y[:, 1 + side**2 :]], dim=1)


@wrong("another image size")
class TakesItForASquare(Hooked):
    """Leaves the patches out that no square holds."""

    extra = InSquares


class AtPlaces(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.value = nn.Parameter(torch.zeros(1, 4, 4, width))

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        size = y.shape[1:3]
        value = functional.interpolate(self.value.permute(0, 3, 1, 2), size=size)
        return y + value.permute(0, 2, 3, 1)


@wrong("another image size")
class FoldsPlaces(Hooked):
    """Nearest neighbours as it learns, the position embedding's bicubic ones when folded."""

    extra = AtPlaces

    def places(self, vit: nn.Module) -> list[nn.Module]:
        return [] if self.first_block(vit) else [vit.patch_embed]

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        if hasattr(vit.patch_embed, "extra"):
            vit.pos_embed[:, 1:] += vit.patch_embed.extra.value.flatten(1, 2)
            del vit.patch_embed.extra
            vit.patch_embed._forward_hooks.clear()
        super().fold(vit)


# 25 steps, and the same after save and resume.


class WarmingUp(Extra):
    steps = 0

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        self.steps += module.training
        return y + self.value * min(1, self.steps / 20)


@wrong("25 steps, resumed")
class CountsItsSteps(Hooked):
    """Warms up by a number that no file holds."""

    extra = WarmingUp


class Averaging(Extra):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.average = torch.zeros(width)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if module.training:
            self.average = 0.9 * self.average + 0.1 * self.value.detach()
        return y + self.value + self.average


@wrong("25 steps, resumed")
class AveragesByItself(Hooked):
    """A moving average in a plain attribute."""

    extra = Averaging


class Steep(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + torch.sinh(1e5 * self.value)


@wrong("25 steps, resumed")
class Explodes(Hooked):
    """Two steps are well, 25 are not finite."""

    extra = Steep


class Ascending(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Reversed(Extra):
    def hook(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + Ascending.apply(self.value)


@wrong("25 steps, resumed")
class ReversesItsGradient(Hooked):
    """Every tensor gets a gradient, of the wrong sign."""

    extra = Reversed
