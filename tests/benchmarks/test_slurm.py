"""Sweeps as jobs, on a stand-in for SLURM: submitit's own executors, a queue that tests steer."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import filelock
import psutil
import pytest
import submitit
import toy_runs
import toy_sweep
from paths import ROOT, SUPPORT
from toy_sweep import log, plan
from toy_task import cell_of, numbers, uninterrupted

from benchmarks import slurm
from benchmarks.__main__ import main
from benchmarks.errors import UserError
from benchmarks.slurm import FRUITLESS, CellJob, Resources, Ticket
from benchmarks.sweep import Outcome, Plan, finished

Happening = Callable[[], object]


class Queue:
    """Jobs that run one by one, in this process, whenever a sweep waits."""

    def __init__(self, folder: Path) -> None:
        self.executor = submitit.DebugExecutor(folder)
        self.jobs: dict[str, submitit.Job] = {}
        self.names: list[str] = []
        self.meanwhile: list[Happening] = []  # what happens before a job runs
        self.looks = 0

    def update_parameters(self, name: str) -> None:
        self.names.append(name)

    def submit(self, job: CellJob) -> submitit.Job:
        made = self.executor.submit(job)
        self.jobs[made.job_id] = made
        return made

    def queued(self) -> set[str]:
        self.looks += 1
        assert self.looks < 100, "the sweep does not end"
        return set(self.jobs)

    def sleep(self, seconds: float) -> None:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        elif self.jobs:
            self.run_next()

    def run_next(self) -> None:
        job = self.jobs.pop(next(iter(self.jobs)))
        with suppress(SystemExit):
            job.results()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    made = Queue(tmp_path / "logs")
    monkeypatch.setattr(Resources, "executor", lambda *_: made)
    monkeypatch.setattr(slurm, "queued_jobs", made.queued)
    monkeypatch.setattr(slurm, "_wait", made.sleep)
    monkeypatch.setattr(slurm, "_SPREAD", 0)
    monkeypatch.setattr(slurm, "_GRACE", 0)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def work(made: Plan, **how: bool) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    outcome = slurm.sweep(made, Resources(), lambda line, ends: lines.append(line), **how)
    return outcome, lines


def test_every_cell_is_a_job_that_leaves_its_record(queue: Queue, tmp_path: Path) -> None:
    made = plan(tmp_path)
    outcome, lines = work(made)
    assert outcome.summary() == ["4 cells run, 0 recorded before"]
    assert log(tmp_path) == ["0 freeze", "0 lora", "1 freeze", "1 lora"]
    assert queue.names == ["freeze-seed0", "lora-seed0", "freeze-seed1", "lora-seed1"]
    assert len(lines) == 8  # each submitted, each ended
    assert not list(made.out.rglob("*.job"))


def test_recorded_cells_are_no_jobs(queue: Queue, tmp_path: Path) -> None:
    toy_sweep.work(plan(tmp_path, seeds=1))
    outcome, _ = work(plan(tmp_path))
    assert (outcome.ran, outcome.skipped, len(queue.names)) == (2, 2, 2)


def test_without_waiting_jobs_are_left_and_the_next_sweep_waits_for_them(
    queue: Queue, tmp_path: Path
) -> None:
    outcome, lines = work(plan(tmp_path), wait=False)
    assert outcome.summary() == ["0 cells run, 0 recorded before, 4 left to jobs"]
    assert outcome.exit_code == 0
    assert not (tmp_path / "log").exists()
    ids = " ".join(queue.jobs)
    assert lines[-1] == f"jobs go on; the same command waits for them, `scancel {ids}` ends them"
    outcome, lines = work(plan(tmp_path))
    assert lines[0].endswith("queued already")
    assert (outcome.ran, len(queue.names)) == (4, 4)
    assert len(log(tmp_path)) == 4


def test_interrupt_leaves_the_jobs_and_says_so(queue: Queue, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    queue.meanwhile = [interrupt]
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        slurm.sweep(plan(tmp_path), Resources(), lambda line, ends: lines.append(line))
    assert len(queue.jobs) == 4
    assert f"`scancel {' '.join(queue.jobs)}` ends them" in lines[-1]


def test_failed_cells_are_reported_and_made_again_only_on_request(
    queue: Queue, tmp_path: Path
) -> None:
    outcome, _ = work(plan(tmp_path, toy_runs.breaks_on_lora, seeds=1))
    assert outcome.failed == ["lora seed 0 (all): RuntimeError: something unexpected"]
    assert (outcome.ran, outcome.exit_code) == (2, 1)
    outcome, _ = work(plan(tmp_path, seeds=1))
    assert (outcome.ran, outcome.exit_code, len(queue.names)) == (0, 1, 2)
    outcome, _ = work(plan(tmp_path, seeds=1), retry_failed=True)
    assert (outcome.ran, outcome.exit_code) == (1, 0)


def test_a_cell_that_a_process_runs_becomes_a_job_only_once_it_has_let_go(
    queue: Queue, tmp_path: Path
) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    path = made.out / made.cells[0].path
    path.parent.mkdir(parents=True)
    lock = filelock.FileLock(f"{path}.lock", is_singleton=False)
    lock.acquire()
    queue.meanwhile = [lambda: None, lambda: queue.names == [] and lock.release()]
    outcome, lines = work(made)
    assert lines[0] == "freeze seed 0 (all): another process runs it"
    assert sum("another process" in line for line in lines) == 1
    assert (outcome.ran, len(queue.names)) == (1, 1)


def test_a_job_ends_at_once_where_its_cell_is_run_by_now(queue: Queue, tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    path = made.out / made.cells[0].path
    lock = filelock.FileLock(f"{path}.lock", is_singleton=False)
    queue.meanwhile = [lock.acquire, queue.run_next, lambda: None, lock.release]
    outcome, _ = work(made)
    assert log(tmp_path) == ["0 freeze"]
    assert len(queue.names) == 2
    assert (outcome.ran, outcome.lost) == (1, [])


def test_a_job_that_vanished_is_lost_and_the_next_sweep_submits_it_again(
    queue: Queue, tmp_path: Path
) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    queue.meanwhile = [lambda: queue.jobs.clear()]
    outcome, _ = work(made)
    job = Ticket.load(Ticket.path(made, made.cells[0])).job
    printed = made.out / "slurm" / f"{job}_0_log.out"
    assert outcome.lost == [
        f"freeze seed 0 (all): job {job} ended, see {printed}; the same command resumes it"
    ]
    assert outcome.exit_code == 2
    outcome, _ = work(made)
    assert (outcome.ran, outcome.exit_code) == (1, 0)


def test_a_record_that_shows_late_is_not_lost(queue: Queue, tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    record = toy_runs.quick(made.cells[0], made.out, tmp_path, "cpu", False)
    show = partial(record.write, made.out / made.cells[0].path)
    queue.meanwhile = [lambda: queue.jobs.clear(), show]
    outcome, _ = work(made)
    assert (outcome.ran, outcome.lost) == (1, [])


def test_what_the_user_has_to_mend_is_told_once_and_leaves_no_record(
    queue: Queue, tmp_path: Path
) -> None:
    made = plan(tmp_path, toy_runs.data_is_broken)
    outcome, _ = work(made)
    assert outcome.errors == ["image_7.png: truncated; fetch it again"]
    assert outcome.exit_code == 2
    assert not list(made.out.rglob("seed*.json"))


def test_something_else_in_the_place_of_a_ticket_is_one_line(queue: Queue, tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    path = Ticket.path(made, made.cells[0])
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match="names no job; delete it"):
        work(made)


def test_an_error_in_a_job_that_slurm_ends_is_no_failure_of_the_cell(
    queue: Queue, tmp_path: Path
) -> None:
    """Loaders hear SIGTERM too, and the main process finds them dead."""

    def loses_its_loader(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker is killed by signal")

    made = plan(tmp_path, loses_its_loader, methods=("freeze",), seeds=1)
    with pytest.raises(SystemExit, match="the job was ended"):
        CellJob(made, made.cells[0], Resources())()
    assert finished(made.cells[0], made.out) is None


def test_a_job_that_never_gets_to_a_checkpoint_stops_and_says_so(tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    job = CellJob(made, made.cells[0], Resources())
    for _ in range(FRUITLESS - 1):
        job = job.checkpoint().function
    saved = Path(f"{made.out / made.cells[0].path}.checkpoint")
    saved.parent.mkdir(parents=True)
    saved.touch()
    job = job.checkpoint().function  # something was saved: the count starts anew
    job.saved = saved.stat().st_mtime_ns
    for _ in range(FRUITLESS - 1):
        job = job.checkpoint().function
    with pytest.raises(UserError, match=r"cut off 3 times before its next checkpoint; .* --time"):
        job.checkpoint()


@pytest.mark.usefixtures("one_thread")
def test_a_job_that_submitit_requeues_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(SUPPORT)]))
    cell = cell_of(iterations=20)
    made = Plan((cell,), tmp_path / "out", tmp_path, "cpu", toy_runs.trains)
    executor = submitit.LocalExecutor(tmp_path / "logs")
    job = executor.submit(CellJob(made, cell, Resources()))
    checkpoint = Path(f"{made.out / cell.path}.checkpoint")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (task,) = psutil.Process(int(job.job_id)).children()
    task.send_signal(signal.SIGUSR2)
    job.wait()
    assert log(tmp_path) == ["0 new", "0 resumed"]
    assert numbers(finished(cell, made.out)) == numbers(uninterrupted(cell, tmp_path, monkeypatch))


def submission(folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, **asked: object) -> str:
    """What sbatch would be given."""
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/bin/{name}")
    executor = Resources(**asked).executor(folder, device)._executor
    return executor._make_submission_file_text("python", "uid")


def test_what_jobs_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"devices": 4, "nodes": 2, "minutes": 90, "partition": "gpu", "cpus": 6, "memory": 64}
    options = {"account": "dg", "exclusive": True}
    text = submission(tmp_path, monkeypatch, "cuda", options=options, **asked)
    for line in (
        *("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=90", "partition=gpu"),
        *("cpus-per-task=6", "mem=64GB", "account=dg", "exclusive", "requeue"),
    ):
        assert f"#SBATCH --{line}\n" in text
    text = submission(tmp_path, monkeypatch, "cpu")
    assert not any(word in text for word in ("gpus", "mem", "cpus", "partition"))
    assert "gpus-per-node=8" in submission(tmp_path, monkeypatch, "cuda", gpus=8)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--partition", "gpu"], "needs --on slurm"),
        (["--no-wait"], "needs --on slurm"),
        (["--on", "slurm", "--time", "1"], "--time"),
        (["--on", "cloud"], "--on"),
    ],
)
def test_wrong_options_are_one_line(
    asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "table1", *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_no_slurm_and_no_submitit_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch, srun or squeue here"):
        work(plan(tmp_path))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        work(plan(tmp_path))


def test_what_slurm_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"sbatch": "echo invalid partition >&2; exit 1", "squeue": "true", "srun": "true"}
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"freeze seed 0 \(all\): no job: invalid partition"):
        work(plan(tmp_path))
    assert capsys.readouterr().err == ""
    (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(UserError, match="squeue: no controller; jobs go on"):
        work(plan(tmp_path))
