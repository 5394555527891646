"""W x + s B A x of linears that read the same input, in one pass that keeps little for backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_READ = "soma_read"  # attribute of what a module gives: the module, and what it read


class Part(NamedTuple):
    """One linear: y = gain (W + s B A) x + b, with gain = magnitude / norm where these are given.

    Shapes: weight (out, in), bias (out,), a (rank, in), b (out, rank), magnitude and norm (out,).
    `dense` is W + s B A where it is there anyway; it is not kept.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    norm: Tensor | None
    dense: Tensor | None


_FIELDS = len(Part._fields)


def updated(x: Tensor, parts: Sequence[Part], scales: Sequence[float]) -> Tensor:
    """The outputs of `parts` side by side: (..., in) -> (..., sum of out).

    The gradient of A takes x. Where x is the output of a norm or an activation that
    `remember_input` watches, what that module read is kept instead, which it keeps anyway, and x is
    computed again. No second derivative is defined.
    """
    device = x.device.type
    dtype = x.dtype
    if x.is_floating_point() and dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    module, read = _source(x)
    tensors = [tensor for part in parts for tensor in part]
    return _Update.apply(x, read, module, dtype, tuple(scales), *tensors)


def remember_input(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
    """Forward hook on a norm or an activation: its output says what it was computed from."""
    # A compiler decides for itself what it keeps.
    if not torch.compiler.is_compiling() and y.requires_grad:
        setattr(y, _READ, (module, args[0].detach(), args[0]._version, y._version))


def _source(x: Tensor) -> tuple[nn.Module | None, Tensor | None]:
    """The module that gave x and what it read, if both tensors are still as they were."""
    module, read, before, after = getattr(x, _READ, (None, None, 0, 0))
    if read is None or (read._version, x._version) != (before, after):
        return None, None
    return module, read


class _Update(torch.autograd.Function):
    """Products are added in place, so that no second output or gradient has to be passed over."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        read: Tensor | None,
        module: nn.Module | None,
        dtype: torch.dtype,
        scales: tuple[float, ...],
        *tensors: Tensor | None,
    ) -> Tensor:
        parts = _parts(tensors)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        a = torch.cat([part.a for part in parts]).to(dtype)
        h = flat @ a.T
        y = flat.new_empty(len(flat), sum(len(part.weight) for part in parts))
        ends, ranks = _columns(parts)
        for part, scale, where, rank in zip(parts, scales, ends, ranks, strict=True):
            out = y[:, where]
            weight = (part.weight if part.dense is None else part.dense).to(dtype).T
            if part.bias is None or part.magnitude is not None:
                torch.mm(flat, weight, out=out)
            else:
                torch.addmm(part.bias.to(dtype), flat, weight, out=out)
            if part.dense is None:
                out.addmm_(h[:, rank], part.b.to(dtype).T, alpha=scale)
            if part.magnitude is not None:
                out.mul_((part.magnitude / part.norm).to(dtype))
                if part.bias is not None:
                    out.add_(part.bias.to(dtype))
        learns_a = any(ctx.needs_input_grad[5 + i * _FIELDS + 2] for i in range(len(parts)))
        learns_w = any(ctx.needs_input_grad[5 + i * _FIELDS] for i in range(len(parts)))
        lengths = any(part.magnitude is not None for part in parts)
        needs_x = learns_a or learns_w
        ctx.module, ctx.dtype, ctx.scales = module if needs_x else None, dtype, scales
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        kept = (None if not needs_x else x if read is None else read, h, y if lengths else None)
        ctx.save_for_backward(*kept, *(t for part in parts for t in part._replace(dense=None)))
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, h, y, *tensors = ctx.saved_tensors
        parts, dtype = _parts(tensors), ctx.dtype
        g = g.reshape(-1, g.shape[-1]).to(dtype)
        if ctx.module is not None:
            x = type(ctx.module).forward(ctx.module, x)
        x = None if x is None else x.reshape(-1, x.shape[-1]).to(dtype)
        grads: list[Tensor | None] = []
        gh = torch.empty_like(h)
        gx = None
        ends, ranks = _columns(parts)
        for i, (part, where, rank) in enumerate(zip(parts, ends, ranks, strict=True)):
            needs = ctx.needs_input_grad[5 + i * _FIELDS : 5 + (i + 1) * _FIELDS]
            own, scale = g[:, where], ctx.scales[i]
            g_bias = own.sum(0) if needs[1] or needs[4] else None
            g_magnitude = None
            if part.magnitude is not None:
                if needs[4]:
                    g_magnitude = _of_magnitude(part, own, y[:, where], g_bias)
                own = own * (part.magnitude / part.norm).to(dtype)
            torch.mm(own, part.b.to(dtype), out=gh[:, rank])
            if ctx.needs_input_grad[0]:
                weight = part.weight.to(dtype)
                gx = own @ weight if gx is None else gx.addmm_(own, weight)
            g_weight = own.T @ x if needs[0] else None
            g_b = (h[:, rank].T @ own).mul_(scale).T if needs[3] else None
            grads += [g_weight, g_bias if needs[1] else None, None, g_b, g_magnitude, None, None]
            gh[:, rank].mul_(scale)
        if gx is not None:
            gx.addmm_(gh, torch.cat([part.a for part in parts]).to(dtype))
            gx = gx.view(ctx.shape).to(ctx.x_dtype)
        learns = [ctx.needs_input_grad[5 + i * _FIELDS + 2] for i in range(len(parts))]
        if any(learns):
            for i, g_a in enumerate((gh.T @ x).split([len(part.a) for part in parts])):
                grads[i * _FIELDS + 2] = g_a if learns[i] else None
        return gx, None, None, None, None, *grads


def _of_magnitude(part: Part, g: Tensor, y: Tensor, g_bias: Tensor) -> Tensor:
    """Sum over tokens of g (y - b) / magnitude; (y - b) / magnitude is the row of length 1."""
    total = (g * y).sum(0, dtype=part.magnitude.dtype)
    if part.bias is not None:
        total = total - part.bias * g_bias
    return total / part.magnitude


def _parts(tensors: Sequence[Tensor | None]) -> list[Part]:
    return [Part(*tensors[i : i + _FIELDS]) for i in range(0, len(tensors), _FIELDS)]


def _columns(parts: Sequence[Part]) -> tuple[list[slice], list[slice]]:
    """Which columns of the output, and of A x, belong to each part."""
    ends, ranks, end, rank = [], [], 0, 0
    for part in parts:
        ends.append(slice(end, end + len(part.weight)))
        ranks.append(slice(rank, rank + len(part.a)))
        end, rank = ends[-1].stop, ranks[-1].stop
    return ends, ranks
