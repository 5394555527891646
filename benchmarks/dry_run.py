"""What a cell would take, measured on a few rendered images with random weights, and projected."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks import backbones as weights
from benchmarks.backbones import FOLDER, checked
from benchmarks.cell import Cell, fingerprints
from benchmarks.data.cards import load_card
from benchmarks.data.transforms import resized_shape
from benchmarks.errors import UserError
from benchmarks.memory import give_back_freed_blocks
from benchmarks.protocol import HUB, RANDOM, Backbone, Domain, Protocol
from benchmarks.record import Record
from benchmarks.run import run_cell
from benchmarks.worlds import scenes, stand_in, weather


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
    scored = protocol.scored_domains
    wanted = {(domain.card, domain.split): domain for domain in (*protocol.source, *scored)}
    return {key: _split(protocol, root, domain) for key, domain in wanted.items()}


def _split(protocol: Protocol, root: Path | None, domain: Domain) -> Split:
    card, split = load_card(domain.card), domain.split
    expected = card.split(split).count
    way = f"scripts/download_datasets.sh --dataset {card.name} gets it, or says how"
    if protocol.data_root is not None:
        way = "python -m benchmarks mini render makes it"
    if root is None:
        return Split(expected, False, f"missing: say with --data-root where {card.title} is; {way}")
    if not (root / card.folder).is_dir():
        return Split(expected, False, f"missing: no folder {root / card.folder}; {way}")
    try:
        count = len(card.pairs(root, split, exclude=domain.exclude))
    except UserError as error:
        return Split(expected, False, f"missing: {error}")
    words = f"{count:,} images in {root / card.folder}"
    return Split(count + len(domain.exclude), True, words)


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


STEPS = 2  # the first one warms up and is not counted
IMAGES = 2  # of each source


class CannotRun(UserError):
    """This cell cannot be run here; others of its protocol may."""


@dataclass(frozen=True)
class Measured:
    """What a shortened cell left.

    Attributes:
        record: of the cell, with its costs.
        domain: the one that was scored, on one image.
        size: (height, width) of that image.
        device: in words.
    """

    record: Record
    domain: str
    size: tuple[int, int]
    device: str


def measure(cell: Cell, device: str) -> Measured:
    """Run a cell for `STEPS` steps and one test image of the largest size.

    Args:
        cell: what would be run; its data and its weights need not be there.
        device: as in `run.run_cell`.

    Raises:
        CannotRun: the method does not fit the backbone, a loss is not finite, or memory of the
            device does not suffice.
        UserError: device, protocol or method do not fit.
    """
    domain = max(cell.protocol.scored_domains, key=lambda d: pixels_of(cell.protocol, d))
    protocol = _shortened(cell.protocol, domain, twice=device != "cpu")
    if device == "cpu":
        give_back_freed_blocks()  # a run keeps them, which is faster and takes more memory
    try:
        with tempfile.TemporaryDirectory() as folder, _splits_not_kept():
            root = Path(folder)
            read = (*protocol.source, *protocol.targets)
            for split in {(domain.card, domain.split): domain for domain in read}.values():
                card, size = load_card(split.card), native_size(protocol, split)
                stand_in.write_split(card, root, split.split, size, IMAGES)
            short = replace(cell, protocol=protocol, data=fingerprints(protocol, root))
            record = run_cell(short, root / "out", root, device)
    except torch.OutOfMemoryError as error:
        raise CannotRun(
            f"{cell.label} on {protocol.name}: the memory of {device} does not suffice; try --set "
            "recipe.accumulate=2 or --set recipe.activation_checkpointing=true"
        ) from error
    if record.status != "done":
        raise CannotRun(f"{cell.label} on {protocol.name}: {record.reason}")
    here = record.environment
    words = f"{device} ({here.cpu if device == 'cpu' else here.gpu}, {here.threads} threads)"
    return Measured(record, domain.domain, _test_size(protocol, domain), words)


def _shortened(protocol: Protocol, domain: Domain, twice: bool) -> Protocol:
    """Few steps and one test image, random weights, no idle loader processes.

    With `twice` the image is scored after each step: on a GPU the first time chooses kernels.
    """
    whole = {"holdout": 0, "exclude": (), "limit": None}
    source = tuple(domain.model_copy(update=whole) for domain in protocol.source)
    random = {"weights": RANDOM, "sha256": None, "resize": None}
    recipe = {
        "iterations": STEPS,
        "evaluate_at": (1,) if twice else (),
        "loader_workers": min(protocol.recipe.loader_workers, os.cpu_count() or 1),
    }
    return protocol.model_copy(
        update={
            **dict.fromkeys(protocol.roles.values(), ()),
            "source": source,
            "targets": (domain.model_copy(update=whole | {"limit": 1}),),
            "backbone": protocol.backbone.model_copy(update=random),
            "recipe": protocol.recipe.model_copy(update=recipe),
            "starts_from": None,
        }
    )


@contextmanager
def _splits_not_kept() -> Iterator[None]:
    before = os.environ.get("SOMA_CACHE")
    os.environ["SOMA_CACHE"] = ""
    try:
        yield
    finally:
        del os.environ["SOMA_CACHE"]
        if before is not None:
            os.environ["SOMA_CACHE"] = before


def native_size(protocol: Protocol, domain: Domain) -> tuple[int, int]:
    """(height, width) of the files of a domain; a protocol with a folder of its own reads worlds.

    Raises:
        UserError: the card states no size.
    """
    card = load_card(domain.card)
    if protocol.data_root is not None:
        return weather.SIZE if card.boxes else scenes.SIZE
    size = card.native_size or card.typical_size
    if size is None:
        raise UserError(f"datasets/{card.name}.yaml: sizes vary; give a typical_size (dry runs)")
    return size


def _test_size(protocol: Protocol, domain: Domain) -> tuple[int, int]:
    height, width = native_size(protocol, domain)
    read = (height // 2, width // 2) if domain.halve else (height, width)
    return domain.pad or resized_shape(read, domain)


def pixels_of(protocol: Protocol, domain: Domain) -> int:
    """Of an image of `domain`, at its test size."""
    height, width = _test_size(protocol, domain)
    return height * width


@dataclass(frozen=True)
class Projection:
    """Hours of a whole cell, from one step and one image; other test sizes in proportion to pixels.

    Attributes:
        adapt: hours of adapting the backbone.
        train: hours of all steps.
        evaluate: hours of all evaluations.
        evaluations: how often everything is scored.
        images: each time.
    """

    adapt: float
    train: float
    evaluate: float
    evaluations: int
    images: int

    @property
    def total(self) -> float:
        """Hours of the whole cell."""
        return self.adapt + self.train + self.evaluate


def project(protocol: Protocol, measured: Measured, splits: Splits) -> Projection:
    """What a cell would take, on as many images as `splits` hold."""
    recipe, images, pixels = protocol.recipe, 0, 0
    for domain in protocol.scored_domains:
        count = scored_images(domain, splits[domain.card, domain.split].images)
        images += count
        pixels += count * pixels_of(protocol, domain)
    evaluations = len({*recipe.evaluate_at, recipe.iterations})
    height, width = measured.size
    cost = measured.record.cost
    seconds_per_pixel = cost.evaluate_seconds / (height * width)
    return Projection(
        adapt=cost.adapt_seconds / 3600,
        train=recipe.iterations * cost.seconds_per_step / 3600,
        evaluate=evaluations * pixels * seconds_per_pixel / 3600,
        evaluations=evaluations,
        images=images,
    )


def hours(cell: Cell, device: str, root: Path) -> float:
    """Hours that a cell would take on `device`, measured and projected.

    Raises:
        UserError: as `measure`.
    """
    return project(cell.protocol, measure(cell, device), data(cell.protocol, root)).total


def print_cell(cell: Cell, device: str, root: Path | None) -> None:
    """Measure a cell on `device`, print that, what it comes to, and what the real run lacks.

    Args:
        cell: what would be run.
        device: as in `run.run_cell`.
        root: folder of the data sets, where it is known.

    Raises:
        UserError: as `measure`.
    """
    measured, splits = measure(cell, device), data(cell.protocol, root)
    print(f"dry run of {cell} under {cell.protocol.name}: random weights, rendered images")
    print(tabulate(_measured(cell.protocol, measured), tablefmt="plain"))
    print("\nprojected from the second step and the one image, other test sizes by their pixels")
    print(tabulate(_projected(cell.protocol, measured, splits), tablefmt="plain"))
    print("\nfor the real run")
    print(tabulate(_needed(cell.protocol, splits), tablefmt="plain"))


def _measured(protocol: Protocol, measured: Measured) -> Iterator[tuple[str, str]]:
    counts, (height, width) = measured.record.parameters, measured.size
    cost = measured.record.cost
    yield "device", measured.device
    yield (
        "parameters",
        f"{counts.backbone_trainable:,} of {counts.backbone_total:,} in the backbone learn, and "
        f"{counts.head:,} in the head",
    )
    yield "adapting", f"{cost.adapt_seconds:.1f} s, no decomposition kept from before"
    yield (
        "training step",
        f"{cost.seconds_per_step:.3g} s, batch {protocol.recipe.batch}, peak memory "
        f"{_memory(cost.peak_train_bytes)}",
    )
    yield (
        "test image",
        f"{cost.evaluate_seconds:.3g} s, {width}x{height} ({measured.domain}), peak memory "
        f"{_memory(cost.peak_evaluate_bytes)}",
    )


def _projected(protocol: Protocol, measured: Measured, splits: Splits) -> Iterator[tuple[str, str]]:
    hours, steps = project(protocol, measured, splits), protocol.recipe.iterations
    counted = "" if all(split.found for split in splits.values()) else ", as cards count them"
    yield "training", f"{_hours(hours.train)}, {steps:,} steps"
    times = f"{hours.evaluations} x {hours.images:,} images{counted}"
    yield "evaluation", f"{_hours(hours.evaluate)}, {times}"
    yield "whole cell", f"{_hours(hours.total)} on this device"


def _needed(protocol: Protocol, splits: Splits) -> Iterator[tuple[str, str]]:
    for (card, split), there in splits.items():
        yield f"{card} {split}", there.words
    yield "weights", backbone(protocol.backbone)
    if protocol.starts_from:
        yield "first stage", f"the record of {protocol.starts_from}, its weights beside it"
    if protocol.engine_reason:
        yield "engine", protocol.engine_reason.removeprefix("engine ")


def print_table(cells: list[Cell], device: str, root: Path | None) -> None:
    """Measure cells of one protocol; print a line for each, and below why some cannot be run.

    Raises:
        UserError: as `measure`, where it concerns all cells.
    """
    splits = data(cells[0].protocol, root)
    rows, reasons = [], []
    for cell in cells:
        try:
            measured = measure(cell, device)
        except CannotRun as error:
            reasons.append(str(error))
            continue
        cost = measured.record.cost
        row = [
            f"{measured.record.parameters.backbone_trainable:,}",
            f"{cost.seconds_per_step:.3g}",
            f"{cost.evaluate_seconds:.3g}",
            _memory(cost.peak_train_bytes),
            _memory(cost.peak_evaluate_bytes),
            _hours(project(cell.protocol, measured, splits).total),
        ]
        rows.append([str(cell), *row])
    names = ["dry run", "trainable", "s/step", "s/image", "training", "evaluation", "projected"]
    print(tabulate(rows, names, disable_numparse=True))
    for reason in reasons:
        print(f"cannot run: {reason}")


def _memory(peak: int | None) -> str:
    return "unknown" if peak is None else f"{peak / 2**30:.2f} GiB"


def _hours(number: float) -> str:
    return f"{number:,.0f} h" if number >= 100 else f"{number:.3g} h"
