"""Is a data set complete, readable and the one we mean, and a record what its run left?

Files are read just as a run reads them.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from benchmarks.data.cards import Card, load_card
from benchmarks.data.files import Absent, Pair
from benchmarks.data.loading import loaded
from benchmarks.detection import metrics
from benchmarks.detection import reading as detection
from benchmarks.detection.predictions import read
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.record import Record, load_kept
from benchmarks.report.records import check_metrics, check_scores
from benchmarks.segmentation import data as segmentation
from benchmarks.tasks import PROTOCOLS
from benchmarks.worlds.worlds import MANIFEST
from benchmarks.yaml_files import validate


@dataclass(frozen=True)
class Finding:
    """What an image and its ground truth hold, or why they cannot be used.

    Attributes:
        fault: one line, empty where all is well; nothing else is set then.
        size: (height, width) of the image.
        counts: pixels or boxes of each class of the card.
        repaired: what is handled in memory (see `detection.reading.Objects`).
        digests: SHA-256 of image and ground truth.
    """

    fault: str = ""
    size: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()
    repaired: Counter = field(default_factory=Counter)
    digests: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Summary:
    """What a split holds whose files are all sound.

    Attributes:
        images: how many belong to the split, after its rule for images without a box.
        edition: which known edition has that many; "" for none.
        counted: what `classes` counts of each class.
        sizes: "width x height" -> images.
        empty: images without a pixel or box of any class.
        repaired: see `Finding`.
        listing: the list file with its hash, where the split has one.
        fingerprint: what records carry.
        contents: the same, over the SHA-256 of every file in place of its number of bytes.
    """

    images: int
    edition: str
    counted: Literal["pixels", "boxes"]
    sizes: dict[str, int]
    classes: dict[str, int]
    empty: int
    repaired: dict[str, int]
    listing: str | None
    fingerprint: str
    contents: str


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        faults: one line each.
        names: fault -> name of its image, "" where it is not one image's.
        splits: split -> summary; none where a file is at fault.
        absent: split -> why it was left out.
        images: how many were read, in so many seconds.
    """

    faults: list[str]
    splits: dict[str, Summary]
    absent: dict[str, str]
    images: int
    seconds: float
    names: dict[str, str] = field(default_factory=dict)


def verify(
    card: Card,
    root: Path,
    splits: tuple[str, ...],
    workers: int,
    partial: bool,
    exclude: Collection[str] = (),
) -> Report:
    """Read every file of some splits of a data set; a file of several splits is read once.

    Args:
        card: the data set.
        root: the data root.
        splits: names of splits.
        workers: processes that read; 0 reads in this one.
        partial: whether splits may be missing, or hold a number of images that no known edition
            has. The rendered mini worlds always may.
        exclude: names of images that are left out, as `Domain.exclude`.

    Raises:
        UserError: no such data set or split, none of the splits is there, a process was killed, no
            split has a name to exclude.
    """
    home, partial = card.home(root), partial or _rendered(root)
    faults: dict[str, str] = {}
    absent: dict[str, str] = {}
    pairs: dict[str, list[Pair]] = {}
    left_out: dict[str, set[str]] = {}
    for split in splits:
        card.split(split)
        try:
            left_out[split] = set(exclude) & card.names(root, split) if exclude else set()
            pairs[split] = card.pairs(root, split, faults, left_out[split])
        except Absent as error:
            absent[split] = str(error)
        except UserError as error:
            faults[str(error)] = ""
    # Some splits are published alone; none at all means another folder.
    if len(absent) == len(splits):
        raise UserError(next(iter(absent.values())))
    if unknown := set(exclude).difference(*left_out.values()):
        raise UserError(f"--exclude: no image of {home} is called {min(unknown)!r}")
    if not partial:
        faults |= dict.fromkeys(absent.values(), "")
    started = time.perf_counter()
    findings = _read(list(dict.fromkeys(chain(*pairs.values()))), card, workers)
    seconds = time.perf_counter() - started
    faults |= {finding.fault: pair.name for pair, finding in findings.items() if finding.fault}
    summaries = {}
    for split, members in pairs.items() if not faults else ():
        read = {pair: findings[pair] for pair in members}
        summaries[split] = _summary(card, root, split, read, left_out[split])
    for split, summary in summaries.items() if not partial else ():
        if not summary.edition:
            known = ", ".join(f"{count:,} ({name})" for name, count in card.editions(split).items())
            line = (
                f"{home}: {split} has {summary.images:,} images, known are {known}; unpack the "
                "rest, or accept them with --partial"
            )
            faults[line] = ""
    return Report(list(faults), summaries, absent, len(findings), seconds, faults)


def verify_record(path: Path, root: Path) -> list[str]:
    """Score again what is kept beside a record, and compare.

    Args:
        path: of the record, with its .npz or its detections beside it.
        root: the data root; detections are scored against the boxes there.

    Returns:
        The domains that were scored again.

    Raises:
        UserError: the record was edited, or its scores are not those of what is kept; nothing is
            kept; the data are not those of the record.
    """
    record = load_kept(path)
    try:
        record.check()
        check_scores(record, path)
        if record.cell["protocol"]["task"] == "segmentation":
            arrays = path.with_suffix(".npz")
            kept = np.load(arrays) if arrays.is_file() else []
            again = [name for name in kept if name in record.data]
        else:
            again = _detections_again(record, path, root)
    except ValueError as error:
        raise UserError(
            f"{path}: not as its run left it: {error}; delete it and {record.again}"
        ) from None
    if not again:
        raise UserError(f"{path}: nothing is kept beside it to score again; {record.again}")
    return again


