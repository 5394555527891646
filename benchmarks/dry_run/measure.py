"""What a cell would take: measured on a few rendered images, with random weights, and projected.

The model, the loader, the recipe and the sizes are those of the protocol. Nothing is recorded and
nothing stays on disk, singular value decompositions neither.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from lightning_fabric import Fabric

from benchmarks import outcome
from benchmarks.cell import Cell
from benchmarks.data.box_cards import BoxCard, load_any_card
from benchmarks.devices import check_batch, make_fabric, settle
from benchmarks.environment import environment
from benchmarks.errors import UserError
from benchmarks.memory import PeakMemory, give_back_freed_blocks
from benchmarks.mini import scenes, stand_in, weather
from benchmarks.protocol import Protocol
from benchmarks.protocol_parts import RANDOM, Domain
from benchmarks.record import Parameters
from benchmarks.run import TASKS, build, make_training
from benchmarks.segmentation.reading import fitted_size
from benchmarks.train import NotFinite, Training
from soma.method import NotApplicable

STEPS = 2  # the first one warms up
IMAGES = 2  # of each source


class CannotRun(UserError):
    """This cell cannot be run here; others of its protocol may."""


@dataclass(frozen=True)
class Measured:
    """Seconds and peak bytes (None where the system does not tell) of a cell's parts.

    Attributes:
        steps: seconds of each training step. domain, size: what the test image was of, and its
            (height, width). hardware: the device in words.
    """

    adapt_seconds: float
    steps: list[float]
    image_seconds: float
    domain: str
    size: tuple[int, int]
    peaks: dict[str, int | None]
    parameters: Parameters
    hardware: str


def measure(cell: Cell, device: str) -> Measured:
    """Build the cell's model, train it for `STEPS` steps and score one image of the largest size.

    Args:
        cell: what would be run; its data and its weights need not be there.
        device: as in `run.run_cell`.

    Raises:
        CannotRun: the method does not fit the backbone, a loss is not finite, or memory of the
            device does not suffice.
        UserError: device, protocol or method do not fit.
    """
    protocol = _without_files(cell.protocol)
    cell = replace(cell, protocol=protocol)
    check_batch(protocol.recipe, 1)
    fabric = make_fabric(device, protocol.recipe.precision)
    settle(fabric, protocol.recipe.threads)
    if fabric.device.type == "cpu":
        give_back_freed_blocks()  # a run keeps them, which is faster and takes more memory
    task = importlib.import_module(TASKS[protocol.task])
    try:
        with tempfile.TemporaryDirectory() as folder, _splits_not_kept():
            return _measure(cell, task, fabric, Path(folder))
    except (NotApplicable, NotFinite) as error:
        raise CannotRun(f"{cell.label} on {protocol.name}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise CannotRun(
            f"{cell.label} on {protocol.name}: the memory of {device} does not suffice; try --set "
            "recipe.accumulate=2 or --set recipe.activation_checkpointing=true"
        ) from error


def _without_files(protocol: Protocol) -> Protocol:
    """Random weights; every image of a domain, few as they are; no idle loader processes."""
    whole = {"holdout": 0, "exclude": (), "limit": None}
    source = tuple(domain.model_copy(update=whole) for domain in protocol.source)
    random = {"weights": RANDOM, "sha256": None, "resize": None}
    backbone = protocol.backbone.model_copy(update=random)
    loaders = min(protocol.recipe.loader_workers, os.cpu_count() or 1)
    recipe = protocol.recipe.model_copy(update={"loader_workers": loaders})
    changes = {"backbone": backbone, "source": source, "recipe": recipe}
    return protocol.model_copy(update=changes)


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


def _measure(cell: Cell, task: ModuleType, fabric: Fabric, folder: Path) -> Measured:
    protocol, memory = cell.protocol, PeakMemory(fabric.device)
    scored = max(task.domains(protocol), key=lambda domain: pixels_of(protocol, domain))
    scored = scored.model_copy(update={"holdout": 0, "exclude": (), "limit": 1})
    for domain in {(each.card, each.split): each for each in (*protocol.source, scored)}.values():
        card, size = load_any_card(domain.card), native_size(protocol, domain)
        stand_in.write_split(card, folder, domain.split, size, IMAGES)
    adapted = build(cell, task)
    training = make_training(cell, adapted, fabric)
    few = protocol.recipe.model_copy(update={"iterations": STEPS})
    few_steps = protocol.model_copy(update={"recipe": few})
    training.state.model.train()
    with memory.phase("train"), closing(task.batches(few_steps, folder, cell.seed)) as batches:
        for _ in range(STEPS):
            training.step(batches)
    with memory.phase("evaluate"):
        seconds = _score(training, task, protocol, folder, scored)
    found = environment()
    hardware = found.cpu if fabric.device.type == "cpu" else found.gpu
    return Measured(
        adapt_seconds=adapted.seconds,
        steps=training.state.history.seconds,
        image_seconds=seconds,
        domain=scored.domain,
        size=_test_size(protocol, scored),
        peaks=memory.peaks,
        parameters=outcome.parameters(training.state.model),
        hardware=f"{fabric.device} ({hardware}, {found.threads} threads)",
    )


def _score(
    training: Training, task: ModuleType, protocol: Protocol, folder: Path, domain: Domain
) -> float:
    """Seconds that scoring `domain` takes; on a GPU the second time: the first chooses kernels."""
    model = training.state.model
    for _ in range(1 if training.fabric.device.type == "cpu" else 2):
        started = time.perf_counter()
        training.evaluate(lambda _: task.evaluate(model, protocol, folder, domain))
    return time.perf_counter() - started


def native_size(protocol: Protocol, domain: Domain) -> tuple[int, int]:
    """(height, width) of the files of a domain; a protocol with a folder of its own reads worlds.

    Raises:
        UserError: the card states no size.
    """
    card = load_any_card(domain.card)
    if protocol.data_root is not None:
        return weather.SIZE if isinstance(card, BoxCard) else scenes.SIZE
    size = card.native_size or card.typical_size
    if size is None:
        raise UserError(f"datasets/{card.name}.yaml: sizes vary; give a typical_size (dry runs)")
    return size


def _test_size(protocol: Protocol, domain: Domain) -> tuple[int, int]:
    height, width = native_size(protocol, domain)
    read = (height // 2, width // 2) if domain.halve else (height, width)
    return fitted_size(read, domain)


def pixels_of(protocol: Protocol, domain: Domain) -> int:
    """Of an image of `domain`, at its test size."""
    height, width = _test_size(protocol, domain)
    return height * width
