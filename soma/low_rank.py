"""The low-rank layer that LoRA, SoMA and their relatives share, and the method they derive from."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from soma.backbone import copied, linear_of, parameter_role, replace_module
from soma.method import Targeted
from soma.threads import side_by_side
from soma.update import Part, remember_input, updated

# Rows shorter than this count as this long: an all-zero row would divide zero by zero.
NORM_FLOOR = torch.finfo(torch.float32).eps


class LowRankLinear(nn.Linear):
    """A frozen linear plus a low-rank update: y = W x + b + s B A x, or s B R A x with a core R.

    Keeps the keys `weight` (out, in) and `bias` (out,) of the linear it replaces and adds `lora_a`
    (rank, in), `lora_b` (out, rank) and, where there is one, `lora_core` (rank, rank). Those that
    are `frozen` are buffers: saved with the adapter, so that a reload needs no second SVD or draw.

    With `subtract` the weight becomes the residual W - s B0 A0 of the starting values, which are
    kept as buffers `lora_a0`, `lora_b0` (a core folded into B0): loading rebuilds it from them.

    With `magnitude` (DoRA) the update is one of direction: y = g (W + s B A) x + b, with the gain
    g = lora_magnitude / ||W + s B A|| per output row. The bias has no gain, and the norm takes no
    gradient (arXiv 2402.09353, section 4.3) unless `detach_norm` is false.

    Args:
        linear: the linear to replace; its weight and bias are taken over, not copied.
        a: starting value of A.
        b: starting value of B.
        scale: s = alpha / rank.
        subtract: start from the residual weight.
        magnitude: learn a length per output row.
        detach_norm: no gradient through the norm.
        core: starting value of R.
        frozen: which of "a", "b", "core" do not learn.

    Raises:
        ValueError: the weight is in half precision, in which residual and update get lost.
    """

    def __init__(  # noqa: PLR0913 - the switches in which the published methods differ
        self,
        linear: nn.Linear,
        a: Tensor,
        b: Tensor,
        *,
        scale: float,
        subtract: bool = False,
        magnitude: bool = False,
        detach_norm: bool = True,
        core: Tensor | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        if linear.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"weights in {linear.weight.dtype}: keep them in float32 and compute under autocast"
            )
        bias = linear.bias is not None
        # The meta device: no memory and no random draw for tensors that are replaced at once.
        super().__init__(linear.in_features, linear.out_features, bias=bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self.scale, self.detach_norm = scale, detach_norm
        for name, value in (("a", a), ("b", b), ("core", core)):
            if value is None or name in frozen:
                self.register_buffer(f"lora_{name}", None if value is None else copied(value))
            else:
                self.register_parameter(f"lora_{name}", nn.Parameter(copied(value)))
        # None is registered too: every layer then has the attribute, and no file the tensor.
        self.register_buffer("lora_a0", copied(a) if subtract else None)
        self.register_buffer("lora_b0", copied(self.left().detach()) if subtract else None)
        self.register_parameter("lora_magnitude", None)
        self.subtract_start()
        if magnitude:
            # After the subtraction: the norm adds the update again, and the rows are those of W.
            self.lora_magnitude = nn.Parameter(self._row_norms().detach())

    @torch.no_grad()
    def subtract_start(self) -> None:
        """Turn the pretrained weight into the residual; without starting values it stays whole."""
        if self.lora_a0 is not None:
            # A new tensor: in place, the linear that was replaced would lose its pretrained weight.
            residual = self.weight - self.scale * (self.lora_b0 @ self.lora_a0)
            self.weight = nn.Parameter(residual, requires_grad=self.weight.requires_grad)

    def left(self) -> Tensor:
        """What multiplies A from the left in the update: B, or B R with a core; (out, rank)."""
        return self.lora_b if self.lora_core is None else self.lora_b @ self.lora_core

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not self.is_quick:
            return self._composed(x)
        return updated(x, [self._part()], self.scale)

    @staticmethod
    def joined(layers: "Sequence[LowRankLinear]", x: Tensor) -> Tensor:
        """The outputs of layers that read the same input, side by side: (..., in) -> (..., out)."""
        scale, kind = layers[0].scale, layers[0].lora_magnitude is None
        if not all(
            layer.is_quick and layer.scale == scale and (layer.lora_magnitude is None) == kind
            for layer in layers
        ):
            return torch.cat([layer(x) for layer in layers], dim=-1)
        return updated(x, [layer._part() for layer in layers], scale)

    @property
    def is_quick(self) -> bool:
        """Whether one hand-written pass computes it; a compiler makes its own from the formula."""
        through_norm = self.lora_magnitude is not None and not self.detach_norm
        return not (through_norm or torch.compiler.is_compiling())

    def _part(self) -> Part:
        dense = norm = None
        if self.lora_magnitude is not None:
            dense, norm = self._direction()
        return Part(
            self.weight, self.bias, self.lora_a, self.left(), self.lora_magnitude, norm, dense
        )

    def _composed(self, x: Tensor) -> Tensor:
        """The formula, operation by operation."""
        # Scaled at the width of the rank, the smallest tensor on the way.
        update = functional.linear(x, self.lora_a) * self.scale
        update = update if self.lora_core is None else functional.linear(update, self.lora_core)
        update = functional.linear(update, self.lora_b)
        if self.lora_magnitude is None:
            return super().forward(x) + update
        y = (functional.linear(x, self.weight) + update) * (self.lora_magnitude / self._row_norms())
        y = y if self.bias is None else y + self.bias
        # Under autocast the gain is float32, the layers are not.
        return y.to(update.dtype)

    def _row_norms(self) -> Tensor:
        """||W + s B A|| per output row, (out,), not below the floor."""
        return self._direction()[1]

    def _direction(self) -> tuple[Tensor, Tensor]:
        """W + s B A, (out, in), and the length of each row, (out,), not below the floor."""
        device = self.weight.device.type
        has_autocast = torch.amp.is_autocast_available(device)  # the meta device has none
        # Half precision rounds a small update away next to W, and the norm with it.
        in_full = torch.autocast(device, enabled=False) if has_autocast else nullcontext()
        with torch.no_grad() if self.detach_norm else nullcontext(), in_full:
            direction = torch.addmm(self.weight, self.left(), self.lora_a, alpha=self.scale)
            return direction, direction.norm(dim=1).clamp_min(NORM_FLOOR)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain linear with the same output."""
        weight = torch.addmm(self.weight, self.left(), self.lora_a, alpha=self.scale)
        if self.lora_magnitude is not None:
            weight = weight * (self.lora_magnitude / self._row_norms())[:, None]
        bias = None if self.bias is None else self.bias.detach()
        return linear_of(weight, bias, like=self)

    def extra_repr(self) -> str:
        """For `print(vit)`."""
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"