def _detections_again(record: Record, path: Path, root: Path) -> list[str]:
    last = max(record.evaluations, key=lambda evaluation: evaluation.iteration, default=None)
    fields = PROTOCOLS["detection"].roles.values()
    specs = [spec for field in fields for spec in record.cell["protocol"].get(field, ())]
    again = []
    for domain in (validate(Domain, spec, str(path)) for spec in specs):
        name, card = domain.domain, load_card(domain.card, "boxes")
        kept = path.with_suffix(f".{name}.json.gz")
        if last is None or not kept.is_file():
            continue
        if card.fingerprint(root, domain.split, exclude=domain.exclude) != record.data[name]:
            raise UserError(f"{root}: {name} is not the data that {path} was made from")
        pairs = detection.evaluation_pairs(domain, root)
        detections = read(kept, [pair.name for pair in pairs], len(card.classes))
        truth = [detection.read_objects(pair, card) for pair in pairs]
        scores = metrics.scores(truth, detections, card.classes)
        check_metrics(name, last.domains[name], scores, f"the detections in {kept.name}")
        again.append(name)
    return again


def _rendered(root: Path) -> bool:
    return (root / MANIFEST).is_file()


def _read(pairs: list[Pair], card: Card, workers: int) -> dict[Pair, Finding]:
    """Findings in the order of the pairs; a bar with the time left on a terminal."""
    console = Console(stderr=True)
    findings = track(
        loaded(_Findings(pairs, card), range(len(pairs)), workers),
        card.name,
        total=len(pairs),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    try:
        return dict(zip(pairs, findings, strict=True))
    # All that happens to a pair is in its finding: this is of the process that read it.
    except RuntimeError as error:
        raise UserError(f"{card.name}: {error}; take fewer --workers") from None


class _Findings(Dataset):
    """The finding of each pair."""

    def __init__(self, pairs: list[Pair], card: Card) -> None:
        self.pairs, self.card = pairs, card

    def __getitem__(self, index: int) -> Finding:
        pair = self.pairs[index]
        try:
            return _finding(pair, self.card)
        except UserError as error:
            return Finding(str(error))
        except Exception as error:  # noqa: BLE001 - broken files find gaps in decoders
            line = f"{pair.image}: it or {pair.label} cannot be read ({error!r}); unpack both again"
            return Finding(str(UserError(line)))


def _finding(pair: Pair, card: Card) -> Finding:
    digests = _digest(pair.image), _digest(pair.label)
    if card.boxes:
        image, objects = detection.read_pair(pair, card)
        counts = np.bincount(objects.labels, minlength=len(card.classes))
        return Finding("", image.shape[:2], tuple(counts.tolist()), objects.repaired, digests)
    image, label = segmentation.read_pair(pair, card)
    # Void is 255 and no class.
    counts = np.bincount(label.ravel(), minlength=256)[: len(card.classes)]
    return Finding("", image.shape[:2], tuple(counts.tolist()), digests=digests)


def _digest(file: Path) -> str:
    """SHA-256 of a file. A decoder passes over some checksums inside a PNG: they are checked here.

    Raises:
        UserError: no regular file, not readable, no UTF-8 in its name, a PNG with wrong checksums.
    """
    # Asked first: a pipe would be waited for without end.
    if not file.is_file():
        raise UserError(f"{file}: is a broken link, a folder or no regular file; unpack it again")
    try:
        str(file).encode()
        if file.suffix.lower() == ".png":
            with Image.open(file) as opened:
                # Pillow's `verify` reads the checksums that its decoder passes over.
                opened.verify()
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except UnicodeEncodeError:
        raise UserError(f"{file}: its name is not UTF-8; unpack it again") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read ({error}); copy or unpack it again") from None


def _summary(
    card: Card,
    root: Path,
    split: str,
    findings: dict[Pair, Finding],
    exclude: Collection[str],
) -> Summary:
    values = findings.values()
    empty = sum(not any(finding.counts) for finding in values)
    boxes = card.boxes
    dropped = empty if boxes and card.split(split).empty == "drop" else 0
    images = len(findings) - dropped
    editions = {count: name for name, count in card.editions(split).items()}
    totals = np.sum([finding.counts for finding in values], axis=0)
    digests = {
        file: digest
        for pair, finding in findings.items()
        for file, digest in zip((pair.image, pair.label), finding.digests, strict=True)
    }
    return Summary(
        images=images,
        edition="rendered mini world" if _rendered(root) else editions.get(images, ""),
        counted="boxes" if boxes else "pixels",
        sizes=dict(Counter(f"{width}x{height}" for height, width in (f.size for f in values))),
        classes=dict(zip(card.classes, totals.tolist(), strict=True)),
        empty=empty,
        repaired=dict(sum((finding.repaired for finding in values), Counter())),
        listing=card.listing(root, split) if boxes else None,
        fingerprint=card.fingerprint(root, split, exclude=exclude),
        contents=card.fingerprint(root, split, digests.__getitem__, exclude),
    )
