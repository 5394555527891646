"""A sweep whose cells are SLURM jobs, one each; `slurm_job` says what a job does.

All nodes have to see the folder of the records, and locks have to hold across them (NFS 4, GPFS,
Lustre mounted with flock).
"""

import io
import subprocess
import time
from contextlib import redirect_stderr
from pathlib import Path

import filelock

from benchmarks.cell import Cell
from benchmarks.errors import UserError
from benchmarks.sweeps.claim import Plan, finished
from benchmarks.sweeps.local import Outcome, Report, keep_memory, note, unfinished
from benchmarks.sweeps.slurm_job import CellJob, Resources, Ticket

_SLOWEST = 30.0  # seconds between two looks at the queue


def sweep(
    plan: Plan, resources: Resources, report: Report, retry_failed: bool = False, wait: bool = True
) -> Outcome:
    """Have a job for every unfinished cell of a plan; failed ones only on request.

    Cells that a job is already queued for, or that another process runs, are not submitted.

    Args:
        plan: what to run.
        resources: of each job.
        report: takes lines, and whether they end a cell.
        retry_failed: run failed cells again.
        wait: for all records; else for none.

    Raises:
        UserError: SLURM refuses, or cannot be asked; jobs that were submitted go on.
        KeyboardInterrupt: jobs go on; the same call waits for them again.
    """
    outcome = Outcome()
    todo = unfinished(plan, outcome, report, retry_failed)
    if todo:
        keep_memory()
        _Queue(plan, list(todo), resources, outcome, report).work(wait)
    return outcome


class _Queue:
    """Cells without a record, and which job each of them has."""

    def __init__(
        self, plan: Plan, left: list[int], resources: Resources, outcome: Outcome, report: Report
    ) -> None:
        self.plan, self.left, self.outcome, self.report = plan, left, outcome, report
        self.resources, self.folder = resources, plan.out / "slurm"
        self.executor = resources.executor(self.folder, plan.device)
        self.jobs: dict[int, str] = {}  # that we have seen queued
        self.gone: set[int] = set()  # cells whose job was not queued any more at the last look
        self.held: set[int] = set()  # cells that another process was running when we came by

    def work(self, wait: bool) -> None:
        """Submit, and wait until every cell has ended."""
        pause = 1.0
        try:
            self.look()
            while self.left and wait:
                time.sleep(pause)
                pause = min(1.1 * pause, _SLOWEST)
                self.look()
        finally:
            if ids := " ".join(self.jobs[index] for index in self.left if index in self.jobs):
                line = f"jobs go on; the same command waits for them, `scancel {ids}` ends them"
                self.report(line, False)
        self.outcome.queued = sum(index in self.jobs for index in self.left)
        self.outcome.unstarted = len(self.left) - self.outcome.queued

    def look(self) -> None:
        """Take in which cells have ended, and submit those that nobody runs."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / "submit.lock"):  # two sweeps submit a cell once
                queued = _queued()
                for index in list(self.left):
                    self.settle(index, queued)
        except OSError as error:
            where = error.filename or self.plan.out
            raise UserError(f"{where}: {error.strerror or error}") from None

    def settle(self, index: int, queued: set[str]) -> None:
        """What is to be done about a cell, given the ids of the jobs that are not over."""
        cell = self.plan.cells[index]
        path = Ticket.path(self.plan, cell)
        ticket, record = Ticket.load(path), finished(cell, self.plan.out)
        if record is not None:
            self.left.remove(index)
            ours = index in self.jobs
            self.outcome.ran += ours
            self.outcome.skipped += not ours
            when = f"job {self.jobs[index]}" if ours else "recorded by another process"
            note(cell, record.status, record.reason, when, self.outcome, self.report)
        elif ticket and ticket.job in queued:
            self.gone.discard(index)
            self.queue(index, ticket.job, "queued already")
        elif ticket and ticket.job == self.jobs.get(index):
            # A record may take a moment to show on a shared file system.
            if index in self.gone or ticket.error:
                self.bury(index, ticket)
            self.gone.add(index)
        elif not _locked(self.plan.out / cell.path):
            job = self.submit(cell)
            Ticket(job=job).write(path)
            self.queue(index, job, "submitted")
        elif index not in self.held:
            self.held.add(index)
            self.report(f"{cell}: another process runs it", False)

    def queue(self, index: int, job: str, how: str) -> None:
        """Wait for a job from now on."""
        if self.jobs.get(index) != job:
            self.report(f"{self.plan.cells[index]}: job {job} {how}", False)
        self.jobs[index] = job

    def submit(self, cell: Cell) -> str:
        """The id of a new job."""
        self.executor.update_parameters(name=f"{cell.label}-seed{cell.seed}")
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints there what it raises
                return self.executor.submit(CellJob(self.plan, cell, self.resources)).job_id
        except RuntimeError as error:  # submitit's name for what sbatch said
            raise UserError(f"{cell}: no job: {error}") from None

    def bury(self, index: int, ticket: Ticket) -> None:
        """A job has ended and left no record."""
        self.left.remove(index)
        if ticket.error:
            if ticket.error not in self.outcome.errors:
                self.outcome.errors.append(ticket.error)
            return
        log = self.folder / f"{ticket.job}_0_log.out"
        line = f"{self.plan.cells[index]}: job {ticket.job} ended, see {log}; the same command "
        self.outcome.lost.append(line + "resumes it")
        self.report(self.outcome.lost[-1], False)


def _locked(record: Path) -> bool:
    """Whether a process runs the cell of a record."""
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{record}.lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


def _queued() -> set[str]:
    """Ids of the user's jobs that are not over: waiting, running, or about to start again."""
    command = ["squeue", "--me", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip()
        raise UserError(f"squeue: {words}; jobs go on, the same command waits") from None
    except subprocess.TimeoutExpired:
        raise UserError("squeue: no answer; jobs go on, the same command waits") from None
    return set(answer.stdout.split())
