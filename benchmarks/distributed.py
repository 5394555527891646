"""Several devices for one cell: Lightning Fabric, the processes, their shards of a batch.

The images of a batch depend on their sample numbers alone, and its loss is the mean of the losses
of its equal parts. So one device and many, with one micro-batch or several, learn the same weights
up to rounding and, where a method uses it, the draws of dropout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from benchmarks.errors import UserError
from benchmarks.protocol import Recipe

Result = TypeVar("Result")


def make_fabric(device: str, precision: str, devices: int = 1, nodes: int = 1) -> Fabric:
    """Lightning Fabric on "cpu", "cuda" or "cuda:<index>", or on several devices of a kind.

    Args:
        device: kind of the devices; with an index, one of them.
        precision: Lightning's name of it.
        devices: how many on each node; several processes on a CPU.
        nodes: how many machines.

    Raises:
        UserError: no such device here, a precision that it does not have, or nothing has started
            the processes of the other nodes.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        chosen: int | list[int] = devices
    elif kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:<index>")
    elif int(index or 0) + devices > torch.cuda.device_count():
        asked = f"device {device!r}" + (f" x {devices}" if devices > 1 else "")
        raise UserError(
            f"{asked}: torch sees {torch.cuda.device_count()} CUDA devices; take cpu or fewer"
        )
    else:
        chosen = list(range(int(index or 0), int(index or 0) + devices))
    if kind == "cpu" and precision == "16-mixed":
        # Fabric would compute in bfloat16 instead, under the name of 16-mixed.
        raise UserError(
            "recipe.precision 16-mixed: a CPU has no mixed float16; set recipe.precision to "
            "bf16-mixed or 32-true, or take --device cuda"
        )
    environment = _started_outside(devices, nodes)
    if environment is None and nodes > 1:
        raise UserError(
            f"--nodes {nodes}: start one process per device with srun or torchrun, {devices} on "
            "each node"
        )
    strategy = DDPStrategy(
        # Processes that srun or torchrun has started are only joined; "spawn" would start them
        # again.
        start_method="popen" if environment else "spawn",
        find_unused_parameters=True,  # such as a final norm that no head reads
    )
    return Fabric(
        accelerator=kind,
        devices=chosen,
        num_nodes=nodes,
        strategy=strategy if devices * nodes > 1 else "auto",
        # Stated, or Fabric would take the variables of any SLURM job around this process for its
        # own.
        plugins=[environment or LightningEnvironment(), _precision(precision, kind)],
    )


class AutocastPrecision(MixedPrecision):
    """Mixed precision that rounds what autocast chooses, and nothing else."""

    def convert_input(self, data: Any) -> Any:
        """The batch as it is.

        Lightning's own casts all floats of a batch, ground-truth boxes too: bfloat16 has 8 bits,
        so that a box beyond 512 pixels would move by up to 2.
        """
        return data


def _precision(name: str, device: str) -> Precision:
    return Precision() if name == "32-true" else AutocastPrecision(name, device)


def device_of_worker(device: str, number: int, devices: int) -> str:
    """The device at which worker `number` of a sweep trains cells of so many devices each.

    "cuda" stands for all of them: workers take their share in turn, and share where there are more
    workers than shares. Any other device is the same for all workers.
    """
    shares = torch.cuda.device_count() // devices if device == "cuda" else 0
    return f"cuda:{number % shares * devices}" if shares else device


def is_nonzero_rank(devices: int, nodes: int) -> bool:
    """Whether this process is one of several for a cell, and not the first of them.

    Only srun or torchrun start such a process with the whole command line; the first one holds the
    cell's lock and tells what came of it.
    """
    environment = _started_outside(devices, nodes)
    return environment is not None and environment.global_rank() > 0


def _started_outside(devices: int, nodes: int) -> ClusterEnvironment | None:
    """What has started the `devices` x `nodes` processes of a cell, this one among them."""
    environment: ClusterEnvironment | None = None
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
    elif "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():  # else it gives advice
        environment = SLURMEnvironment()
    fits = environment is not None and environment.world_size() == devices * nodes > 1
    return environment if fits else None


