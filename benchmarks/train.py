"""The one training loop, and the checkpoint it resumes from. It knows no task and no method."""

import logging
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from torch import Tensor, nn

from benchmarks.distributed import Batch, micro_batches
from benchmarks.errors import UserError
from benchmarks.optim import EMA, AdamW, make_ema, set_rates
from benchmarks.progress import Progress
from benchmarks.protocol import Recipe
from benchmarks.record import write_atomically
from benchmarks.seeding import torch_seed
from benchmarks.yaml_files import differences

WARM_STEPS = 3  # first steps of a process, in which memory is allocated and kernels are chosen
_LOG = logging.getLogger(__name__)


@dataclass
class History:
    """What a run has done so far.

    Attributes:
        iteration: steps done.
        losses: of each step.
        seconds: of each step, with the wait for its batch, without evaluation and checkpoint.
        evaluations: iteration -> result.
    """

    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    evaluations: dict[int, Any] = field(default_factory=dict)

    def add(self, loss: float, seconds: float) -> None:
        """Count a step."""
        self.iteration += 1
        self.losses.append(loss)
        self.seconds.append(seconds)

    @property
    def seconds_per_step(self) -> float | None:
        """Median time of a step, the first few left out where there are more; None of no step."""
        counted = self.seconds[WARM_STEPS:] or self.seconds[1:] or self.seconds
        return median(counted) if counted else None


@dataclass
class State:
    """Everything that changes while training. Random numbers need no state, see `seeding`."""

    model: nn.Module
    optimizer: AdamW
    ema: EMA | None
    precision: Precision  # of the fabric: holds the loss scale of 16-bit training
    history: History = field(default_factory=History)

    def averaged(self) -> AbstractContextManager[None]:
        """The model holds the averaged weights inside, if they are averaged at all."""
        return self.ema.swapped_in() if self.ema else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it can be loaded without unpickling code."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.values if self.ema else [],
            "precision": self.precision.state_dict(),
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.history = History(**state["history"])
        if self.ema:
            self.ema.load(state["ema"])


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of a cell, and beside it the one before, should the file be damaged.

    Attributes:
        path: of the file.
        training: what the weights depend on (see `Cell.training`), as plain values.
        digest: of the whole cell, on which the scores of a run depend too.
    """

    path: Path
    training: dict[str, Any]
    digest: str

    def save(self, state: State) -> None:
        """Replace the file; what it held becomes the one before.

        Raises:
            UserError: it cannot be written; the file before it is still there.
        """
        content = {"training": self.training, "digest": self.digest, "state": state.state_dict()}

        def write(file: IO[bytes]) -> None:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's name for a full disk
                raise OSError("torch could not write the whole file") from error

        newest, previous = self._beside
        write_atomically(newest, write)
        if self.path.exists():
            # Killed between the two renames, the run goes on from `newest`, which `restore` looks
            # for.
            self.path.replace(previous)
        newest.replace(self.path)

    @property
    def _beside(self) -> tuple[Path, Path]:
        """Where a new file waits for the old one to be moved, and where that one goes."""
        return tuple(self.path.with_name(f"{self.path.name}.{end}") for end in ("new", "previous"))

    def restore(self, state: State) -> None:
        """Bring `state` to where the newest sound file was written; without one, leave it.

        A damaged file costs only time: the run goes on from the one before, or starts anew, and
        says so. One of another cell is refused: to go on would overwrite what may be days of work.

        Raises:
            UserError: another cell wrote the checkpoint, or it holds scores of domains that have
                changed since.
        """
        newest, previous = self._beside
        damaged: list[str] = []
        for path in (self.path, newest, previous):
            if not path.exists():
                continue
            try:
                content = _read(path)
                training, digest, saved = (content[key] for key in ("training", "digest", "state"))
            except _UNREADABLE as error:
                damaged.append(f"{path}: cannot be read ({type(error).__name__})")
                continue
            self._check(path, training, digest, saved["history"]["evaluations"])
            state.load_state_dict(saved)
            break
        way_on = f"goes on from iteration {state.history.iteration}"
        if not state.history.iteration:
            way_on = "starts anew"
        for line in damaged:
            _LOG.warning("%s, the run %s", line, way_on)

    def _check(self, path: Path, training: dict[str, Any], digest: str, scores: Any) -> None:
        if changed := differences(training, self.training):
            raise UserError(
                f"{path}: is the checkpoint of another cell, it differs in {changed}; delete it or "
                "choose another --out"
            )
        if digest != self.digest and scores:
            raise UserError(
                f"{path}: holds scores of iteration {min(scores)} on domains that have changed "
                "since; restore their files, or delete it to train anew"
            )

    def remove(self) -> None:
        """Delete the files, if there are any."""
        for path in (self.path, *self._beside):
            path.unlink(missing_ok=True)


# What zipfile, pickle and torch raise for a file that was cut off or overwritten.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, whose checksums torch itself does not look at."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    # To the CPU: the values are copied into a model whose own weights fill the GPU already.
    return torch.load(path, map_location="cpu", weights_only=True)


class NotFinite(Exception):
    """Training cannot go on: after `iteration` steps something is NaN or infinite."""

    def __init__(self, iteration: int, reason: str) -> None:
        super().__init__(f"iteration {iteration}: {reason}")
        self.iteration, self.reason = iteration, reason


class Training:
    """A model, on the device of `fabric`, on its way through a recipe; `train` drives it."""

    def __init__(
        self, model: nn.Module, optimizer: AdamW, recipe: Recipe, seed: int, fabric: Fabric
    ) -> None:
        self.recipe, self.seed, self.fabric = recipe, seed, fabric
        self.steps_here = 0  # in this process, while the history counts those of the whole run
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ema = make_ema(self.trainable, recipe)
        self.state = State(model, optimizer, ema, fabric.strategy.precision)
        # The state keeps the bare model: the wrapper for several devices prefixes its names, and a
        # checkpoint has to fit any number of devices.
        self._model = fabric.setup_module(model)
        self._optimizer = fabric.setup_optimizers(optimizer)

    def step(self, batches: Iterator[Batch]) -> float:
        """One iteration on the next batch; returns the loss.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        started, state, iteration = time.perf_counter(), self.state, self.state.history.iteration
        batch = self.fabric.to_device(next(batches))
        set_rates(state.optimizer, self.recipe, iteration)
        state.optimizer.zero_grad()
        loss, losses = self._backward(batch, iteration)
        if not math.isfinite(loss):
            parts = ", ".join(f"{name} {part:.4g}" for name, part in losses.items())
            raise NotFinite(iteration, f"the loss is {loss} ({parts})")
        if self.recipe.clip is not None:
            # A gradient that is not finite shows in the next loss; with a loss scale it is normal.
            limit = {"max_norm": self.recipe.clip, "error_if_nonfinite": False}
            self.fabric.clip_gradients(self._model, self._optimizer, **limit)
        self._optimizer.step()
        if state.ema:
            state.ema.update(iteration + 1)
        self.steps_here += 1
        state.history.add(loss, time.perf_counter() - started)
        return loss

    def _backward(self, batch: Batch, iteration: int) -> tuple[float, dict[str, float]]:
        """Gradients of the whole batch, of which this process has its share; loss, and its terms.

        All processes come to the same values, and so to the same decisions.
        """
        fabric, counters = self.fabric, (self.seed, "loss", iteration)
        parts = micro_batches(batch, fabric, self.recipe.accumulate, torch_seed(*counters))
        means = 0.0
        for number, part in enumerate(parts, 1):
            index = [part["part"].index] if "part" in part else []
            torch.manual_seed(torch_seed(*counters, *index))
            # Processes average their gradients once, after the last micro-batch.
            with fabric.no_backward_sync(self._model, enabled=number < len(parts)):
                losses = self._losses(part, iteration)
                total = sum(losses.values())
                fabric.backward(total / len(parts))
            means = means + torch.stack([total, *losses.values()]).detach() / len(parts)
        loss, *terms = fabric.all_reduce(means).tolist()
        return loss, dict(zip(losses, terms, strict=True))

    def _losses(self, part: Batch, iteration: int) -> dict[str, Tensor]:
        """Losses of a part of the batch, where the models of all processes have some."""
        losses, reason = {}, ""
        try:
            losses = self._model(part)
        except FloatingPointError as error:  # a model may notice before its loss does
            reason = str(error)
        # A process that went on alone would wait for the gradients of the others.
        failed = torch.tensor(float(bool(reason)), device=self.fabric.device)
        if self.fabric.all_reduce(failed, reduce_op="sum"):
            raise NotFinite(iteration, reason or "not finite in another process")
        return losses

    def evaluate(self, evaluate: Callable[[int], Any]) -> None:
        """Score the weights as they would be kept now: averaged, if the recipe averages.

        Raises:
            NotFinite: a trained parameter is NaN or infinite.
        """
        state, iteration = self.state, self.state.history.iteration
        # The loss came before the step: only the next one would show what this one spoilt.
        if not all(parameter.isfinite().all() for parameter in self.trainable):
            raise NotFinite(iteration, "a trained parameter is not finite")
        state.model.eval()
        with state.averaged(), torch.no_grad(), self.fabric.autocast():
            state.history.evaluations[iteration] = evaluate(iteration)
        state.model.train()


