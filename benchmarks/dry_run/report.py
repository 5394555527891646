"""What a dry run says: what was measured, what the whole cell would take, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from benchmarks.cell import Cell
from benchmarks.detection import engines
from benchmarks.dry_run import inventory
from benchmarks.dry_run.inventory import Splits
from benchmarks.dry_run.measure import CannotRun, Measured, measure, pixels_of
from benchmarks.protocol import DetectionProtocol, Protocol


@dataclass(frozen=True)
class Projection:
    """Hours of a whole cell, from one step and one image; other test sizes in proportion to pixels.

    Attributes:
        adapt, train, evaluate: hours. evaluations: how often everything is scored. images: each
            time.
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
    for domain in (domain for group in protocol.scored.values() for domain in group):
        count = inventory.scored_images(domain, splits[domain.card, domain.split].images)
        images += count
        pixels += count * pixels_of(protocol, domain)
    evaluations = len({*recipe.evaluate_at, recipe.iterations})
    height, width = measured.size
    seconds_per_pixel = measured.image_seconds / (height * width)
    return Projection(
        adapt=measured.adapt_seconds / 3600,
        train=recipe.iterations * measured.steps[-1] / 3600,
        evaluate=evaluations * pixels * seconds_per_pixel / 3600,
        evaluations=evaluations,
        images=images,
    )


def print_cell(cell: Cell, device: str, root: Path | None) -> None:
    """Measure a cell on `device`, print that, what it comes to, and what the real run lacks.

    Args:
        cell: what would be run.
        device: as in `run.run_cell`.
        root: folder of the data sets, where it is known.

    Raises:
        UserError: as `measure`.
    """
    measured, splits = measure(cell, device), inventory.data(cell.protocol, root)
    print(f"dry run of {cell} under {cell.protocol.name}: random weights, rendered images")
    print(tabulate(_measured(cell.protocol, measured), tablefmt="plain"))
    print("\nprojected from the last step and the one image, other test sizes by their pixels")
    print(tabulate(_projected(cell.protocol, measured, splits), tablefmt="plain"))
    print("\nfor the real run")
    print(tabulate(_needed(cell.protocol, splits), tablefmt="plain"))


def _measured(protocol: Protocol, measured: Measured) -> Iterator[tuple[str, str]]:
    counts, (height, width) = measured.parameters, measured.size
    yield "device", measured.hardware
    yield (
        "parameters",
        f"{counts.backbone_trainable:,} of {counts.backbone_total:,} in the backbone learn, and "
        f"{counts.head:,} in the head",
    )
    yield "adapting", f"{measured.adapt_seconds:.1f} s, no decomposition kept from before"
    first, last = measured.steps[0], measured.steps[-1]
    yield (
        "training step",
        f"{last:.3g} s (the first one {first:.3g} s), batch {protocol.recipe.batch}, peak memory "
        f"{_memory(measured, 'train')}",
    )
    yield (
        "test image",
        f"{measured.image_seconds:.3g} s, {width}x{height} ({measured.domain}), peak memory "
        f"{_memory(measured, 'evaluate')}",
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
    yield "weights", inventory.backbone(protocol.backbone)
    if protocol.starts_from:
        yield "first stage", f"the record of {protocol.starts_from}, its weights beside it"
    if isinstance(protocol, DetectionProtocol):
        yield "engine", engines.announcement(protocol.engine).removeprefix("engine ")


def print_table(cells: list[Cell], device: str, root: Path | None) -> None:
    """Measure cells of one protocol; print a line for each, and below why some cannot be run.

    Raises:
        UserError: as `measure`, where it concerns all cells.
    """
    splits = inventory.data(cells[0].protocol, root)
    rows, reasons = [], []
    for cell in cells:
        try:
            measured = measure(cell, device)
        except CannotRun as error:
            reasons.append(str(error))
            continue
        row = [
            f"{measured.parameters.backbone_trainable:,}",
            f"{measured.steps[-1]:.3g}",
            f"{measured.image_seconds:.3g}",
            _memory(measured, "train"),
            _memory(measured, "evaluate"),
            _hours(project(cell.protocol, measured, splits).total),
        ]
        rows.append([str(cell), *row])
    names = ["dry run", "trainable", "s/step", "s/image", "training", "evaluation", "projected"]
    print(tabulate(rows, names, disable_numparse=True))
    for reason in reasons:
        print(f"cannot run: {reason}")


def _memory(measured: Measured, phase: str) -> str:
    peak = measured.peaks[phase]
    return "unknown" if peak is None else f"{peak / 2**30:.2f} GiB"


def _hours(number: float) -> str:
    return f"{number:,.0f} h" if number >= 100 else f"{number:.3g} h"
