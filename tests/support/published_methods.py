"""Published methods, written from the definitions in their papers, that the checks must pass."""

import contextlib
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from soma import LowRank, Method, NotFoldable
from soma.backbone import (
    TokenGrid,
    linear_of,
    linears,
    replace_module,
    token_grid,
)
from soma.initialise import orthonormal_factors
from soma.method import Targeted


@dataclass(frozen=True, kw_only=True)
class LoRAXS(LowRank):
    """A core R learns between the frozen factors A = Vh and B = U S of the weight."""

    source: ClassVar[str] = "LoRA-XS, arXiv 2405.17604"
    exact_start: ClassVar[bool] = False  # R is drawn from N(0, 1e-5^2)
    frozen: ClassVar[frozenset[str]] = frozenset({"a", "b"})

    rank: int = 8
    alpha: float = 8.0

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        a, b = orthonormal_factors(weight, self.rank, "principal")
        lengths = a.norm(dim=1)
        return a / lengths[:, None], b * lengths

    def core(self, weight: Tensor) -> Tensor:
        return 1e-5 * torch.randn(self.rank, self.rank)


def scale_and_shift(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y * module.ssf_scale.to(y.dtype) + module.ssf_shift.to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class SSF(Method):
    """Scale and shift of what leaves each linear, keys included, and each norm of the blocks.

    Those after the final norm are left out: no task reads it.
    """

    source: ClassVar[str] = "SSF, arXiv 2210.08823, section 3.2"
    exact_start: ClassVar[bool] = False  # scales from N(1, 0.02^2), shifts from N(0, 0.02^2)

    def attach(self, vit: nn.Module) -> None:
        for block in vit.blocks[self.first_block(vit) :]:
            for module in block.modules():
                if isinstance(module, (nn.Linear, nn.LayerNorm)):
                    width = len(module.weight)
                    module.ssf_scale = nn.Parameter(1 + 0.02 * torch.randn(width))
                    module.ssf_shift = nn.Parameter(0.02 * torch.randn(width))
                    module.register_forward_hook(scale_and_shift)

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        adapted = {n: m for n, m in vit.named_modules() if hasattr(m, "ssf_scale")}
        if without := [name for name, module in adapted.items() if module.bias is None]:
            raise NotFoldable(f"{without[0]} has no bias that could hold the shift")
        for name, module in adapted.items():
            scale, shift = module.ssf_scale, module.ssf_shift
            bias = scale * module.bias + shift
            if isinstance(module, nn.Linear):
                weight = scale[:, None] * module.weight
                replace_module(vit, name, linear_of(weight, bias, like=module))
                continue
            module.weight.mul_(scale), module.bias.copy_(bias)
            del module.ssf_scale, module.ssf_shift
            module._forward_hooks.clear()
        super().fold(vit)

    def decay(self, name: str) -> str:
        return "none"


class ConvBypass(nn.Module):
    """s up(gelu(conv(gelu(down(x))))) with a 3 x 3 convolution over the grid of the tokens.

    Class and register tokens count as images of one pixel.
    """

    def __init__(self, width: int, size: int, scale: float, grid: TokenGrid) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        self.conv = nn.Conv2d(size, size, 3, padding=1)
        self.scale, self.grid = scale, grid
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def add(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + self.scale * self(args[0]).reshape(y.shape)

    def forward(self, x: Tensor) -> Tensor:
        z = functional.gelu(self.down(x))
        if z.ndim == 4:
            return self.up(functional.gelu(self._over(z)))
        height, width = self.grid.of(x)
        prefix, patches = z.split([z.shape[1] - height * width, height * width], dim=1)
        patches = self._over(patches.unflatten(1, (height, width))).flatten(1, 2)
        alone = self._over(prefix.flatten(0, 1)[:, None, None]).reshape(prefix.shape)
        return self.up(functional.gelu(torch.cat([alone, patches], dim=1)))

    def _over(self, z: Tensor) -> Tensor:
        """The convolution of (B, h, w, size)."""
        return self.conv(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class Convpass(Method):
    """A convolutional bypass beside the attention and beside the MLP of each block."""

    source: ClassVar[str] = "Convpass, arXiv 2207.07039, section 3"
    needs: ClassVar[frozenset[str]] = frozenset({"token_grid"})

    size: int = 8
    scale: float = 0.1

    def attach(self, vit: nn.Module) -> None:
        grid = token_grid(vit)
        for block in vit.blocks[self.first_block(vit) :]:
            for part in (block.attn, block.mlp):
                part.convpass = ConvBypass(vit.embed_dim, self.size, self.scale, grid)
                part.convpass.train(part.training)
                part.register_forward_hook(part.convpass.add)


class LinearAdapter(nn.Module):
    """x + s up(down(x)) with an `up` in groups and nothing between the two."""

    def __init__(self, width: int, size: int, groups: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Conv1d(size, width, 1, groups=groups)
        self.dropout, self.scale = nn.Dropout(0.1), scale
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        return self(x), *rest

    def forward(self, x: Tensor) -> Tensor:
        z = self.dropout(self.down(x)).reshape(-1, self.down.out_features)
        return x + self.scale * self.up(z[..., None])[..., 0].reshape(x.shape)


@dataclass(frozen=True, kw_only=True)
class RepAdapter(Method):
    """A linear adapter before the attention and before the MLP, which folds into what reads it."""

    source: ClassVar[str] = "RepAdapter, arXiv 2302.08106, section 3.3"

    size: int = 8
    groups: int = 2
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % self.groups:
            raise ValueError(f"size {self.size}: no multiple of {self.groups} groups")

    def attach(self, vit: nn.Module) -> None:
        if vit.embed_dim % self.groups:
            raise ValueError(f"groups {self.groups}: the width is {vit.embed_dim}")
        for block in vit.blocks[self.first_block(vit) :]:
            for part in (block.attn, block.mlp):
                sizes = vit.embed_dim, self.size, self.groups, self.scale
                part.repadapter = LinearAdapter(*sizes).train(part.training)
                part.register_forward_pre_hook(part.repadapter.before)

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        reading = [
            (vit.blocks[block].mlp if role == "fc1" else vit.blocks[block].attn, name, linear)
            for name, block, role, linear in linears(vit)
            if role in ("q", "k", "v", "fc1") and block >= self.first_block(vit)
        ]
        if without := [name for _, name, linear in reading if linear.bias is None]:
            raise NotFoldable(f"{without[0]} has no bias that could hold the adapter's")
        for part, name, linear in reading:
            adapter, width = part.repadapter.eval(), linear.in_features
            constant = adapter(torch.zeros(width))
            matrix = adapter(torch.eye(width)) - constant  # rows: images of the axes
            weight, bias = linear.weight @ matrix.T, linear.bias + linear.weight @ constant
            replace_module(vit, name, linear_of(weight, bias, like=linear))
        for part in {id(part): part for part, _, _ in reading}.values():
            del part.repadapter
            part._forward_pre_hooks.clear()
        super().fold(vit)


class VeRALinear(nn.Linear):
    """W x + b + d_b B d_a A x, with A and B as the upper left parts of buffers that all share."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("vera_a", a)
        self.register_buffer("vera_b", b)
        self.vera_in = nn.Parameter(torch.full((len(a),), 0.1))
        self.vera_out = nn.Parameter(torch.zeros(linear.out_features))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        update = functional.linear(x, self.vera_a[:, : self.in_features]) * self.vera_in
        update = functional.linear(update, self.vera_b[: self.out_features]) * self.vera_out
        return super().forward(x) + update.to(x.dtype)

    def folded(self) -> nn.Linear:
        a, b = self.vera_a[:, : self.in_features], self.vera_b[: self.out_features]
        update = self.vera_out[:, None] * b @ (self.vera_in[:, None] * a)
        return linear_of(self.weight + update, self.bias, like=self)


@dataclass(frozen=True, kw_only=True)
class VeRA(Targeted):
    """Two vectors per linear learn, around two random matrices that all linears share."""

    source: ClassVar[str] = "VeRA, arXiv 2310.11454, section 3"

    rank: int = 16

    def attach(self, vit: nn.Module) -> None:
        chosen = self.target_linears(vit)
        a = torch.empty(self.rank, max(linear.in_features for linear in chosen.values()))
        b = torch.empty(max(linear.out_features for linear in chosen.values()), self.rank)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.kaiming_uniform_(b, a=math.sqrt(5))
        for name, linear in chosen.items():
            replace_module(vit, name, VeRALinear(linear, a, b))

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        for name, module in list(vit.named_modules()):
            if isinstance(module, VeRALinear):
                replace_module(vit, name, module.folded())
        super().fold(vit)

    def decay(self, name: str) -> str:
        return "none" if name.endswith(".vera_in") else "to_zero"


class ButterflyLinear(nn.Linear):
    """s (W R x) + b, R a product of rotations. The i-th mixes numbers that stand size^i apart."""

    def __init__(self, linear: nn.Linear, size: int, factors: int) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        blocks = linear.in_features // size
        self.boft_q = nn.Parameter(torch.zeros(factors, blocks, size, size))
        self.boft_scale = nn.Parameter(torch.ones(linear.out_features))
        self.train(linear.training)

    def rotated(self) -> Tensor:
        """s W R in float32, (out, in)."""
        size, weight = self.boft_q.shape[-1], self.weight
        device = weight.device.type
        has_autocast = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if has_autocast else contextlib.nullcontext():
            skew = self.boft_q - self.boft_q.mT
            eye = torch.eye(size, dtype=skew.dtype, device=skew.device)
            rotations = torch.linalg.solve(eye + skew, eye - skew)  # Cayley
            for place, rotation in enumerate(rotations):
                apart = size**place
                rotation = rotation.unflatten(0, (-1, apart))
                blocks = weight.unflatten(1, (-1, size, apart))
                weight = torch.einsum("onia,naij->onja", blocks, rotation).flatten(1)
            return self.boft_scale[:, None] * weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.rotated(), self.bias)


@dataclass(frozen=True, kw_only=True)
class Butterfly(Targeted):
    """The weight is multiplied by a product of sparse rotations, and each output scaled."""

    source: ClassVar[str] = "BOFT, arXiv 2311.06243, sections 3 and 4"

    size: int = 2
    factors: int = 2

    def attach(self, vit: nn.Module) -> None:
        chosen = self.target_linears(vit)
        for name, linear in chosen.items():
            if linear.in_features % self.size**self.factors:
                raise ValueError(
                    f"{self.size} ** {self.factors} does not divide the input of {name}"
                )
        for name, linear in chosen.items():
            replace_module(vit, name, ButterflyLinear(linear, self.size, self.factors))

    @torch.no_grad()
    def fold(self, vit: nn.Module) -> None:
        for name, module in list(vit.named_modules()):
            if isinstance(module, ButterflyLinear):
                replace_module(vit, name, linear_of(module.rotated(), module.bias, like=module))
        super().fold(vit)

    def decay(self, name: str) -> str:
        return "none" if name.endswith(".boft_scale") else "to_zero"
