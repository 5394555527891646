"""One cell as a SLURM job through submitit: what it asks for, and what it does.

A job takes its cell's lock as any other process does, and ends at once where the cell is recorded
or locked. It runs the code as it is when it starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.cell import Cell
from benchmarks.devices import follows
from benchmarks.errors import UserError
from benchmarks.record import Record, write_atomically
from benchmarks.sweeps.claim import Plan, follow, run_one

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
        devices, nodes: so many processes on each of so many machines, sharing every batch.
        minutes: after which a job is cut off, to be continued. gpus: on each node; as many as
            devices, where these are GPUs. cpus: of each process. memory: GB on each node.
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
            slurm_additional_parameters={"requeue": True} | self.options,
            **{name: value for name, value in given.items() if value is not None},
        )
        return made


class Ticket(BaseModel):
    """Which job is to run a cell: a file beside the cell's lock, until the job is through.

    Attributes:
        job: SLURM's number. error: what the job found that the user has to mend.
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
        self.plan, self.cell = replace(plan, cells=()), cell
        self.devices, self.nodes = resources.devices, resources.nodes
        self.saved: int | None = None  # time of the checkpoint that this start found
        self.fruitless = 0  # starts, up to now, after which there was no other
        self.ending = False  # SLURM has told the job to end

    def __call__(self) -> None:
        """Run the cell, from its checkpoint where there is one."""
        from submitit import JobEnvironment

        self.ending = False
        self.saved, ticket = self._saved(), Ticket.path(self.plan, self.cell)
        self._hear_signals(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])
        plan = replace(self.plan, run=self._run)
        try:
            if follows(self.devices, self.nodes):
                follow(plan, self.cell)
                return
            result = run_one(plan, self.cell, progress=False, wait_for_lock=False)
        except UserError as error:
            Ticket(job=JobEnvironment().job_id, error=str(error)).write(ticket)
            sys.exit(f"error: {error}")
        ticket.unlink(missing_ok=True)
        if result is None:
            sys.exit(f"{self.cell}: another process runs it")

    def _hear_signals(self, cut_off: signal.Signals) -> None:
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