@dataclass(frozen=True, kw_only=True)
class LowRank(Targeted):
    """Low-rank updates of chosen linears: `LowRankLinear` with starting values per method.

    A method of this family overrides `factors`, and the switches where they differ.

    Attributes:
        subtract: the starting update is taken out of the frozen weight.
        magnitude: a length per output row learns too (DoRA), with `detach_norm` as in the layer.
        frozen: which of "a", "b", "core" do not learn. A method with a core overrides `core`.
        draws: `factors` or `core` draw random numbers; else layers are made side by side.
        rank: r, directions per linear.
        alpha: the update is scaled by alpha / rank.
        train_bias: the biases of the adapted linears learn too.
        adapter_decay: where weight decay pulls the factors. "to_zero" is the published practice;
            for factors that were subtracted it pulls away from the pretrained weight.
        annealed_decay: read by recipes that leave the schedule of weight decay to the method.

    Raises:
        ValueError: a rank or alpha that is not positive, or an unknown `adapter_decay`.
    """

    subtract: ClassVar[bool] = False
    magnitude: ClassVar[bool] = False
    detach_norm: ClassVar[bool] = True
    frozen: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = True

    rank: int = 16
    alpha: float = 16.0
    train_bias: bool = False
    adapter_decay: Literal["to_zero", "none", "to_init"] = "to_zero"
    annealed_decay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML gives an integer for 16: equal methods have to compare equal.
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank {self.rank}, alpha {self.alpha}: both must be positive")
        if self.adapter_decay not in ("to_zero", "none", "to_init"):
            raise ValueError(f"adapter_decay {self.adapter_decay!r}: to_zero, none or to_init")

    @property
    def exact_gradient(self) -> bool:
        """Not where the norm of a row is taken for a constant."""
        return not (self.magnitude and self.detach_norm)

    @property
    def scale(self) -> float:
        """The factor s = alpha / rank of the update."""
        return self.alpha / self.rank

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Starting values A (rank, in) and B (out, rank) for a pretrained weight (out, in)."""
        raise NotImplementedError

    def core(self, weight: Tensor) -> Tensor | None:
        """Starting value R (rank, rank) of the core between the factors; None for none."""
        return None

    def layer(self, linear: nn.Linear, *, empty: bool = False) -> LowRankLinear:
        """The low-rank layer that takes the place of `linear`; with zero factors if `empty`.

        Raises:
            ValueError: the rank is too large.
        """
        weight = linear.weight.detach()
        if self.rank > min(weight.shape):
            raise ValueError(f"rank {self.rank}: the weight has rank {min(weight.shape)} at most")
        a, b = _zero_factors(weight, self.rank) if empty else self.factors(weight)
        norm = {"magnitude": self.magnitude, "detach_norm": self.detach_norm}
        start = {"scale": self.scale, "subtract": self.subtract, "frozen": self.frozen}
        return LowRankLinear(linear, a, b, core=self.core(weight), **start, **norm)

    def attach(self, vit: nn.Module) -> None:
        """Replace the target linears from `start_block` on.

        Raises:
            NotApplicable: a target role is absent, or no plain linear.
            ValueError: the rank is too large.
        """
        self._attach(vit, empty=False)

    def attach_empty(self, vit: nn.Module) -> None:
        """Replace the target linears with zero factors, which values from a file overwrite."""
        self._attach(vit, empty=True)

    def _attach(self, vit: nn.Module, *, empty: bool) -> None:
        chosen = self.target_linears(vit)
        # Draws have to come in order; side by side, chance would deal them out.
        mapped = map if self.draws else side_by_side
        layers = mapped(partial(self.layer, empty=empty), chosen.values())
        for name, layer in zip(chosen, layers, strict=True):
            replace_module(vit, name, layer)
        for block in vit.blocks[self.first_block(vit) : self.past_block(vit)]:
            for module in block.modules():
                # What feeds the adapted linears: `updated` keeps the input of these, which autograd
                # keeps anyway.
                if isinstance(module, nn.LayerNorm | nn.GELU):
                    module.register_forward_hook(remember_input)

    def trains(self, name: str) -> bool:
        """The biases of the target linears, if they are to learn."""
        is_bias = name.endswith(".bias") and parameter_role(name) in self.targets
        return self.train_bias and is_bias

    def fold(self, vit: nn.Module) -> None:
        """Add the updates to the weights; q, k and v stay split."""
        for name, module in list(vit.named_modules()):
            if isinstance(module, LowRankLinear):
                replace_module(vit, name, module.folded())
            hooks = module._forward_hooks
            for key in [key for key, hook in hooks.items() if hook is remember_input]:
                del hooks[key]
        super().fold(vit)

    def decay(self, name: str) -> str:
        """As the field says for factors; a magnitude does not decay, that would shrink outputs."""
        if name.endswith(".lora_magnitude"):
            return "none"
        is_factor = name.endswith((".lora_a", ".lora_b", ".lora_core"))
        return self.adapter_decay if is_factor else super().decay(name)


def _zero_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
