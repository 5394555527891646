"""The small random backbones of the conformance checks, with 4 blocks."""

from torch import nn

from benchmarks.conformance import method_under_test

VITS = method_under_test.KINDS[:2]  # plain ones, fused q, k, v by nature


def build_vit(kind: str, **options: bool) -> nn.Module:
    """A backbone of one kind, the same weights on every call."""
    return method_under_test.build_vit(kind, depth=4, **options)
