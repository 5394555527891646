"""How fast the suite is here: rendering, batches, steps of every method, evaluation, start-up."""

import copy
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.backbones import load_backbone
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.methods import make_method
from benchmarks.protocol import RANDOM, Backbone, Protocol
from benchmarks.report.spec import load_table
from benchmarks.run import build, make_fabric, make_training
from benchmarks.segmentation import task as segmentation
from benchmarks.tasks import load_protocol
from benchmarks.train import Training
from benchmarks.worlds.worlds import WORLDS, sample
from soma.method import adapt


def main(data_root: Path, name: str = "mini_gtav", rounds: int = 7) -> None:
    """Print the speed of rendering, batches, training steps of Table 1's methods, and evaluation.

    Everything runs in this process on as many threads as the protocol says, and is measured in
    processor time, which a busy machine changes less. Training steps of the methods take turns;
    medians are printed, and ratios to the first method.

    Args:
        data_root: folder of the rendered worlds.
        name: of a segmentation protocol, or its path.
        rounds: how often each thing is measured.

    Raises:
        UserError: no such protocol, one of another task, or its data are not there.
    """
    protocol = load_protocol(name)
    if protocol.task != "segmentation":
        raise UserError(f"{protocol.name}: its task is {protocol.task}; bench takes segmentation")
    torch.set_num_threads(protocol.recipe.threads)
    print(f"{protocol.name}, {torch.get_num_threads()} thread, median of {rounds} rounds\n")
    _print_rendering(rounds)
    _print_loading(protocol, data_root)
    trainings = _trainings(protocol)
    _print_steps(protocol, data_root, trainings, rounds)
    _print_evaluation(protocol, data_root, next(iter(trainings.values())))


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _render(domain: str, indices: range) -> None:
    for index in indices:
        sample(domain, index)


def _print_rendering(rounds: int, images: int = 10) -> None:
    for domain in WORLDS:
        times = [
            _seconds(partial(_render, domain, range(n * images, (n + 1) * images)))
            for n in range(rounds)
        ]
        print(f"render {domain:<12} {images / statistics.median(times):6.0f} images/s")
    print()


def _print_loading(protocol: Protocol, data_root: Path, batches: int = 50) -> None:
    for files in ("decoded", "in memory"):
        loader = segmentation.batches(protocol, data_root, 0)
        count = min(batches, protocol.recipe.iterations)
        seconds = _seconds(lambda ready=loader, n=count: deque(islice(ready, n), maxlen=0))
        print(f"batch of {protocol.recipe.batch}, {files:<9} {1000 * seconds / count:6.1f} ms")
    print()


def _trainings(protocol: Protocol) -> dict[str, Training]:
    fabric = make_fabric("cpu", protocol.recipe.precision)
    trainings = {}
    for method in load_table("table1").methods:
        cell = make_cell(protocol, method, seed=0)
        trainings[method] = make_training(cell, build(cell, segmentation), fabric)
    return trainings


def _print_steps(
    protocol: Protocol, data_root: Path, trainings: dict[str, Training], rounds: int
) -> None:
    loader = segmentation.batches(protocol, data_root, 0, 0)
    times: dict[str, list[float]] = {method: [] for method in trainings}
    # The first round warms up, and does not count.
    for _ in range(rounds + 1):
        batch = next(loader)
        for method, training in trainings.items():
            times[method].append(_seconds(lambda t=training, b=batch: t.step(iter([b]))))
    medians = {method: statistics.median(t[1:]) for method, t in times.items()}
    first = next(iter(medians.values()))
    rows = [[method, 1000 * value, value / first] for method, value in medians.items()]
    names = ["method", "ms/step", f"ratio to {next(iter(medians))}"]
    print(tabulate(rows, names, floatfmt=("", ".0f", ".2f")), "\n")


def _print_evaluation(protocol: Protocol, data_root: Path, training: Training) -> None:
    domain = protocol.targets[0].model_copy(update={"limit": 32})
    model, images = training.state.model.eval(), []

    def evaluate() -> None:
        images.append(segmentation.evaluate(model, protocol, data_root, domain).images)

    for files in ("decoded", "in memory"):
        with torch.no_grad():
            seconds = _seconds(evaluate)
        print(f"evaluate {domain.domain}, {files:<9} {images[-1] / seconds:6.1f} images/s")


def print_startup(method: str, backbone: str, threads: int) -> None:
    """Print the seconds that `method` takes to be put on a backbone with random weights.

    Once with an empty cache of splits, once with the one that this filled; by the clock, and of
    processor time, which a busy machine changes less. Building the backbone does not count. The
    variable SOMA_CACHE stays changed.
    """
    torch.set_num_threads(threads)
    vit = load_backbone(Backbone(name=backbone, weights=RANDOM, features=(0,)))
    print(f"{method} on {backbone}, {threads} threads")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SOMA_CACHE"] = cache
        for start in ("first", "cached"):
            fresh = copy.deepcopy(vit)
            clock, processor = time.perf_counter(), time.process_time()
            adapt(make_method(method, {}), fresh)
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            entries = len(os.listdir(cache))
            print(f"{start:<6} {clock:6.2f} s, processor {processor:6.2f} s, {entries} entries")
