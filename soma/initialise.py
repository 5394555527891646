"""Starting values of low-rank factors: exact singular value splits, pivoted QR, the zero start.

`weight = U @ diag(S) @ Vh` with U (out, k), S descending, Vh (k, in), k = min(out, in). The SVD is
exact: a randomised one returns leading directions only, and no half precision one exists. It runs
on the CPU whatever the device, so that a start depends on the weights alone, and is kept on disk.

A pivoted QR (`W P = Q R`: each step takes the column with the largest remainder) is kept alike.

Every draw here is made on the CPU from torch's global generator.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor

Components = Literal["principal", "minor", "middle", "random"] | int
Triplets = tuple[Tensor, Tensor, Tensor]

# Of what a cache entry holds. Raise it with a change of that: older entries are then passed by.
_VERSION = "1"


def component_indices(components: Components, count: int, rank: int) -> list[int]:
    """Which `rank` of `count` singular components (largest first) are meant.

    A number is the index of the first one. "middle" is the centred run, the rule of MiLoRA's `mid`
    mode. "random" draws without replacement.

    Raises:
        ValueError: they reach past the last component, or the name is unknown.
    """
    if components == "random":
        if rank > count:
            raise ValueError(f"rank {rank}: the weight has {count} singular components")
        # Sorted: the same set of components is then one entry of the cache.
        return sorted(torch.randperm(count)[:rank].tolist())
    starts = {"principal": 0, "minor": count - rank, "middle": (count - rank) // 2}
    start = components if isinstance(components, int) else starts.get(components)
    if start is None:
        raise ValueError(
            f"components {components!r}: expected an index or {', '.join(starts)}, random"
        )
    if not 0 <= start <= count - rank:
        raise ValueError(
            f"rank {rank} from component {start}: the weight has {count} singular components"
        )
    return list(range(start, start + rank))


def svd_factors(
    weight: Tensor, rank: int, components: Components, scale: float
) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with `scale * B @ A` = sum of s_i u_i v_i^T over `components`.

    Source: SoMA, arXiv 2412.04077, section 3 (minor); PiSSA, arXiv 2404.02948 (principal). The
    singular values are divided by `scale` before the square root is shared out, so that the
    identity holds for every alpha.
    """
    indices = component_indices(components, min(weight.shape), rank)
    if weight.is_meta:
        return weight.new_empty(rank, weight.shape[1]), weight.new_empty(weight.shape[0], rank)
    u, s, vh = singular_triplets(weight, indices)
    # Half of each value to either factor: both then get gradients of a size.
    root = (s / scale).sqrt()
    a, b = root[:, None] * vh, u * root
    return a.to(weight.device), b.to(weight.device)


def orthonormal_factors(weight: Tensor, rank: int, components: Components) -> tuple[Tensor, Tensor]:
    """A = diag(S) Vh (rank, in) and B = U (out, rank) of `components`, without a scale.

    Source: EDoRA's code (principal); B alone is the start of MiCA, arXiv 2604.01694 (minor).
    """
    indices = component_indices(components, min(weight.shape), rank)
    if weight.is_meta:
        return weight.new_empty(rank, weight.shape[1]), weight.new_empty(weight.shape[0], rank)
    u, s, vh = singular_triplets(weight, indices)
    return (s[:, None] * vh).to(weight.device), u.to(weight.device)


