"""The pictures of a finished run: what it found beside what is there, one sheet per domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import yaml_files
from benchmarks.data.box_cards import BoxCard, load_box_card
from benchmarks.data.cards import Pair
from benchmarks.detection import predictions
from benchmarks.detection.detections import Detections
from benchmarks.detection.pictures import Sample, contact_sheet
from benchmarks.detection.reading import evaluation_pairs, read_pair
from benchmarks.errors import UserError
from benchmarks.protocol_parts import Domain
from benchmarks.record import Record

ROLES = ("validation", "source_test", "targets")  # keys of a detection protocol


def write_sheets(path: Path, data_root: Path, out: Path, images: int) -> Iterator[Path]:
    """Write `predictions_<domain>.png` for every scored domain of a record; no model is run.

    Nobody picks the images: they are evenly spaced over the domain's list, which is in name order,
    the first and the last among them. Boxes are those of the last iteration, kept beside the record
    as `<record>.<domain>.json.gz`.

    Args:
        path: of the record.
        data_root: folder of the data sets.
        out: folder of the pictures.
        images: how many of each domain, from 1 on; all where it has fewer.

    Yields:
        Each file, as it is written.

    Raises:
        UserError: no finished detection record, other data than its own, or a file of predictions
            or of data that cannot be read.
    """
    record = Record.load(path)
    protocol = record.cell["protocol"]
    if protocol["task"] != "detection":
        raise UserError(f"{path}: a record of {protocol['task']}; pictures are made of detection")
    if record.status != "done":
        raise UserError(f"{path}: no predictions, its cell is {record.status}; run it again")
    for spec in (each for role in ROLES for each in protocol[role]):
        domain = yaml_files.validate(Domain, spec, str(path))
        card, name = load_box_card(domain.card), domain.domain
        if card.fingerprint(data_root, domain.split) != record.data.get(name):
            raise UserError(
                f"{data_root}: {name} is not the one that {path} was scored on; give the folder of "
                "that one with --data-root, or run the cell again"
            )
        pairs = evaluation_pairs(domain, data_root)
        found = predictions.read(path.with_suffix(f".{name}.json.gz"), [p.name for p in pairs])
        samples = _evenly_spaced(pairs, found, card, images)
        title = (
            f"{name}: {record.label} seed {record.seed} ({record.placement}), {record.protocol} "
            f"version {record.protocol_version}, engine {record.cell['engine']}, "
            f"{len(samples)} of {len(pairs)} images"
        )
        file = out / f"predictions_{name}.png"
        contact_sheet(file, title, samples, card.classes)
        yield file


def _evenly_spaced(
    pairs: Sequence[Pair], found: Sequence[Detections], card: BoxCard, count: int
) -> list[Sample]:
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [
        Sample(pairs[place].name, *read_pair(pairs[place], card), found[place]) for place in places
    ]
