"""What commands say besides tables: lists, the summary of a record, progress."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks import protocol, yaml_files
from benchmarks.data import cards
from benchmarks.record import Record
from benchmarks.reporting import table_spec

Lines = Iterator[tuple[str, str]]


def methods() -> Lines:
    """Built-in methods with the first words of their source."""
    from baselines import METHODS

    for name, kind in METHODS.items():
        yield name, kind.source.partition(". ")[0]


def protocols() -> Lines:
    """Protocols with their titles."""
    for path in sorted(protocol.FOLDER.glob("*.yaml")):
        yield path.stem, protocol.load_protocol(path.stem).title


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
