"""What a real run of a protocol reads, and whether it is here: data sets and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import weights
from benchmarks.backbones import FOLDER, checked
from benchmarks.data.box_cards import load_any_card
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.protocol_parts import HUB, RANDOM, Backbone, Domain


@dataclass(frozen=True)
class Split:
    """One split of one data set: its number of images, as found or else as its card says."""

    images: int
    found: bool
    words: str


Splits = dict[tuple[str, str], Split]  # by names of card and split


def data(protocol: Protocol, root: Path | None) -> Splits:
    """What is there of each split that the protocol learns from or scores.

    Args:
        protocol: what would be run.
        root: folder of the data sets, where it is known.
    """
    scored = (domain for group in protocol.scored.values() for domain in group)
    wanted = {(domain.card, domain.split): None for domain in (*protocol.source, *scored)}
    return {(card, split): _split(protocol, root, card, split) for card, split in wanted}


def _split(protocol: Protocol, root: Path | None, name: str, split: str) -> Split:
    card = load_any_card(name)
    expected = card.split(split).count
    way = "scripts/download_datasets.sh --list names ways to get it"
    if protocol.data_root is not None:
        way = "python -m benchmarks mini render makes it"
    if root is None:
        return Split(expected, False, f"missing: say with --data-root where {card.title} is; {way}")
    if not (root / card.folder).is_dir():
        return Split(expected, False, f"missing: no folder {root / card.folder}; {way}")
    try:
        found = len(card.pairs(root, split))
    except UserError as error:
        return Split(expected, False, f"missing: {error}")
    return Split(found, True, f"{found:,} images in {root / card.folder}")


def scored_images(domain: Domain, total: int) -> int:
    """How many of the `total` images of its split a domain scores."""
    count = domain.holdout or total - len(domain.exclude)
    return min(count, domain.limit) if domain.limit else count


def backbone(spec: Backbone) -> str:
    """Whether the weights of a backbone are here, in words."""
    if spec.weights == RANDOM:
        return "random, as the protocol says"
    try:
        if spec.weights != HUB:
            file = FOLDER / spec.weights
        elif (file := weights.in_cache(spec.name)) is None:
            repository, name, _ = weights.on_hub(spec.name)
            return f"missing: a run fetches {name} of {repository} from the hub at its start"
        return f"{file}, SHA-256 {checked(file, spec.sha256)[:16]}..."
    except UserError as error:
        return f"missing: {error}"
