"""On which devices a cell is trained, and how the processes for several of them are started."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from benchmarks.errors import UserError
from benchmarks.protocol_parts import Recipe

Result = TypeVar("Result")


def make_fabric(device: str, precision: str, devices: int = 1, nodes: int = 1) -> Fabric:
    """Lightning Fabric on "cpu", "cuda" or "cuda:<index>", or on several devices of a kind.

    Args:
        device: kind of the devices; with an index, one of them.
        precision: Lightning's name of it.
        devices: how many on each node; several processes on a CPU.
        nodes: how many machines.

    Raises:
        UserError: no such device here, or nothing has started the processes of the other nodes.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        chosen: int | list[int] = devices
    elif kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:<index>")
    elif int(index or 0) + devices > torch.cuda.device_count():
        asked = f"device {device!r}" + (f" x {devices}" if devices > 1 else "")
        raise UserError(f"{asked}: torch sees {torch.cuda.device_count()} CUDA devices")
    else:
        chosen = list(range(int(index or 0), int(index or 0) + devices))
    environment = _started_outside(devices, nodes)
    if environment is None and nodes > 1:
        raise UserError(
            f"--nodes {nodes}: start one process per device with srun or torchrun, {devices} on "
            "each node"
        )
    strategy = DDPStrategy(
        start_method="popen" if environment else "spawn",
        find_unused_parameters=True,  # such as a final norm that no head reads
    )
    return Fabric(
        accelerator=kind,
        devices=chosen,
        num_nodes=nodes,
        precision=precision,
        strategy=strategy if devices * nodes > 1 else "auto",
        plugins=[environment or LightningEnvironment()],
    )


def of_worker(device: str, number: int, devices: int) -> str:
    """The device at which worker `number` of a sweep trains cells of so many devices each.

    "cuda" stands for all of them: workers take their share in turn, and share where there are more
    workers than shares. Any other device is the same for all workers.
    """
    shares = torch.cuda.device_count() // devices if device == "cuda" else 0
    return f"cuda:{number % shares * devices}" if shares else device


def follows(devices: int, nodes: int) -> bool:
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


def settle(fabric: Fabric, threads: int) -> None:
    """What each process of a cell sets first: threads of torch, and on a CPU the same bits."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(fabric.device.type == "cpu")


def check_batch(recipe: Recipe, processes: int) -> None:
    """Refuse a batch that cannot be cut into equal parts.

    Raises:
        UserError: the parts are no whole number of images.
    """
    if recipe.batch % (processes * recipe.accumulate):
        raise UserError(
            f"recipe.batch {recipe.batch} cannot be shared equally by {processes} devices in "
            f"{recipe.accumulate} micro-batches each (recipe.accumulate)"
        )
