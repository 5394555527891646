"""Frozen backbone: only the head learns."""

from dataclasses import dataclass
from typing import ClassVar

from soma import Method


@dataclass(frozen=True, kw_only=True)
class Freeze(Method):
    """Nothing of the backbone learns; `start_block` changes nothing."""

    source: ClassVar[str] = (
        "standard practice; configs/frozen_vfms of github.com/ysj9909/SoMA 7ea8c0e"
    )
