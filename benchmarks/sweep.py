"""Running cells: one under its lock, or many in several local worker processes.

The sweep hands cells to its workers one by one, and a worker takes the lock beside a cell's record,
so two sweeps at once share the work. A record is the only sign that a cell is finished.
"""

import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import filelock

from benchmarks.cell import Cell
from benchmarks.errors import MachineError, UserError
from benchmarks.progress import progress_file
from benchmarks.record import Record
from benchmarks.yaml_files import differences

POLL = 0.5  # seconds between two looks at a lock that is waited for
PATIENCE = 10  # seconds that a worker has to end
RunCell = Callable[[Cell, Path, Path, str, bool], Record]
Report = Callable[[str, bool], None]  # a line, and whether it ends a cell
# glibc hands large blocks back to the kernel after each use; keeping them made training 2-6 % and
# evaluation 10-20 % faster on the mini profile, and pages of 2 MiB made training another 5 % and
# evaluation 3 % faster. Read when a process starts, so set for the workers.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True)
class Plan:
    """What to run: cells in order, folder of records, data, devices, and what runs one cell."""

    cells: tuple[Cell, ...]
    out: Path
    data_root: Path
    device: str
    run: RunCell
    devices: int = 1  # of each cell, which `run` knows too


@dataclass
class Outcome:
    """How a sweep ended, in lines.

    Attributes:
        ran: number of cells run now.
        skipped: number of cells recorded before.
        failed: cells that ended badly.
        lost: cells whose worker died, or whose machine failed.
        errors: what the user has to fix.
        unstarted: number of cells that nobody ran.
        queued: number of cells left to jobs that are not waited for.
    """

    ran: int = 0
    skipped: int = 0
    unstarted: int = 0
    queued: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """2 for a dead worker or something to fix, 1 for failed cells, else 0."""
        return 2 if self.lost or self.errors else 1 if self.failed else 0

    def summary(self) -> list[str]:
        """Lines for the end of a sweep: what to fix first, then failures, then counts."""
        lines = [f"error: {line}" for line in (*self.errors, *self.lost)]
        lines += [f"failed: {line}" for line in self.failed]
        left = f", {self.queued} left to jobs" if self.queued else ""
        left += f", {self.unstarted} not started" if self.unstarted else ""
        return [*lines, f"{self.ran} cells run, {self.skipped} recorded before{left}"]


def finished(cell: Cell, out: Path) -> Record | None:
    """The record of a cell, of any status, if there is one of the same digest.

    Raises:
        UserError: an unreadable record, or one of another digest, lies at the cell's path.
    """
    path = out / cell.path
    if not path.exists():
        return None
    record = Record.load(path)
    if record.digest != cell.digest:
        changed = differences(record.cell, cell.resolved) or "its digest"
        raise UserError(
            f"{path}: record of another cell, it differs in {changed}; move it away or choose --out"
        )
    return record


