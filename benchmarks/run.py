"""One cell, from its resolved protocol to its record: build, adapt, train, score, write."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from benchmarks import artifacts, tasks
from benchmarks.artifacts import warm_start
from benchmarks.backbones import BACKBONE
from benchmarks.cell import Cell, fingerprints, first_stage_record
from benchmarks.data.cards import classes_of
from benchmarks.distributed import Shard, check_batch, configure_process, launch, make_fabric
from benchmarks.environment import REPOSITORY, checkout_at_start
from benchmarks.errors import UserError
from benchmarks.memory import PeakMemory
from benchmarks.optim import make_optimizer, resolve_decay_schedule
from benchmarks.progress import Progress
from benchmarks.protocol import RANDOM, Protocol
from benchmarks.record import Cost, Record
from benchmarks.seeding import torch_seed
from benchmarks.tasks import Task
from benchmarks.train import Checkpoint, NotFinite, Training, train
from benchmarks.yaml_files import differences
from soma.method import Method, NotApplicable, adapt


def run_cell(
    cell: Cell,
    out: Path,
    data_root: Path,
    device: str = "cpu",
    progress: bool = False,
    devices: int = 1,
    nodes: int = 1,
) -> Record:
    """Run a cell, from its checkpoint where there is one, and write what came of it.

    Beside the record `<out>/<cell.path>`: what the task keeps of the last evaluation (a .npz with
    the confusion matrix of every image, one array per domain, and a .png per domain with the
    predictions of four images; or the detections of every domain, a .json.gz each), and a
    .safetensors with the head and what differs from the pretrained backbone
    at the last iteration, and the course of training (see `progress`). The record is written last:
    where it is, they are.

    The caller holds the lock of the cell. On the CPU the same cell gives the same bits each time.
    Where several devices share each batch, the first process alone writes, and the numbers are
    those of one device but for rounding (see `shard`).

    Args:
        cell: what to run.
        out: folder of the records; all nodes have to see it.
        data_root: folder of the data sets.
        device: "cpu", "cuda" or "cuda:<index>".
        progress: show a bar, on a terminal.
        devices: how many of them on each node.
        nodes: how many machines; beyond one, srun or torchrun starts the processes.

    Raises:
        UserError: data, device, protocol or method do not fit, or a file cannot be written. A
            method that cannot be applied to the backbone and a loss that is not finite are
            outcomes instead: they come back, and are written, as a record of that status.
    """
    # Before any work: the record has to name the code that was imported, not what lies on disk at
    # its end.
    checkout_at_start(REPOSITORY)
    recipe = cell.protocol.recipe
    check_batch(recipe, devices * nodes)
    fabric = make_fabric(device, recipe.precision, devices, nodes)
    work = partial(
        _run_process, cell=cell, out=out, data_root=data_root, progress=progress, nodes=nodes
    )
    return launch(fabric, work)


def _run_process(
    fabric: Fabric, cell: Cell, out: Path, data_root: Path, progress: bool, nodes: int
) -> Record:
    """What each process of a cell does."""
    protocol, path = cell.protocol, out / cell.path
    shard = Shard(fabric.global_rank, fabric.world_size)
    configure_process(fabric, protocol.recipe.threads)
    task = tasks.task_of(protocol)
    shown = (path, str(cell), progress) if fabric.is_global_zero else ()
    follow = Progress(protocol.recipe.iterations, *shown)
    follow.enter("start")
    try:
        adapted = build(cell, task, first_stage_record(cell, out))
    except NotApplicable as error:
        record = cell.record("not_applicable", str(error))
        if fabric.is_global_zero:
            record.write(path)
            follow.remove()
        return record
    training = make_training(cell, adapted, fabric)
    memory = PeakMemory(fabric.device)
    scoring = Scoring(task, adapted.model, protocol, data_root, shard, memory, follow)
    batches = partial(task.batches, protocol, data_root, cell.seed, shard=shard)
    checkpoint = Checkpoint(Path(f"{path}.checkpoint"), cell.training, cell.digest)
    status, reason = "done", ""
    try:
        with scoring.memory.phase("train"):
            train(training, batches, scoring, checkpoint, follow)
    except NotFinite as error:
        status, reason = "failed", str(error)
    else:
        if fabric.is_global_zero:
            # Before anything is written: scores of replaced files must leave nothing that looks
            # whole.
            _check_unchanged(cell, data_root)
            artifacts.write_results(path, scoring.arrays, scoring.files)
            artifacts.write_weights(path.with_suffix(".safetensors"), adapted.model, adapted.method)
    history = training.state.history
    record = cell.record(
        status,
        reason,
        evaluations=artifacts.evaluations(history),
        parameters=artifacts.parameters(adapted.model),
        cost=_cost(training, scoring, adapted.seconds, nodes),
        losses=artifacts.losses(history),
        classes=list(classes_of(protocol)) if history.evaluations else [],
    )
    if fabric.is_global_zero:
        record.write(path)
        # Only now: a process killed before the record is there goes on from its checkpoint.
        checkpoint.remove()
        follow.remove()
    return record


def _check_unchanged(cell: Cell, data_root: Path) -> None:
    """Refuse scores of files that were replaced while the cell ran; its checkpoint stays."""
    if changed := differences(cell.data, fingerprints(cell.protocol, data_root)):
        raise UserError(
            f"{cell}: the files of {changed} changed while it ran, so that its scores belong to no "
            "state of them; run the same command again, which keeps what still holds"
        )


@dataclass
class Adapted:
    """A model whose backbone a method has adapted.

    Attributes:
        method: with `start_block` as an index.
        decay_rules: full name of each parameter that the method speaks for -> its decay rule: the
            new ones and, where it overrides `decay`, the pretrained ones that learn.
        seconds: what adapting took, decompositions included.
    """

    model: nn.Module
    method: Method
    decay_rules: dict[str, str]
    seconds: float


def build(cell: Cell, task: Task, first: Path | None = None) -> Adapted:
    """The model of a cell: pretrained weights and head first, then the method.

    Where `first` is the record of a first stage, method and head go on from its end.

    The head starts from the same values under every method, since a method draws its own random
    numbers after the head is there, and from another seed.

    Raises:
        NotApplicable: the backbone lacks what the method needs.
        UserError: a weights file or a field of the method does not fit the backbone.
    """
    torch.manual_seed(torch_seed(cell.seed, "initialisation"))
    model = _unadapted(cell, task)
    _require_pretrained(model.backbone, cell)
    known = {name for name, _ in model.backbone.named_parameters()}
    torch.manual_seed(torch_seed(cell.seed, "initialisation", 1))
    started = time.perf_counter()
    try:
        made = cell.make_method()
        method = warm_start(model, made, first) if first else adapt(made, model.backbone)
    except ValueError as error:
        raise UserError(f"method {cell.method} on {cell.protocol.name}: {error}") from error
    seconds = time.perf_counter() - started
    states_decay = type(method).decay is not Method.decay
    rules = {
        f"backbone.{name}": method.decay(name)
        for name, parameter in model.backbone.named_parameters()
        if name not in known or (states_decay and parameter.requires_grad)
    }
    return Adapted(model, method, rules, seconds)


def _require_pretrained(backbone: nn.Module, cell: Cell) -> None:
    """Decomposing a backbone before its weights are loaded gives factors of random numbers.

    Raises:
        UserError: the backbone holds other weights than the protocol's, or none.
    """
    spec = cell.protocol.backbone
    expected = RANDOM if spec.weights == RANDOM else spec.sha256 or cell.data[BACKBONE]
    holds = getattr(backbone, "weights_sha256", None)
    if holds != expected:
        raise UserError(
            f"{cell.protocol.name}: the backbone holds weights {holds} where {expected} are "
            "expected; they have to be loaded before a method adapts it, and their file must not "
            "change during a run: run the command again"
        )


_UNBUILDABLE = (
    *(ValueError, RuntimeError, AssertionError, AttributeError, TypeError),
    NotApplicable,  # a backbone that is no vision transformer
)


def _unadapted(cell: Cell, task: Task) -> nn.Module:
    try:
        return task.build(cell.protocol)
    # Too little memory is no fault of the protocol: the sweep names the machine as the cause.
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except _UNBUILDABLE as error:
        # What timm and torch raise where sizes, heads or features do not fit.
        raise UserError(
            f"{cell.protocol.name}: no model can be built of its backbone and head, with "
            f"backbone.args {cell.protocol.backbone.args} ({str(error) or type(error).__name__}); "
            "correct the protocol"
        ) from error


def make_training(cell: Cell, adapted: Adapted, fabric: Fabric) -> Training:
    """The optimizer comes last, on the device: it holds what the method lets learn."""
    recipe = resolve_decay_schedule(cell.protocol.recipe, adapted.method.annealed_decay)
    model = fabric.to_device(adapted.model)
    if recipe.activation_checkpointing:
        model.backbone.set_grad_checkpointing()
    optimizer = make_optimizer(model, recipe, adapted.decay_rules)
    return Training(model, optimizer, recipe, cell.seed, fabric)


@dataclass
class Scoring:
    """Scores a model on all domains of a protocol; keeps what the last call gave, and its time."""

    task: Task
    model: nn.Module
    protocol: Protocol
    data_root: Path
    shard: Shard
    memory: PeakMemory
    progress: Progress
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    seconds: float | None = None

    def __call__(self, iteration: int) -> dict[str, Any]:
        """Domain -> its `record.Score` as plain values."""
        started, scores = time.perf_counter(), {}
        self.arrays, self.files = {}, {}
        with self.memory.phase("evaluate"):
            for domain in self.protocol.scored_domains:
                self.progress.enter(f"scoring {domain.domain}")
                result = self.task.evaluate(
                    self.model, self.protocol, self.data_root, domain, self.shard
                )
                scores[domain.domain] = {
                    "role": self.protocol.role(domain),
                    "metrics": result.metrics,
                    "images": result.images,
                }
                for name, array in result.arrays.items():
                    key = domain.domain if name == "confusion" else f"{domain.domain}.{name}"
                    self.arrays[key] = array
                for ending, write in result.files.items():
                    self.files[f".{domain.domain}{ending}"] = write
        self.seconds = time.perf_counter() - started
        return json.loads(json.dumps(scores))  # a checkpoint takes no numpy scalars


def _cost(training: Training, scoring: Scoring, adapt_seconds: float, nodes: int) -> Cost:
    world, recipe = scoring.shard.world, training.recipe
    history, peaks = training.state.history, scoring.memory.peaks
    return Cost(
        seconds_per_step=history.seconds_per_step,
        train_seconds=sum(history.seconds),
        evaluate_seconds=scoring.seconds,
        adapt_seconds=adapt_seconds,
        # A process that resumed after the last step has a peak of this phase, but not of training.
        peak_train_bytes=peaks.get("train") if training.steps_here else None,
        peak_evaluate_bytes=peaks.get("evaluate"),
        devices=world // nodes,
        nodes=nodes,
        micro_batch=recipe.batch // (world * recipe.accumulate),
    )
