"""Domain-generalised semantic segmentation: the task as the training loop sees it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.backbones import load_backbone
from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.protocol_parts import Domain
from benchmarks.segmentation.data import batches
from benchmarks.segmentation.evaluate import Evaluation, evaluate
from benchmarks.segmentation.mask2former import Segmenter

__all__ = ["Evaluation", "batches", "build", "domains", "evaluate", "fingerprints"]


def build(protocol: Protocol) -> Segmenter:
    """The model before a method adapts it: pretrained weights in, head freshly initialised.

    The head draws from torch's global generator, which the caller seeds.

    Raises:
        UserError: a backbone, card or size that does not fit.
    """
    cards = [load_card(domain.card) for domain in (*protocol.source, *domains(protocol))]
    for card in cards:
        if card.classes != cards[0].classes:
            raise UserError(
                f"{protocol.name}: {card.name} and {cards[0].name} have different classes; use "
                "data sets of one label space"
            )
    backbone = load_backbone(protocol.backbone)
    return Segmenter(backbone, protocol.backbone.features, protocol.head, len(cards[0].classes))


def domains(protocol: Protocol) -> list[Domain]:
    """Every scored domain: held-out source first, then the targets."""
    return [*protocol.validation, *protocol.targets, *protocol.extra]


def fingerprints(protocol: Protocol, data_root: Path) -> dict[str, str]:
    """Domain name -> fingerprint of its files, sources included (see `Card.fingerprint`).

    Raises:
        UserError: a data folder is not as its card says.
    """
    root = Path(data_root)
    return {
        domain.domain: load_card(domain.card).fingerprint(root, domain.split)
        for domain in (*protocol.source, *domains(protocol))
    }
