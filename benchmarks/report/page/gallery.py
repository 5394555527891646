"""The gallery of the page: a street, its ground truth, and what every row made of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.cards import IGNORE, load_card
from benchmarks.data.pictures import PALETTE
from benchmarks.errors import UserError
from benchmarks.report.page.data import Section, domain_name
from benchmarks.segmentation import predictions
from benchmarks.segmentation.pictures import Street, domains_of, streets


@dataclass(frozen=True)
class Exhibit:
    """One street.

    Attributes:
        image, truth: as data: addresses.
        rows: method -> its prediction, and the share of pixels that are right, percent.
        spread: highest minus lowest share.
    """

    domain: str
    name: str
    image: str
    truth: str
    rows: dict[str, tuple[str, float]]
    spread: float


def legend(section: Section) -> list[tuple[str, str]]:
    """Class and its colour, #rrggbb."""
    card = load_card(section.protocol.scored_domains[0].card, "label")
    colours = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE.tolist())
    return [*zip(card.classes, colours, strict=False)]


def exhibits(
    section: Section, places: Mapping[str, Path], data_root: Path | None
) -> tuple[list[Exhibit], str]:
    """The streets of a table, most different first; or none, and why in one line.

    One seed of every row of the default placement: the first that kept its predictions.
    """
    if section.protocol.task != "segmentation":
        return [], ""
    if data_root is None or not data_root.is_dir():
        return [], "No gallery: the images are not here; name their folder with --data-root."
    block = section.table.blocks[0]
    records = {}
    for row in block.rows:
        for record in row.records:
            path = places.get(record.digest)
            if record.status == "done" and path and list(path.parent.glob(f"{path.stem}.*.png")):
                records[row.label] = path, record
                break
    if not records:
        return [], "No gallery: the runs of these records kept no predictions."
    path, record = next(iter(records.values()))
    made = []
    try:
        for domain in domains_of(record, path):
            card = load_card(domain.card, "label")
            now = card.fingerprint(data_root, domain.split, exclude=domain.exclude)
            if now != record.data.get(domain.domain):
                return [], f"No gallery: {domain.domain} here is not the data of the records."
            kept = {
                label: predictions.read(file.with_suffix(f".{domain.domain}.png"))
                for label, (file, _) in records.items()
            }
            names = [one.name for one in next(iter(kept.values()))]
            for place, street in enumerate(streets(domain, data_root, names)):
                made.append(_exhibit(section, domain.domain, street, kept, place))
    except UserError as error:
        return [], f"No gallery: {error}"
    return sorted(made, key=lambda one: -one.spread), ""


def _exhibit(
    section: Section,
    domain: str,
    street: Street,
    kept: Mapping[str, list[predictions.Prediction]],
    place: int,
) -> Exhibit:
    known = street.classes != IGNORE
    rows = {}
    for label, images in kept.items():
        classes = images[place].classes
        right = 100 * float(np.mean(classes[known] == street.classes[known])) if known.any() else 0
        rows[label] = _indexed(classes), right
    shares = [share for _, share in rows.values()]
    return Exhibit(
        domain_name(section, domain),
        street.name,
        _jpeg(street.image),
        _indexed(street.classes),
        rows,
        max(shares) - min(shares),
    )


def _indexed(classes: np.ndarray) -> str:
    """A PNG with as few colours as the picture has; void is black."""
    present, indices = np.unique(classes, return_inverse=True)
    colours = [PALETTE[one].tolist() if one < len(PALETTE) else [0, 0, 0] for one in present]
    picture = Image.fromarray(indices.reshape(classes.shape).astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    file = io.BytesIO()
    bits = next(bits for bits in (1, 2, 4, 8) if len(present) <= 2**bits)
    picture.save(file, "PNG", optimize=True, bits=bits)
    return _address(file, "png")


def _jpeg(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    return _address(file, "jpeg")


def _address(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
