"""SVF and its relatives: only singular values learn."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from soma.initialise import Triplets
from soma.spectral import Spectral, SpectralLinear


@dataclass(frozen=True, kw_only=True)
class SVF(Spectral):
    """The singular values of each weight learn, its singular vectors and biases stay.

    y = U diag(a S + c) V^T x + b with W = U diag(S) V^T. `form` says which of a (starts at one) and
    c (at zero) learn; neither decays. The largest `rank` of them alone are SVFit; scaled, shifted
    and cut off at zero they are S-SAM. Few numbers learn: it wants a far higher rate than LoRA.

    Attributes:
        form: "values": each value learns itself (stored as its difference from the pretrained one).
            "scale": a factor per value, which moves large values more. "scale+shift": both.
        rank: how many values learn, from the largest on; None for all.
        relu: negative values count as zero, as S-SAM has it.

    Raises:
        ValueError: an unknown `form`, or a rank below one.
    """

    source: ClassVar[str] = (
        "SVF, arXiv 2206.06122; rank: SVFit, arXiv 2409.05926; scale+shift with relu: S-SAM, in "
        "github.com/BioMedIA-MBZUAI/SALT, commit 7314877"
    )

    form: Literal["values", "scale", "scale+shift"] = "values"
    rank: int | None = None
    relu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("values", "scale", "scale+shift"):
            raise ValueError(f"form {self.form!r}: expected values, scale or scale+shift")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank}: at least 1, or None for all")

    def components(self, count: int) -> int:
        """The largest `rank`, or all.

        Raises:
            ValueError: the weight has fewer.
        """
        if self.rank is not None and self.rank > count:
            raise ValueError(f"rank {self.rank}: the weight has {count} singular components")
        return self.rank or count

    def layer(self, linear: nn.Linear, triplets: Triplets) -> SpectralLinear:
        """Scales of one, shifts of zero."""
        s = triplets[1]
        scale = torch.ones_like(s) if "scale" in self.form else None
        shift = None if self.form == "scale" else torch.zeros_like(s)
        relu = "diagonal" if self.relu else "none"
        return SpectralLinear(linear, triplets, scale=scale, shift=shift, relu=relu)
