"""What commands print besides tables: lists, the summary of a record, progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from benchmarks import protocol, yaml_files
from benchmarks.data import cards
from benchmarks.progress import duration, read_state, words
from benchmarks.record import Imported, Record
from benchmarks.report import spec as table_spec
from benchmarks.tasks import load_protocol


@contextmanager
def bytes_bar(words: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of further bytes, from any thread.

    Silent unless stderr is a terminal; `total` None: nobody knows it.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    # Names may hold brackets, which rich would read as markup.
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
    if record.evaluations:
        print_scores(record)


def print_scores(record: Record | Imported) -> None:
    """The scores (percent) of the last evaluation."""
    last = max(record.evaluations, key=lambda evaluation: evaluation.iteration)
    for name, score in last.domains.items():
        for metric, value in score.metrics.items():
            if isinstance(value, float):
                print(f"{name:<20} {metric} {value:.2f} ({score.images} images, {score.role})")


@contextmanager
def progress(cells: int, records: Mapping[Path, str]) -> Iterator[Callable[[str, bool], None]]:
    """A function to report lines to: bars on a terminal, else plain lines.

    Args:
        cells: how many there are.
        records: path of the record -> name of a cell, which gets a bar of its own while it runs.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        ended = 0

        def plain(line: str, ends_cell: bool) -> None:
            nonlocal ended
            ended += ends_cell
            print(f"[{ended}/{cells}] {line}", file=sys.stderr, flush=True)

        yield plain
        return
    with CellBars(console, cells, records) as bars:
        over = Event()
        # A thread: the cells run in other processes and only their files say how far they are.
        thread = Thread(target=bars.follow, args=(over,), daemon=True)
        thread.start()
        try:
            yield bars.report
        finally:
            over.set()
            thread.join()


class CellBars:
    """A bar of all cells and one of each cell that runs, from the progress files of the cells."""

    def __init__(self, console: Console, cells: int, records: Mapping[Path, str]) -> None:
        name = TextColumn("{task.description}", markup=False)
        count = TextColumn("{task.completed:,.0f}/{task.total:,.0f}")
        note = TextColumn("{task.fields[note]}", markup=False)
        self.bars = Progress(name, BarColumn(16), count, note, console=console)
        self.records, self.began = records, datetime.now(UTC)
        self.whole = self.bars.add_task("cells", total=cells, note="")
        self.shown: dict[Path, TaskID] = {}

    def __enter__(self) -> CellBars:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def report(self, line: str, ends_cell: bool) -> None:
        """Print a line above the bars."""
        self.bars.console.print(line, highlight=False, markup=False)
        self.bars.update(self.whole, advance=int(ends_cell))

    def follow(self, over: Event) -> None:
        """Look once a second until it is over."""
        while not over.wait(1.0):
            self.look()

    def look(self) -> None:
        """Bring the bars to where the cells are."""
        all_cells = self.bars.tasks[0]
        left = all_cells.time_remaining
        known = "" if left is None else f", left {duration(left)}"
        self.bars.update(self.whole, note=f"{duration(all_cells.elapsed or 0)}{known}")
        for record, name in self.records.items():
            state = None if record.exists() else read_state(record)
            # A state from before this command is of a run that was cut off.
            if state is None or state.updated < self.began:
                if record in self.shown:
                    self.bars.remove_task(self.shown.pop(record))
                continue
            if record not in self.shown:
                self.shown[record] = self.bars.add_task(name, total=state.of, note="")
            note = words(state).partition("  ")[2]
            self.bars.update(self.shown[record], completed=state.iteration, note=note)


def say(line: str) -> None:
    """Print a line that is no result: on stderr."""
    print(line, file=sys.stderr)


def clear() -> None:
    """Begin again at the top of the terminal; nothing where stdout is none."""
    if sys.stdout.isatty():
        print("\033[2J\033[H", end="")