def pivoted_qr_factors(weight: Tensor, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A (r, in), 0/1 rows that pick the pivot columns of `steps`, and B (out, r), those of Q.

    Source: RecycleLoRA, arXiv 2603.28142. B A is no component of the weight: each column of Q goes
    where its pivot stands, with length 1.
    """
    if weight.is_meta:
        return (
            weight.new_empty(len(steps), weight.shape[1]),
            weight.new_empty(weight.shape[0], len(steps)),
        )
    q, _, rows = _kept("qr", weight, steps, _pivoted_qr)
    return rows.to(weight.device), q.to(weight.device)


def kaiming_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) from U(-1/sqrt(in), 1/sqrt(in)) and B (out, rank) zero.

    Source: LoRA, arXiv 2106.09685, and its code (Kaiming uniform with a = sqrt(5)).
    """
    a = default_linear_weight(rank, weight.shape[1], like=weight)
    return a, weight.new_zeros(weight.shape[0], rank)


def default_linear_weight(rows: int, columns: int, like: Tensor) -> Tensor:
    """A fresh `nn.Linear` weight (rows, columns) on the device and in the type of `like`."""
    if like.is_meta:
        return like.new_empty(rows, columns)
    weight = torch.empty(rows, columns, dtype=like.dtype)
    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight.to(like.device)


def singular_triplets(weight: Tensor, indices: Sequence[int]) -> Triplets:
    """U (out, r), S (r,), Vh (r, in) of the components `indices`, on the CPU.

    In float64 for a float64 weight, in float32 for any other. The signs are fixed (the entry of
    largest magnitude in each column of U is positive), since those of LAPACK's builds differ.
    """
    return _kept("svd", weight, indices, _decompose)


def _kept(
    kind: str, weight: Tensor, indices: Sequence[int], decompose: Callable[..., Triplets]
) -> Triplets:
    """What `decompose(weight, indices)` gives, from the cache where it is there."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    weight = weight.detach().to("cpu", dtype).contiguous()
    folder = cache_folder()
    if folder is None:
        return decompose(weight, indices)
    # LAPACK's bits depend on the instruction set: another processor's entry is another run's start.
    kernels = f"{torch.backends.cpu.get_cpu_capability()} {os.environ.get('MKL_CBWR', '')}"
    note = f"{_VERSION} {torch.__version__} {kernels} {list(indices)}"
    path = folder / f"{kind}-{_digest(weight, note=note)}.pt"
    shapes = (weight.shape[0], len(indices)), (len(indices),), (len(indices), weight.shape[1])
    triplets = _read(path, shapes, dtype)
    if triplets is None:
        triplets = decompose(weight, indices)
        # A read-only or full disk costs time, not the run.
        with suppress(OSError):
            _write(path, triplets)
    return triplets


def cache_folder() -> Path | None:
    """Where splits are kept: the variable SOMA_CACHE (empty: nowhere), else ~/.cache/soma."""
    folder = os.environ.get("SOMA_CACHE")
    if folder is None:
        return Path.home() / ".cache" / "soma"
    return Path(folder) if folder else None


def _decompose(weight: Tensor, indices: Sequence[int]) -> Triplets:
    # LAPACK takes half the time for the tall form.
    if weight.shape[0] < weight.shape[1]:
        v, s, uh = torch.linalg.svd(weight.T.contiguous(), full_matrices=False)
        u, vh = uh.T, v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    chosen = torch.as_tensor(indices)
    u, s, vh = u[:, chosen], s[chosen], vh[chosen]
    signs = _signs(u)
    return (u * signs).contiguous(), s, (vh * signs[:, None]).contiguous()


# torch has no QR with pivots, and starts are to need no package besides it.
def _pivoted_qr(weight: Tensor, steps: Sequence[int]) -> Triplets:
    """Q (out, r), |R_jj| (r,) and the pivots as 0/1 rows (r, in) of the steps j in `steps`.

    Gram-Schmidt in float64, twice per step, with the lengths of the remainders downdated. A step
    with nothing left (to 1e-12) goes on with the unit vector that Q holds least of.
    """
    # A tall weight is made square first: the triangle of a plain QR has the same pivots.
    base, w = torch.linalg.qr(weight.double())
    left = w.square().sum(dim=0)  # squared lengths of what remains of each column
    floor = 1e-12 * left.max().sqrt()
    q, lengths, pivots = w.new_zeros(w.shape[0], min(w.shape)), [], []
    for step in range(min(w.shape)):
        pivots.append(int(left.argmax()))
        column = _outside(w[:, pivots[-1]], q[:, :step])
        lengths.append(column.norm())
        if lengths[-1] <= floor:
            unit = torch.zeros_like(column)
            unit[q.square().sum(dim=1).argmin()] = 1
            column = _outside(unit, q[:, :step])
        q[:, step] = column / column.norm()
        # Downdating loses digits, but only the choice of the next pivot reads these lengths.
        left -= (q[:, step] @ w).square()
        # Rounding could leave a used column the longest of what is nearly nothing.
        left[pivots[-1]] = -torch.inf
    chosen = torch.as_tensor(steps)
    q, lengths = base @ q[:, chosen], torch.stack(lengths)[chosen]
    rows = torch.nn.functional.one_hot(torch.as_tensor(pivots)[chosen], w.shape[1])
    return tuple(tensor.to(weight.dtype) for tensor in (q * _signs(q), lengths, rows))


def _outside(column: Tensor, q: Tensor) -> Tensor:
    """The part of a column that is orthogonal to those of `q`; once is not enough in floats."""
    for _ in range(2):
        column = column - q @ (column @ q)
    return column


def _signs(u: Tensor) -> Tensor:
    """Per column the sign of its entry of largest magnitude."""
    return u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()[0]


def _digest(*tensors: Tensor, note: str = "") -> str:
    digest = hashlib.sha256(note.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # Read in place, without a copy; other threads run meanwhile.
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def _read(path: Path, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> Triplets | None:
    """The entry, or None where there is none that is whole."""
    try:
        entry = torch.load(path, weights_only=True)
        u, s, vh, digest = entry["u"], entry["s"], entry["vh"], entry["digest"]
    # Cut short, of another torch or of another layout: it is made again, never trusted.
    except (OSError, EOFError, RuntimeError, UnpicklingError, ValueError, KeyError, TypeError):
        return None
    triplets = (u, s, vh)
    fits = all(
        isinstance(tensor, Tensor) and tuple(tensor.shape) == shape and tensor.dtype == dtype
        for tensor, shape in zip(triplets, shapes, strict=True)
    )
    return triplets if fits and _digest(*triplets) == digest else None


def _write(path: Path, triplets: Triplets) -> None:
    """Write beside and rename, so that no process ever reads half an entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    u, s, vh = triplets
    entry = {"u": u, "s": s, "vh": vh, "digest": _digest(*triplets)}
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            torch.save(entry, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.chmod(0o644)
    temporary.replace(path)
