"""What commands print besides tables: lists, the summary of a record, progress bars."""

import math
import sys
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

from benchmarks import protocol, yaml_files
from benchmarks.data import cards
from benchmarks.record import Record
from benchmarks.report import spec as table_spec
from benchmarks.tasks import load_protocol


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


Lines = Iterator[tuple[str, str]]


def methods() -> Lines:
    """Built-in methods with the first words of their source."""
    from baselines import METHODS

    for name, kind in METHODS.items():
        yield name, kind.source.partition(". ")[0]


def protocols() -> Lines:
    """Protocols with their titles."""
    for path in sorted(protocol.FOLDER.glob("*.yaml")):
        yield path.stem, load_protocol(path.stem).title


def tables() -> Lines:
    """Tables with their titles."""
    for path in sorted(table_spec.FOLDER.glob("*.yaml")):
        yield path.stem, table_spec.load_table(path.stem).title


def datasets() -> Lines:
    """Data-set cards with their titles."""
    for path in sorted(cards.FOLDER.glob("*.yaml")):
        yield path.stem, str(yaml_files.read(path).get("title", ""))


LISTS: dict[str, Callable[[], Lines]] = {
    "methods": methods,
    "protocols": protocols,
    "tables": tables,
    "datasets": datasets,
}


def print_record(record: Record) -> None:
    """Status and the scores (percent) of the last evaluation."""
    print(f"{record.label} seed {record.seed}: {record.status} {record.reason}".rstrip())
    if not record.evaluations:
        return
    last = max(record.evaluations, key=lambda evaluation: evaluation.iteration)
    for name, score in last.domains.items():
        for metric, value in score.metrics.items():
            if isinstance(value, float):
                print(f"{name:<20} {metric} {value:.2f} ({score.images} images, {score.role})")


@contextmanager
def progress(cells: int) -> Iterator[Callable[[str, bool], None]]:
    """A function to report lines to: a bar with the time left on a terminal, else plain lines."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        ended = 0

        def plain(line: str, ends_cell: bool) -> None:
            nonlocal ended
            ended += ends_cell
            print(f"[{ended}/{cells}] {line}", file=sys.stderr, flush=True)

        yield plain
        return
    columns = TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=cells)

        def live(line: str, ends_cell: bool) -> None:
            bar.console.print(line, highlight=False, markup=False)
            bar.update(task, advance=int(ends_cell))

        yield live


def say(line: str) -> None:
    """Print a line that is no result: on stderr."""
    print(line, file=sys.stderr)
