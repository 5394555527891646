"""SoMA and the interface under which methods of adapting a pretrained ViT are compared.

from soma import SoMA, adapt, split_qkv
split_qkv(vit)              # after the pretrained weights are in
adapt(SoMA(rank=16), vit)   # the parameters that learn now require gradients
"""

from soma.backbone import merge_qkv, split_qkv
from soma.checkpoint import AdapterError, load_adapter, save_adapter
from soma.low_rank import LowRank, LowRankLinear
from soma.method import Method, NotApplicable, NotFoldable, adapt
from soma.soma import SoMA

__all__ = [
    "AdapterError",
    "LowRank",
    "LowRankLinear",
    "Method",
    "NotApplicable",
    "NotFoldable",
    "SoMA",
    "adapt",
    "load_adapter",
    "merge_qkv",
    "save_adapter",
    "split_qkv",
]
