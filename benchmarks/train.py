"""The one training loop. It knows no task and no method."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from benchmarks.checkpoint import Checkpoint, History, State
from benchmarks.errors import UserError
from benchmarks.progress import training_bar
from benchmarks.protocol import Recipe
from benchmarks.recipe import AdamW, make_average, set_rates
from benchmarks.seeding import torch_seed
from benchmarks.share import Batch, micro_batches


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
        average = make_average(self.trainable, recipe)
        self.state = State(model, optimizer, average, fabric.strategy.precision)
        self._model = fabric.setup_module(model)
        self._optimizer = fabric.setup_optimizers(optimizer)

    def step(self, batches: Iterator[Batch]) -> float:
        """One iteration on the next batch; returns the loss."""
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
        if state.average:
            state.average.update(iteration + 1)
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
        """Score the weights as they would be kept now: averaged, if the recipe averages."""
        state, iteration = self.state, self.state.history.iteration
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
    progress: bool = False,
) -> History:
    """Train to the end of the recipe, from the checkpoint where there is one.

    A run that was cut off and resumed ends with the same bits as one that was not. Afterwards the
    model holds the weights that were scored last.

    Args:
        training: model, optimizer, recipe and seed.
        batches: first iteration -> the batches from there on.
        evaluate: iteration -> result, of plain values; called at `recipe.evaluate_at` and the end.
        checkpoint: written every `recipe.checkpoint_every` iterations.
        progress: show a bar, on a terminal.

    Where several processes share the batches, the first one writes and shows progress.

    Raises:
        NotFinite: the loss or a trained parameter is NaN or infinite.
        UserError: the checkpoint belongs to another cell, cannot be written, or is not seen by
            every process.
    """
    state, recipe = training.state, training.recipe
    scored_at = {*recipe.evaluate_at, recipe.iterations}
    saved_at = {*range(0, recipe.iterations, recipe.checkpoint_every), *scored_at}
    checkpoint.restore(state)
    history, first = state.history, training.fabric.is_global_zero
    if training.fabric.broadcast(history.iteration) != history.iteration:
        raise UserError(
            f"{checkpoint.path}: not seen on every node; choose an --out that they share"
        )
    remaining = batches(history.iteration)
    state.model.train()
    # A checkpoint comes before the scoring of its iteration, which a resumed run repeats.
    with training_bar(recipe.iterations, history.iteration, progress and first) as advance:
        for iteration in range(history.iteration, recipe.iterations + 1):
            if iteration in scored_at - history.evaluations.keys():
                training.evaluate(evaluate)
            if iteration < recipe.iterations:
                advance(training.step(remaining))
                if first and iteration + 1 in saved_at:
                    checkpoint.save(state)
    if state.average:
        state.average.swap()
    return history