def launch(fabric: Fabric, work: Callable[[Fabric], Result]) -> Result:
    """What `work(fabric)` returns in the first of the processes, all of which call it.

    Raises:
        UserError: as `work`, in whichever process; or a process was killed.
        RuntimeError: another exception in a process that was started here.
    """
    if not isinstance(fabric.strategy, DDPStrategy):
        return work(fabric)
    try:
        return fabric.launch(work)
    except ProcessRaisedException as error:
        # It holds the traceback as text, which ends with the exception and its message.
        kind, _, message = str(error).rstrip().splitlines()[-1].partition(": ")
        if kind == f"{UserError.__module__}.{UserError.__qualname__}":
            raise UserError(message) from None
        raise
    except ProcessExitedException as error:
        raise UserError(f"{error}; the same command resumes") from None


def configure_process(fabric: Fabric, threads: int) -> None:
    """What each process of a cell sets first: threads of torch, and on a CPU the same bits."""
    torch.set_num_threads(threads)
    # On a GPU some kernels have no deterministic form, and torch would raise there.
    torch.use_deterministic_algorithms(fabric.device.type == "cpu")


def check_batch(recipe: Recipe, processes: int) -> None:
    """Refuse a batch that cannot be cut into equal parts.

    Raises:
        UserError: the parts are no whole number of images.
    """
    if recipe.batch % (processes * recipe.accumulate):
        raise UserError(
            f"recipe.batch {recipe.batch} cannot be shared equally by {processes} devices in "
            f"{recipe.accumulate} micro-batches each (recipe.accumulate); choose these to divide it"
        )


Result = TypeVar("Result")
BLOCK = 8  # a multiple of what evaluation runs through a model together


@dataclass(frozen=True)
class Shard:
    """What process number `rank` of `world` does."""

    rank: int = 0
    world: int = 1

    def samples(self, batch: int, first: int, iterations: int) -> list[int]:
        """Numbers of its samples in the iterations `first`, `first` + 1, ..., `iterations` - 1.

        Iteration i learns from the samples i `batch`, i `batch` + 1, ...; every process takes an
        equal run of them.
        """
        share = batch // self.world
        numbers = range(first * batch, iterations * batch)
        return [n for n in numbers if n % batch // share == self.rank]

    def items(self, count: int) -> list[int]:
        """Numbers of the items, out of `count`, that it scores: blocks of `BLOCK` in turn.

        What one process would run together stays together where all images have one size, and with
        it every bit.
        """
        return [n for n in range(count) if n // BLOCK % self.world == self.rank]

    def gather(self, results: Iterable[Result]) -> list[Result]:
        """The results of all processes on their `items`, in the order of the items."""
        own = list(results)
        if self.world == 1:
            return own
        everyone: list[list[Result]] = [[]] * self.world
        torch.distributed.all_gather_object(everyone, own)
        count = sum(map(len, everyone))
        held = {
            number: result
            for rank, results in enumerate(everyone)
            for number, result in zip(Shard(rank, self.world).items(count), results, strict=True)
        }
        return [held[number] for number in range(count)]


WHOLE = Shard()


class Part(NamedTuple):
    """Which part of a batch a micro-batch is, for a loss that is no mean over the samples.

    Attributes:
        index: its place, in the order of the samples.
        count: of equal parts that the batch has.
        targets: how many targets each sample of the whole batch has, where its task says so.
        seed: of torch's generator when the loss of the whole batch begins to draw; null leaves the
            generator as it is.
    """

    index: int
    count: int
    targets: tuple[int, ...]
    seed: int | None = None


Batch = dict[str, Tensor | list[Tensor] | Part]


def micro_batches(batch: Batch, fabric: Fabric, accumulate: int, seed: int) -> list[Batch]:
    """A process's share of a batch in `accumulate` parts, each with its `Part` under "part".

    A batch that is not cut up holds none.

    Args:
        batch: entries with one element per sample; "targets", if there, int64 (B,).
        fabric: of the processes that share the whole batch.
        accumulate: number of micro-batches; it divides the shard.
        seed: see `Part`.
    """
    count = fabric.world_size * accumulate
    if count == 1:
        return [batch]
    targets: tuple[int, ...] = ()
    if "targets" in batch:
        own = batch["targets"]
        whole = own.new_zeros(fabric.world_size, len(own))
        # A sum over processes that each fill their own row is a gather of them all.
        whole[fabric.global_rank] = own
        targets = tuple(fabric.all_reduce(whole, reduce_op="sum").flatten().tolist())
    size = len(batch["image"]) // accumulate
    first = fabric.global_rank * accumulate
    return [
        {key: value[n * size : (n + 1) * size] for key, value in batch.items()}
        | {"part": Part(first + n, count, targets, seed)}
        for n in range(accumulate)
    ]
