"""The layer that changes a weight in the basis of its singular vectors, and its methods' base."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from soma.backbone import copied, linear_of, replace_module
from soma.initialise import Triplets, singular_triplets
from soma.method import Targeted
from soma.threads import side_by_side

Relu = Literal["none", "diagonal", "full"]


class SpectralLinear(nn.Linear):
    """A frozen linear W = U diag(S) V^T whose core diag(S) becomes M: y = U M V^T x + b.

    Computed as y = W x + b + U (M - diag S) V^T x: no weight is rebuilt, and as long as M is
    diag(S) the output is that of W, without rounding. Where only some components are given, the
    others stay as they are in W.

    M is diagonal in the first p components, a S + c with `spectral_scale` a (p,) and
    `spectral_shift` c (p,), of which either may be missing. In the others it is diag(S) + X Y with
    `spectral_x` (rest, rank) and `spectral_y` (rank, rest).

    Keeps the keys `weight` (out, in) and `bias` (out,) of the linear it replaces. U (out, k), S
    (k,) and V^T (k, in) are buffers, saved with the adapter: X Y mixes singular vectors, whose
    signs, and whose choice where values repeat, another library would draw differently.

    Args:
        linear: the linear to replace; its weight and bias are taken over, not copied.
        triplets: U, S and V^T of the components.
        scale: starting value of a.
        shift: starting value of c.
        xy: starting values of X and Y; without them a and c cover all components.
        relu: what of M is cut off at zero: nothing, its diagonal, or every entry.

    Raises:
        ValueError: the weight is in half precision, or the shapes do not fit.
    """

    def __init__(
        self,
        linear: nn.Linear,
        triplets: Triplets,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        xy: tuple[Tensor, Tensor] | None = None,
        relu: Relu = "none",
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
        self.relu: Relu = relu
        u, s, vh = triplets
        top = {len(value) for value in (scale, shift) if value is not None}
        rest = 0 if xy is None else len(xy[0])
        if len(top) != 1 or top != {len(s) - rest}:
            raise ValueError(f"{len(s)} components: {top} scaled or shifted, {rest} in X Y")
        self.top = top.pop()
        for name, value in (("u", u), ("s", s), ("vh", vh)):
            self.register_buffer(f"spectral_{name}", copied(value))
        x, y = (None, None) if xy is None else xy
        for name, value in (("scale", scale), ("shift", shift), ("x", x), ("y", y)):
            parameter = None if value is None else nn.Parameter(copied(value))
            self.register_parameter(f"spectral_{name}", parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(x) + self._update(functional.linear(x, self.spectral_vh))

    def _update(self, z: Tensor) -> Tensor:
        """U (M - diag S) z, (..., k) -> (..., out)."""
        change = z[..., : self.top] * self._diagonal_change()
        if self.spectral_x is not None:
            change = torch.cat([change, self._mixed(z[..., self.top :])], dim=-1)
        return functional.linear(change, self.spectral_u)

    def _diagonal_change(self) -> Tensor:
        """Of the first components, (p,): a S + c - S, as (a - 1) S + c, which starts at zero."""
        s = self.spectral_s[: self.top]
        change = 0 if self.spectral_scale is None else (self.spectral_scale - 1) * s
        change = change if self.spectral_shift is None else change + self.spectral_shift
        return change if self.relu == "none" else _cut_at_zero(change, s)

    def _mixed(self, z: Tensor) -> Tensor:
        """M - diag S of the other components, applied: (..., rest) -> (..., rest)."""
        x, y, s = self.spectral_x, self.spectral_y, self.spectral_s[self.top :]
        if self.relu == "full":
            # The one form that needs the whole matrix: the cut is made entry by entry.
            core = s.diag()
            return functional.linear(z, functional.relu(core + x @ y) - core)
        mixed = functional.linear(functional.linear(z, y), x)
        if self.relu == "none":
            return mixed
        # The diagonal of X Y without the product.
        diagonal = (x * y.T).sum(dim=1)
        return mixed + z * (_cut_at_zero(diagonal, s) - diagonal)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain linear with the same output."""
        weight = self.weight + self._update(self.spectral_vh.T).T
        bias = None if self.bias is None else self.bias.detach()
        return linear_of(weight, bias, like=self)

    def extra_repr(self) -> str:
        """For `print(vit)`."""
        mixed = len(self.spectral_s) - self.top
        return f"{super().extra_repr()}, diagonal={self.top}, mixed={mixed}, relu={self.relu}"


def _cut_at_zero(change: Tensor, s: Tensor) -> Tensor:
    """relu(S + change) - S, written so that no rounding enters where nothing is cut."""
    return change + functional.relu(-(s + change))


@dataclass(frozen=True, kw_only=True)
class Spectral(Targeted):
    """Changes of chosen linears in the basis of their singular vectors: `SpectralLinear`.

    A method of this family overrides `layer`, and `components` if it leaves some out. What it
    learns acts as a factor on weights of any size: it wants a higher learning rate than LoRA.
    """

    def components(self, count: int) -> int:
        """How many of the `count` singular components, from the largest on, are decomposed."""
        return count

    def layer(self, linear: nn.Linear, triplets: Triplets) -> SpectralLinear:
        """The layer that takes the place of `linear`, given U, S and V^T of the components."""
        raise NotImplementedError

    def attach(self, vit: nn.Module) -> None:
        """Replace the target linears from `start_block` on.

        Raises:
            NotApplicable: a target role is absent, or no plain linear.
            ValueError: a number is too large for a weight.
        """
        self._attach(vit, empty=False)

    def attach_empty(self, vit: nn.Module) -> None:
        """Replace the target linears without an SVD; its values come from a file."""
        self._attach(vit, empty=True)

    def _attach(self, vit: nn.Module, *, empty: bool) -> None:
        chosen = self.target_linears(vit)
        weights = [linear.weight.detach() for linear in chosen.values()]
        # The decompositions alone: `layer` may draw, and draws have to come in order.
        splits = side_by_side(
            lambda weight: _triplets(weight, self.components(min(weight.shape)), empty=empty),
            weights,
        )
        for (name, linear), triplets in zip(chosen.items(), splits, strict=True):
            replace_module(vit, name, self.layer(linear, triplets))

    def trains(self, name: str) -> bool:
        """No pretrained parameter."""
        return False

    def fold(self, vit: nn.Module) -> None:
        """Put the changes into the weights; q, k and v stay split."""
        for name, module in list(vit.named_modules()):
            if isinstance(module, SpectralLinear):
                replace_module(vit, name, module.folded())
        super().fold(vit)

    def decay(self, name: str) -> str:
        """Scales and shifts do not decay: towards zero a scale would delete its component."""
        is_diagonal = name.endswith((".spectral_scale", ".spectral_shift"))
        return "none" if is_diagonal else super().decay(name)


def _triplets(weight: Tensor, count: int, *, empty: bool) -> Triplets:
    """U, S and V^T of the first `count` components, on the weight's device; zeros if `empty`."""
    if not (empty or weight.is_meta):
        u, s, vh = singular_triplets(weight, range(count))
        return u.to(weight.device), s.to(weight.device), vh.to(weight.device)
    rows, columns = weight.shape
    return weight.new_zeros(rows, count), weight.new_zeros(count), weight.new_zeros(count, columns)
