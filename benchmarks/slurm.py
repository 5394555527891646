"""The cells of a sweep as SLURM jobs through submitit, one job per cell.

A job takes its cell's lock as any other process does, and ends at once where the cell is recorded
or locked. It runs the code as it is when the job starts. All nodes see the folder of the records,
and file locks have to hold across them (NFS 4, GPFS, Lustre mounted with flock).
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.cell import Cell
from benchmarks.errors import UserError
from benchmarks.record import Record, write_atomically
from benchmarks.sweep import (
    Outcome,
    Plan,
    Report,
    finished,
    join_run,
    keep_memory,
    note,
    run_one,
    unfinished,
)

if TYPE_CHECKING:
    from submitit import Executor
    from submitit.core.utils import DelayedSubmission


FRUITLESS = 3  # times that a job may be cut off in a row without a new checkpoint
_SPREAD = 3.0  # seconds within which all processes of a job hear a signal
_GRACE = 3600.0  # seconds, longer than SLURM lets a job live that it has told to end
_UNLIMITED = 10**6  # submitit's own limit of continuations; `CellJob.checkpoint` has a better one


@dataclass(frozen=True)
class Resources:
    """What each job asks SLURM for; the cluster's own defaults where nothing is said.

    Attributes:
        devices: processes on each machine, one per device; all share every batch.
        nodes: machines.
        minutes: after which a job is cut off, to be continued.
        gpus: on each node; as many as devices, where these are GPUs.
        cpus: of each process.
        memory: GB on each node.
        options: further ones of sbatch, True for one without a value.
    """

    devices: int = 1
    nodes: int = 1
    minutes: int = 240
    partition: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: float | None = None
    options: dict[str, str | bool] = field(default_factory=dict)

    def executor(self, folder: Path, device: str) -> Executor:
        """What submits jobs; their logs and what submitit needs go to `folder`.

        Raises:
            UserError: submitit or SLURM is not there.
        """
        try:
            import submitit
        except ImportError:
            raise UserError("--on slurm: pip install submitit (see requirements.in)") from None
        if not (shutil.which("sbatch") and shutil.which("srun") and shutil.which("squeue")):
            raise UserError("--on slurm: no sbatch, srun or squeue here; try on a login node")
        made = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=_UNLIMITED)
        gpus = self.devices if self.gpus is None and device.startswith("cuda") else self.gpus
        given = {
            "slurm_partition": self.partition,
            "gpus_per_node": gpus or None,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
        }
        made.update_parameters(
            timeout_min=self.minutes,
            nodes=self.nodes,
            tasks_per_node=self.devices,
            stderr_to_stdout=True,
            slurm_srun_args=["--kill-on-bad-exit=1"],  # processes of a cell end together
            # A job whose node fails goes back into the queue, and on from its checkpoint.
            slurm_additional_parameters={"requeue": True} | self.options,
            **{name: value for name, value in given.items() if value is not None},
        )
        return made


class Ticket(BaseModel):
    """Which job is to run a cell: a file beside the cell's lock, until the job is through.

    Attributes:
        job: SLURM's number.
        error: what the job found that the user has to fix.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    error: str = ""

    @staticmethod
    def path(plan: Plan, cell: Cell) -> Path:
        """Where the ticket of a cell lies."""
        return Path(f"{plan.out / cell.path}.job")

    @classmethod
    def load(cls, path: Path) -> Ticket | None:
        """The ticket at `path`, if there is one.

        Raises:
            UserError: something else lies there.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise UserError(f"{path}: names no job; delete it") from None

    def write(self, path: Path) -> None:
        """Put the ticket at `path`, whole or not at all."""
        write_atomically(path, lambda file: file.write(self.model_dump_json().encode()))


class CellJob:
    """What each process of a job calls. submitit pickles it, and again where it is requeued."""

    def __init__(self, plan: Plan, cell: Cell, resources: Resources) -> None:
        # The job is pickled with its plan; the other cells of a sweep are none of its business.
        self.plan, self.cell = replace(plan, cells=()), cell
        self.devices, self.nodes = resources.devices, resources.nodes
        self.saved: int | None = None  # time of the checkpoint that this start found
        self.fruitless = 0  # starts, up to now, after which there was no other
        self.ending = False  # SLURM has told the job to end

    def __call__(self) -> None:
        """Run the cell, from its checkpoint where there is one."""
        from submitit import JobEnvironment

        from benchmarks.distributed import is_nonzero_rank  # brings torch, which `status` spares

        self.ending = False
        self.saved, ticket = self._saved(), Ticket.path(self.plan, self.cell)
        self._handle_signals(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])
        plan = replace(self.plan, run=self._run)
        try:
            # One lock per cell, which the first process holds: it would turn the others away.
            if is_nonzero_rank(self.devices, self.nodes):
                join_run(plan, self.cell)
                return
            result = run_one(plan, self.cell, progress=False, wait_for_lock=False)
        except UserError as error:
            Ticket(job=JobEnvironment().job_id, error=str(error)).write(ticket)
            sys.exit(f"error: {error}")
        ticket.unlink(missing_ok=True)
        if result is None:
            sys.exit(f"{self.cell}: another process runs it")

    def _handle_signals(self, cut_off: signal.Signals) -> None:
        """Take SIGTERM as the end of the job; leave `cut_off` to the process that submitit started.

        SLURM signals every process of a job, those that it forks to load data among them.
        """

        def end(number: int, frame: object) -> None:
            self.ending = True

        signal.signal(signal.SIGTERM, end)
        os.register_at_fork(after_in_child=lambda: signal.signal(cut_off, signal.SIG_IGN))

    def _run(self, *arguments: Any) -> Record:
        """Run the plan's function.

        SIGTERM ends loaders, and processes on other nodes, before the job: what breaks then is no
        failure of the cell. Whether the job starts again is decided by what follows: submitit's
        signal, or SLURM's own requeue.
        """
        try:
            return self.plan.run(*arguments)
        except Exception:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where torch raises for lost loaders
            time.sleep(_SPREAD)
            if self.ending:
                time.sleep(_GRACE)
                sys.exit(f"{self.cell}: the job was ended")
            raise

    def checkpoint(self) -> DelayedSubmission:
        """What goes on later: submitit asks when a job is preempted or its time is up.

        Raises:
            UserError: again and again there was no time to save anything.
        """
        from submitit.core.utils import DelayedSubmission

        self.fruitless = self.fruitless + 1 if self._saved() == self.saved else 0
        if self.fruitless == FRUITLESS:
            raise UserError(
                f"{self.cell}: cut off {FRUITLESS} times before its next checkpoint; give more "
                "--time, or a smaller number with --set recipe.checkpoint_every=..."
            )
        return DelayedSubmission(self)

    def _saved(self) -> int | None:
        path = Path(f"{self.plan.out / self.cell.path}.checkpoint")
        return path.stat().st_mtime_ns if path.exists() else None


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
                _wait(pause)
                # Every look is a request to the controller of the whole cluster.
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
                # The queue first, the records after it: whatever ends in between has left its
                # record. The other way round it would seem to have ended without one.
                queued = queued_jobs()
                for index in list(self.left):
                    self.update_cell(index, queued)
        except OSError as error:
            where = error.filename or self.plan.out
            raise UserError(f"{where}: {error.strerror or error}") from None

    def update_cell(self, index: int, queued: set[str]) -> None:
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
                self.handle_exit(index, ticket)
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

    def handle_exit(self, index: int, ticket: Ticket) -> None:
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


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _locked(record: Path) -> bool:
    """Whether a process runs the cell of a record."""
    record.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{record}.lock", timeout=0):
            return False
    except filelock.Timeout:
        return True


def queued_jobs() -> set[str]:
    """Ids of the user's jobs that are not over: waiting, running, or about to start again.

    Raises:
        UserError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip()
        raise UserError(f"squeue: {words}; jobs go on, the same command waits") from None
    except subprocess.TimeoutExpired:
        raise UserError("squeue: no answer; jobs go on, the same command waits") from None
    return set(answer.stdout.split())
