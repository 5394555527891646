"""How the work of a cell is shared by processes, and a batch cut up where memory is short.

What a batch holds depends on the numbers of its samples alone, and its loss is the mean of the
losses of its equal parts. So one device and many, in one go or in micro-batches, learn the same but
for rounding and, where a method has it, the draws of dropout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

Result = TypeVar("Result")
BLOCK = 8  # a multiple of what evaluation runs through a model together


@dataclass(frozen=True)
class Share:
    """What process number `rank` of `world` does."""

    rank: int = 0
    world: int = 1

    def samples(self, batch: int, first: int, iterations: int) -> list[int]:
        """Numbers of its samples in the iterations `first`, `first` + 1, ..., `iterations` - 1.

        Iteration i learns from the samples i `batch`, i `batch` + 1, ...; every process takes an
        equal run of them.
        """
        each = batch // self.world
        numbers = range(first * batch, iterations * batch)
        return [n for n in numbers if n % batch // each == self.rank]

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
        found = {
            number: result
            for rank, results in enumerate(everyone)
            for number, result in zip(Share(rank, self.world).items(count), results, strict=True)
        }
        return [found[number] for number in range(count)]


WHOLE = Share()


class Part(NamedTuple):
    """Which part of a batch a micro-batch is, for a loss that is no mean over the samples.

    Attributes:
        index, count: part `index` of `count` equal ones, in the order of the samples.
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
        accumulate: number of micro-batches; it divides the share.
        seed: see `Part`.
    """
    count = fabric.world_size * accumulate
    if count == 1:
        return [batch]
    targets: tuple[int, ...] = ()
    if "targets" in batch:
        own = batch["targets"]
        whole = own.new_zeros(fabric.world_size, len(own))
        whole[fabric.global_rank] = own
        targets = tuple(fabric.all_reduce(whole, reduce_op="sum").flatten().tolist())
    size = len(batch["image"]) // accumulate
    first = fabric.global_rank * accumulate
    return [
        {key: value[n * size : (n + 1) * size] for key, value in batch.items()}
        | {"part": Part(first + n, count, targets, seed)}
        for n in range(accumulate)
    ]
