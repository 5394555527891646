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
_FIRST = 5  # arguments of the function before those of the parts


def updated(x: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
    """The outputs of `parts`, of one scale s, side by side: (..., in) -> (..., sum of out).

    The gradient of A takes x. Where x is the output of a norm or an activation that
    `remember_input` watches, what that module read is kept instead, which it keeps anyway, and x is
    computed again. No second derivative is defined.
    """
    dtype = x.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        # The backward pass runs outside of autocast, so both passes cast by hand to this type.
        dtype = torch.get_autocast_dtype(x.device.type)
    module, read = _source(x)
    tensors = [tensor for part in parts for tensor in part]
    return _Update.apply(x, read, module, dtype, scale, *tensors)


def remember_input(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
    """Forward hook on a norm or an activation: its output y, of any shape, says what it read."""
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
        scale: float,
        *tensors: Tensor | None,
    ) -> Tensor:
        parts = _parts(tensors)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        h = flat @ _joined([part.a for part in parts]).to(dtype).t()
        if len(parts) == 1:
            y = _output(parts[0], flat, h, scale, None)
        else:
            widths = [len(part.weight) for part in parts]
            # Every part writes its columns: to join outputs would be to copy them all once more.
            y = flat.new_empty(len(flat), sum(widths))
            ranks = h.split([len(part.a) for part in parts], 1)
            for part, own, out in zip(parts, ranks, y.split(widths, 1), strict=True):
                _output(part, flat, own, scale, out)
        # The gradients of W and A take x; that of B takes h, so that x need not be kept for it.
        needs_x = any(
            ctx.needs_input_grad[i] for i in range(_FIRST, _FIRST + len(tensors), _FIELDS)
        )
        needs_x |= any(
            ctx.needs_input_grad[i] for i in range(_FIRST + 2, _FIRST + len(tensors), _FIELDS)
        )
        ctx.module, ctx.dtype, ctx.scale = module if needs_x else None, dtype, scale
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        lengths = y if parts[0].magnitude is not None else None
        kept = (x if read is None else read) if needs_x else None
        ctx.save_for_backward(
            kept, h, lengths, *(t for part in parts for t in part._replace(dense=None))
        )
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, h, y, *tensors = ctx.saved_tensors
        parts, dtype, scale = _parts(tensors), ctx.dtype, ctx.scale
        g = g.reshape(-1, g.shape[-1]).to(dtype)
        if ctx.module is not None:
            # Past `__call__`: hooks have had this output once already.
            x = type(ctx.module).forward(ctx.module, x)
        x = None if x is None else x.reshape(-1, x.shape[-1]).to(dtype)
        widths, ranks = [len(part.weight) for part in parts], [len(part.a) for part in parts]
        owns, hs = g.split(widths, 1), h.split(ranks, 1)
        ys = [None] * len(parts) if y is None else y.split(widths, 1)
        grads: list[Tensor | None] = []
        ghs, gx, learns_a = [], None, False
        for i, part in enumerate(parts):
            first = _FIRST + i * _FIELDS
            w, bias, a, b, magnitude = ctx.needs_input_grad[first : first + 5]
            own, learns_a = owns[i], learns_a or a
            g_bias = own.sum(0) if bias or magnitude else None
            g_magnitude = _of_magnitude(part, own, ys[i], g_bias) if magnitude else None
            if part.magnitude is not None:
                # The gain scales every row of W and of B A, and not the bias, whose gradient is
                # taken above.
                own = own * (part.magnitude / part.norm).to(dtype)
            ghs.append(own @ part.b.to(dtype))
            if ctx.needs_input_grad[0]:
                weight = part.weight.to(dtype)
                gx = own @ weight if gx is None else gx.addmm_(own, weight)
            g_weight = own.t() @ x if w else None
            g_b = (hs[i].t() @ own).mul_(scale).t() if b else None
            grads += [g_weight, g_bias if bias else None, None, g_b, g_magnitude, None, None]
        gh = ghs[0] if len(ghs) == 1 else torch.cat(ghs, 1)
        if gx is not None:
            gx.addmm_(gh, _joined([part.a for part in parts]).to(dtype), alpha=scale)
            gx = gx.view(ctx.shape).to(ctx.x_dtype)
        if learns_a:
            for i, g_a in enumerate((gh.t() @ x).mul_(scale).split(ranks)):
                grads[i * _FIELDS + 2] = (
                    g_a if ctx.needs_input_grad[_FIRST + i * _FIELDS + 2] else None
                )
        return gx, None, None, None, None, *grads


def _output(part: Part, x: Tensor, h: Tensor, scale: float, out: Tensor | None) -> Tensor:
    """One linear on rows x and h = A x, into `out` where that is given."""
    weight = (part.weight if part.dense is None else part.dense).to(x.dtype).t()
    if part.bias is None or part.magnitude is not None:
        y = torch.mm(x, weight, out=out)
    else:
        y = torch.addmm(part.bias.to(x.dtype), x, weight, out=out)
    if part.dense is None:
        y.addmm_(h, part.b.to(x.dtype).t(), alpha=scale)
    if part.magnitude is not None:
        y.mul_((part.magnitude / part.norm).to(x.dtype))
        if part.bias is not None:
            y.add_(part.bias.to(x.dtype))
    return y


def _of_magnitude(part: Part, g: Tensor, y: Tensor, g_bias: Tensor) -> Tensor:
    """Sum over tokens of g (y - b) / magnitude; (y - b) / magnitude is the row of length 1."""
    total = (g * y).sum(0, dtype=part.magnitude.dtype)
    if part.bias is not None:
        total = total - part.bias * g_bias
    return total / part.magnitude


def _parts(tensors: Sequence[Tensor | None]) -> list[Part]:
    return [Part(*tensors[i : i + _FIELDS]) for i in range(0, len(tensors), _FIELDS)]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
