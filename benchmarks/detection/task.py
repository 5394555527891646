"""Domain-generalised object detection: the task as the training loop sees it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from benchmarks.backbones import load_backbone
from benchmarks.data.box_cards import load_box_card
from benchmarks.detection import engines
from benchmarks.detection.data import batches
from benchmarks.detection.evaluate import evaluate
from benchmarks.errors import UserError
from benchmarks.protocol import DetectionProtocol
from benchmarks.protocol_parts import Domain

__all__ = ["batches", "build", "domains", "evaluate", "fingerprints"]


def build(protocol: DetectionProtocol) -> nn.Module:
    """The model before a method adapts it: pretrained weights in, head freshly initialised.

    The head draws from torch's global generator, which the caller seeds.

    Raises:
        UserError: a backbone, card or size that does not fit, or an engine that is not installed.
    """
    engine = engines.load(protocol.engine)
    cards = [load_box_card(domain.card) for domain in (*protocol.source, *domains(protocol))]
    for card in cards:
        if card.classes != cards[0].classes:
            raise UserError(
                f"{protocol.name}: {card.name} and {cards[0].name} have different classes; use "
                "data sets of one label space"
            )
    backbone = load_backbone(protocol.backbone)
    classes = len(cards[0].classes)
    return engine.Detector(backbone, protocol.backbone.features, protocol.head, classes)


def domains(protocol: DetectionProtocol) -> list[Domain]:
    """Every scored domain: held-out source, test splits of the sources, then the targets."""
    return [domain for group in protocol.scored.values() for domain in group]


def fingerprints(protocol: DetectionProtocol, data_root: Path) -> dict[str, str]:
    """Domain name -> fingerprint of its files, sources included (see the card's `fingerprint`).

    Where a list file says which images belong to a domain, "<domain>.list" names it with its hash.

    Raises:
        UserError: a data folder is not as its card says.
    """
    root, prints = Path(data_root), {}
    for domain in (*protocol.source, *domains(protocol)):
        card = load_box_card(domain.card)
        prints[domain.domain] = card.fingerprint(root, domain.split)
        if listing := card.listing(root, domain.split):
            prints[f"{domain.domain}.list"] = listing
    return prints
