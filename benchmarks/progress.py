"""Progress bars with the time left, on a terminal only."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def training_bar(total: int, done: int, wanted: bool) -> Iterator[Callable[[float], None]]:
    """Gives a function to call with the loss after each step.

    Silent unless the bar is `wanted` and stderr is a terminal.
    """
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda loss: None
        return
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as bar:
        task = bar.add_task("", total=total, completed=done, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)


@contextmanager
def bytes_bar(words: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of further bytes, from any thread.

    Silent unless stderr is a terminal; `total` None: nobody knows it.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = TextColumn(words, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)