def _fault_of_machine(error: Exception) -> str:
    """Why an exception says nothing about the cell; "" where it does."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return f"out of memory ({text[:150]}); take fewer workers, or recipe.accumulate"
    if "DataLoader worker" in text:
        return f"a loader process was killed, often for want of memory ({text[:150]})"
    # The processes of one cell are torch's, which is not imported here.
    if type(error).__name__ == "ProcessExitedException":
        return f"one of its processes was killed ({text[:150]})"
    return ""


def run_one(
    plan: Plan, cell: Cell, progress: bool, wait_for_lock: bool
) -> tuple[Record, bool] | None:
    """The record of a cell, and whether it was made now, under the cell's lock.

    None if someone else holds the lock and it is not waited for.

    Anything unexpected inside the cell becomes a failed record and its traceback goes to stderr.

    Raises:
        MachineError: memory ran out or a process was killed; no record is written.
        UserError: the user has to fix something; no record is written.
    """
    path = plan.out / cell.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        timeout = -1 if wait_for_lock else 0
        with filelock.FileLock(f"{path}.lock", timeout=timeout, poll_interval=POLL):
            # Only under the lock: whoever held it before may have finished the cell.
            record = finished(cell, plan.out)
            if record is not None:
                return record, False
            for file in path.parent.glob(f".{path.stem}.*"):  # of a write that was killed
                file.unlink()
            try:
                record = plan.run(cell, plan.out, plan.data_root, plan.device, progress)
            # A full disk or a missing permission is to be fixed, and is no result of the cell.
            except (UserError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - one broken cell must not end a sweep
                if why := _fault_of_machine(error):
                    raise MachineError(f"{cell}: {why}; the same command resumes it") from None
                traceback.print_exc()
                record = cell.record("failed", f"{type(error).__name__}: {error}")
            # What `run` returns it has written; a failure that it did not expect is only here.
            if not path.exists():
                record.write(path)
            progress_file(path).unlink(missing_ok=True)
            return record, True
    except filelock.Timeout:
        return None
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{cell}: {where}: {error.strerror or error}") from None


def join_run(plan: Plan, cell: Cell) -> None:
    """Take part in a cell as one of several processes, of which the first has its lock.

    Raises:
        UserError: as `run_one`.
    """
    if finished(cell, plan.out) is None:
        plan.run(cell, plan.out, plan.data_root, plan.device, False)


def sweep(plan: Plan, workers: int, report: Report, retry_failed: bool = False) -> Outcome:
    """Run every unfinished cell of a plan with so many processes; failed ones only on request.

    Raises:
        UserError: before anything runs, if a record at a cell's path is not that cell's.
        KeyboardInterrupt: after all workers are stopped; the same call resumes.
    """
    outcome = Outcome()
    todo = unfinished(plan, outcome, report, retry_failed)
    if todo:
        _Workers(plan, todo, outcome, report).work(min(workers, len(todo)))
    return outcome


def unfinished(plan: Plan, outcome: Outcome, report: Report, retry_failed: bool) -> deque[int]:
    """Numbers of the cells to run; those that are recorded are reported.

    Raises:
        UserError: a record at a cell's path is not that cell's.
    """
    todo: deque[int] = deque()
    for index, cell in enumerate(plan.cells):
        _ = cell.digest  # computed and kept here, so that each worker does not do it again
        if retry_failed:
            remove_failed(plan, cell)
        record = finished(cell, plan.out)
        if record is None:
            todo.append(index)
        else:
            outcome.skipped += 1
            note(cell, record.status, record.reason, "recorded before", outcome, report)
    return todo


LONG = 5_000  # steps from which on a cell takes hours, and is worth a forecast
Hours = Callable[[Cell, str, Path], float]


def forecast(plan: Plan, workers: int | None, measure: Hours | None) -> str:
    """Hours per cell and in all of what a plan has left to run, in one line; "" of short cells.

    From the records of the same protocol, else from two steps of the first cell.

    Args:
        plan: whose cells without a record count.
        workers: cells side by side; None where others decide that.
        measure: takes cell, device and data root, in a process of its own, so that this one holds
            no device. None: nothing is measured.
    """
    todo = [cell for cell in plan.cells if not (plan.out / cell.path).exists()]
    if not todo or todo[0].protocol.data_root or todo[0].protocol.recipe.iterations < LONG:
        return ""
    records = map(Record.load, (plan.out / todo[0].protocol.name).glob("*/*/seed*.json"))
    costs = [record.cost for record in records if record.status == "done"]
    known = [(c.train_seconds or 0) + (c.evaluate_seconds or 0) for c in costs]
    if known:
        each, how = statistics.median(known) / 3600, f"the median of {len(known)} recorded"
    elif measure is None:
        return f"{len(todo)} cells to run; --dry-run on their device says how long they take"
    else:
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                each = pool.submit(measure, todo[0], plan.device, plan.data_root).result()
        except (UserError, BrokenProcessPool) as error:
            return f"{len(todo)} cells to run; how long they take is not known: {error}"
        how = f"projected from two steps and one image of {todo[0]} on {plan.device}"
    words = f"about {each:.3g} h a cell ({how}), {len(todo)} cells to run: {each * len(todo):.3g} h"
    if workers and workers > 1:
        rounds = -(-len(todo) // workers)
        words += f", {each * rounds:.3g} h with {workers} workers on devices of their own"
    return words


def remove_failed(plan: Plan, cell: Cell) -> None:
    """Delete the record of a cell, if it failed; it then runs again.

    Raises:
        UserError: as `finished`.
    """
    record = finished(cell, plan.out)
    if record is not None and record.status == "failed":
        (plan.out / cell.path).unlink()


class _Workers:
    """Worker processes and who of them runs which cell."""

    def __init__(self, plan: Plan, todo: deque[int], outcome: Outcome, report: Report) -> None:
        self.plan, self.todo, self.outcome, self.report = plan, todo, outcome, report
        self.held: deque[int] = deque()  # locked by another sweep when we came by
        self.processes: dict[Connection, SpawnProcess] = {}
        self.numbers: dict[Connection, int] = {}
        self.busy: dict[Connection, int] = {}

    def work(self, workers: int) -> None:
        """Run all cells; whatever happens, no worker outlives this call."""
        keep_memory()
        try:
            for number in range(workers):
                self.start(number)
            while self.processes:
                for connection in wait(list(self.processes)):
                    self.receive(connection)
        finally:
            for process in self.processes.values():
                process.terminate()
            for process in self.processes.values():
                # All were told to end first, so that they end side by side.
                process.join(PATIENCE)
                process.kill()  # one that was stopped (SIGSTOP) hears nothing else
                process.join()
        self.outcome.unstarted = len(self.todo) + len(self.held)

    def start(self, number: int) -> None:
        """Start the worker of that number and give it a cell."""
        # No fork: the variables of `keep_memory` are read only where a program starts anew.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(self.plan, number, theirs))
        process.start()
        # While we hold the worker's end too, its death never shows as the end of the connection.
        theirs.close()
        self.processes[ours], self.numbers[ours] = process, number
        self.assign(ours)

    def assign(self, connection: Connection) -> None:
        """Give a worker its next cell; cells that another sweep holds come last, waited for."""
        waiting = not self.todo
        queue = self.held if waiting else self.todo
        with suppress(BrokenPipeError):  # it died; `receive` reads the end of its connection
            # What has to be fixed mostly concerns all cells: those that run end, no other begins.
            if not queue or self.outcome.errors:
                connection.send(None)
                return
            self.busy[connection] = queue.popleft()
            connection.send((self.busy[connection], waiting))

    def receive(self, connection: Connection) -> None:
        """Take in what a worker says, or that it is gone."""
        try:
            kind, words, seconds = connection.recv()
        except (EOFError, ConnectionError):
            self.handle_exit(connection)
            return
        index = self.busy.pop(connection)
        if kind == "held":
            self.held.append(index)
        elif kind == "error":
            if words not in self.outcome.errors:
                self.outcome.errors.append(words)
        elif kind == "lost":
            self._lose(words)
        else:
            made = seconds is not None
            self.outcome.ran += made
            self.outcome.skipped += not made
            when = f"{seconds:.0f} s" if made else "recorded by another sweep"
            note(self.plan.cells[index], kind, words, when, self.outcome, self.report)
        self.assign(connection)

    def handle_exit(self, connection: Connection) -> None:
        """A worker has ended: as told, or while it ran a cell."""
        process = self.processes.pop(connection)
        process.join()
        connection.close()
        if connection not in self.busy:
            return
        cell = self.plan.cells[self.busy.pop(connection)]
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._lose(f"{cell}: its worker died ({how}); the same command resumes it")
        if self.todo or self.held:
            self.start(self.numbers.pop(connection))

    def _lose(self, line: str) -> None:
        self.outcome.lost.append(line)
        self.report(line, False)


def note(cell: Cell, status: str, reason: str, when: str, outcome: Outcome, report: Report) -> None:
    """Report the end of a cell, and keep it if it failed."""
    if status == "failed":
        outcome.failed.append(f"{cell}: {reason}")
    report(f"{cell}: {status}{f': {reason}' if reason else ''} ({when})", True)


def _worker(plan: Plan, number: int, connection: Connection) -> None:
    """Body of a worker process: cells in, (status, reason, seconds or None) out."""
    if plan.device == "cuda":
        from benchmarks.distributed import (
            device_of_worker,  # torch is not for the process of the command
        )

        plan = replace(plan, device=device_of_worker(plan.device, number, plan.devices))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it stops the workers
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while (task := connection.recv()) is not None:
            index, waiting = task
            started = time.monotonic()
            try:
                result = run_one(plan, plan.cells[index], False, waiting)
            except UserError as error:
                kind = "lost" if isinstance(error, MachineError) else "error"
                connection.send((kind, str(error), None))
                continue
            if result is None:
                connection.send(("held", "", None))
            else:
                record, made = result
                seconds = time.monotonic() - started if made else None
                connection.send((record.status, record.reason, seconds))


def keep_memory() -> None:
    """Let processes that are started from here on keep the memory that they free."""
    for name, value in _KEEP_MEMORY.items():
        os.environ.setdefault(name, value)


def end_workers_on_sigterm() -> None:
    """On SIGTERM leave through the `finally` blocks, which end the workers."""
    # The exit code that a shell gives for a process ended by that signal.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