def train(
    training: Training,
    batches: Callable[[int], Iterator[Batch]],
    evaluate: Callable[[int], Any],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> History:
    """Train to the end of the recipe, from the checkpoint where there is one.

    A run that was cut off and resumed ends with the same bits as one that was not; on a GPU, where
    some kernels add in any order, with the same numbers up to rounding. Afterwards the model holds
    the weights that were scored last.

    Args:
        training: model, optimizer, recipe and seed.
        batches: first iteration -> the batches from there on.
        evaluate: iteration -> result, of plain values; called at `recipe.evaluate_at` and the end.
        checkpoint: written every `recipe.checkpoint_every` iterations.
        progress: what follows the run; of several processes, that of the first one.

    Where several processes share the batches, the first one writes.

    Raises:
        NotFinite: the loss or a trained parameter is NaN or infinite.
        UserError: the checkpoint belongs to another cell or holds scores of other data, cannot be
            written, or is not seen by every process.
    """
    state, recipe = training.state, training.recipe
    scored_at = {*recipe.evaluate_at, recipe.iterations}
    saved_at = {*range(0, recipe.iterations, recipe.checkpoint_every), *scored_at}
    checkpoint.restore(state)
    history, first = state.history, training.fabric.is_global_zero
    # Processes at different steps would wait for one another without end.
    if training.fabric.broadcast(history.iteration) != history.iteration:
        raise UserError(
            f"{checkpoint.path}: not seen on every node; choose an --out that they share"
        )
    remaining = batches(history.iteration)
    state.model.train()
    # A checkpoint comes before the scoring of its iteration, which a resumed run repeats.
    progress = progress or Progress(recipe.iterations)
    with progress.over(history.losses, history.seconds, history.evaluations):
        # One round more than there are steps: the last one only scores.
        for iteration in range(history.iteration, recipe.iterations + 1):
            if iteration in scored_at - history.evaluations.keys():
                training.evaluate(evaluate)
                progress.scored(history.evaluations[iteration])
            if iteration < recipe.iterations:
                training.step(remaining)
                progress.step()
                if first and iteration + 1 in saved_at:
                    checkpoint.save(state)
    if state.ema:
        state.ema.swap()
    return history
