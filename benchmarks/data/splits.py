"""Which of the pairs of a domain are trained on and which are scored, in every task."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data.files import Pair
from benchmarks.errors import UserError
from benchmarks.protocol import Domain


def training_part(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that may be trained on; `folder` is where they lie.

    Raises:
        UserError: an excluded pair is not there; nothing is left to train on.
    """
    pairs = _not_excluded(domain, pairs)
    kept = pairs[: len(pairs) - domain.holdout] if len(pairs) > domain.holdout else []
    if not kept:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images, {domain.holdout} of them held out, leave none "
            f"to train on; add images to {folder} or hold out fewer"
        )
    return kept[: domain.limit]


def evaluation_part(domain: Domain, pairs: list[Pair], folder: Path) -> list[Pair]:
    """Those of all pairs of a domain that are scored; `folder` is where they lie.

    Raises:
        UserError: an excluded pair is not there; fewer images than are held out.
    """
    pairs = _not_excluded(domain, pairs)
    if len(pairs) < domain.holdout:
        raise UserError(
            f"{domain.domain}: {len(pairs)} images are fewer than the {domain.holdout} held out; "
            f"add images to {folder} or hold out fewer"
        )
    return pairs[len(pairs) - domain.holdout if domain.holdout else 0 :][: domain.limit]


def _not_excluded(domain: Domain, pairs: list[Pair]) -> list[Pair]:
    unknown = sorted(set(domain.exclude) - {pair.name for pair in pairs})
    if unknown:
        raise UserError(
            f"{domain.domain}: exclude: no pair of {domain.card} is called {unknown[0]!r}; correct "
            "the list"
        )
    return [pair for pair in pairs if pair.name not in domain.exclude]
