"""SALT: singular value adaptation with a low-rank transformation."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from soma.backbone import parameter_role
from soma.initialise import Triplets
from soma.spectral import Relu, Spectral, SpectralLinear


@dataclass(frozen=True, kw_only=True)
class SALT(Spectral):
    """Scale and shift of the largest singular values, a low-rank change among all others.

    y = U M V^T x + b with W = U diag(S) V^T. M is diag(a S + c) on the largest singular values and
    diag(S) + X Y on the others. a, c, X, Y and what `also` names learn; U, S and V do not, and are
    saved with the adapter, since X Y mixes singular vectors whose signs depend on the library. a
    and c do not decay: towards zero that would delete a component.

    Published on a fused qkv; here q, k and v are split as for every method. The penalty on the
    changes, zero in the released configuration, is left out: a method adds nothing to the loss.

    Attributes:
        share: of the singular values of a weight that are scaled and shifted, at least one.
        rank: r of the change X Y of the others. The released configuration says 4, though its code
            for SAM 2 takes 256, on ViT-L 45 M parameters.
        relu: "diagonal": singular values do not fall below zero. "full": no entry of the whole core
            matrix does, as released; half of X Y is lost to it. "none".
        init: "kaiming": X drawn, Y zero, an exact start (released for SAM 2). "normal": both from
            N(0, 0.01^2), which is none (released for SAM).
        also: what else learns: "norms" and "pos_embed" as published, "biases" of the targets. Norms
            are known by name: a part of it holds "norm".

    Raises:
        ValueError: a share or rank out of range, or an unknown word in `relu`, `init` or `also`.
    """

    source: ClassVar[str] = (
        "SALT, arXiv 2503.16055; github.com/BioMedIA-MBZUAI/SALT, commit 7314877. What relu cuts "
        "off is our reading; the code's is full"
    )

    share: float = 0.1
    rank: int = 4
    relu: Relu = "diagonal"
    init: Literal["kaiming", "normal"] = "kaiming"
    also: tuple[str, ...] = ("norms", "pos_embed")

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML gives a list, and a frozen method has to be hashable.
        object.__setattr__(self, "also", tuple(self.also))
        if not 0 <= self.share < 1 or self.rank < 1:
            raise ValueError(f"share {self.share}, rank {self.rank}: in [0, 1), at least 1")
        if self.relu not in ("none", "diagonal", "full"):
            raise ValueError(f"relu {self.relu!r}: expected none, diagonal or full")
        if self.init not in ("kaiming", "normal"):
            raise ValueError(f"init {self.init!r}: expected kaiming or normal")
        if unknown := set(self.also) - {"norms", "pos_embed", "biases"}:
            raise ValueError(f"also: {sorted(unknown)}, only norms, pos_embed, biases")

    @property
    def exact_start(self) -> bool:
        """Where Y starts at zero."""
        return self.init == "kaiming"

    def layer(self, linear: nn.Linear, triplets: Triplets) -> SpectralLinear:
        """Scales of one, shifts of zero, X and Y as `init` says.

        Raises:
            ValueError: the rank is larger than the number of components left for X Y.
        """
        s = triplets[1]
        # At least one, as in the released code: a narrow weight would have none to scale.
        top = max(1, int(self.share * len(s)))
        if self.rank > len(s) - top:
            raise ValueError(f"rank {self.rank}: X Y acts on {len(s) - top} singular components")
        x, y = self._draw(len(s) - top, like=s)
        ones, zeros = torch.ones_like(s[:top]), torch.zeros_like(s[:top])
        return SpectralLinear(linear, triplets, scale=ones, shift=zeros, xy=(x, y), relu=self.relu)

    def _draw(self, rest: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """X (rest, rank) and Y (rank, rest), drawn on the CPU like all starts."""
        if like.is_meta:
            return like.new_empty(rest, self.rank), like.new_empty(self.rank, rest)
        x = torch.empty(rest, self.rank, dtype=like.dtype)
        y = torch.zeros(self.rank, rest, dtype=like.dtype)
        if self.init == "kaiming":
            # Not the usual sqrt(5): as released for SAM 2.
            nn.init.kaiming_uniform_(x, a=math.sqrt(20))
        else:
            nn.init.normal_(x, std=0.01), nn.init.normal_(y, std=0.01)
        return x.to(like.device), y.to(like.device)

    def trains(self, name: str) -> bool:
        """What `also` names."""
        path, _, leaf = name.rpartition(".")
        is_bias = leaf == "bias" and parameter_role(name) in self.targets
        return (
            ("norms" in self.also and "norm" in path)
            or ("pos_embed" in self.also and name == "pos_embed")
            or ("biases" in self.also and is_bias)
        )
