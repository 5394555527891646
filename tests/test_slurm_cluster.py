"""Sweeps on a real SLURM of one node, which `tests/one_node_slurm.sh` starts around pytest."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import filelock
import pytest
import test_scale
import test_sweep
import torch
import toy_runs
import toy_task
from tiny_worlds import write_world
from toy_task import cell_of, numbers

from benchmarks import run
from benchmarks.cell import Cell
from benchmarks.claim import Plan, finished
from benchmarks.slurm import sweep
from benchmarks.slurm_job import Resources, Ticket
from benchmarks.sweep import Outcome

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        "ONE_NODE_SLURM" not in os.environ, reason="needs tests/one_node_slurm.sh around pytest"
    ),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def _jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    yield
    torch.use_deterministic_algorithms(False)


class Lines(list):
    """Reported lines. The job of the cell that `cancels` is cancelled as soon as it is named."""

    cancels = None

    def __call__(self, line: str, ends: bool) -> None:
        self.append(line)
        if line.startswith(f"{self.cancels}: ") and line.endswith("queued already"):
            subprocess.run(["scancel", line.split()[-3]], check=True)


def work(
    plan: Plan, wait: bool = True, cancels: Cell | None = None, **resources: int
) -> tuple[Outcome, list[str]]:
    lines = Lines()
    lines.cancels = cancels
    return sweep(plan, Resources(minutes=30, **resources), lines, wait=wait), lines


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within its time"
        time.sleep(0.1)


def saved(plan: Plan, cell: Cell) -> bool:
    return Path(f"{plan.out / cell.path}.checkpoint").exists()


def test_two_sweeps_submit_each_cell_once_and_leave_alone_what_runs_elsewhere(
    tmp_path: Path,
) -> None:
    plan = test_sweep.plan(tmp_path, toy_runs.breaks_on_lora, methods=("freeze", "lora", "full"))
    plan = Plan(plan.cells[:3], plan.out, tmp_path, "cpu", plan.run)
    elsewhere = plan.out / plan.cells[2].path
    elsewhere.parent.mkdir(parents=True)
    found: list[tuple[Outcome, list[str]]] = []
    sweeps = [threading.Thread(target=lambda: found.append(work(plan))) for _ in range(2)]
    with filelock.FileLock(f"{elsewhere}.lock"):
        for each in sweeps:
            each.start()
        until(lambda: all((plan.out / cell.path).exists() for cell in plan.cells[:2]))
        assert len(list((plan.out / "slurm").glob("*_submission.sh"))) == 2
    for each in sweeps:
        each.join(timeout=120)
    assert test_sweep.log(tmp_path) == ["0 freeze", "0 full"]
    assert len(list((plan.out / "slurm").glob("*_submission.sh"))) == 3
    assert not list(plan.out.rglob("*.job"))
    for outcome, lines in found:
        assert outcome.failed == ["lora seed 0 (all): RuntimeError: something unexpected"]
        assert (outcome.ran, outcome.exit_code) == (3, 1)
        assert "full seed 0 (all): another process runs it" in lines


def test_jobs_cut_off_by_slurm_go_on_to_the_same_bits_and_a_cancelled_one_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tuple(cell_of(seed=seed, iterations=n) for seed, n in enumerate((40, 40, 900)))
    plan = Plan(cells, tmp_path / "out", tmp_path, "cpu", toy_runs.trains)
    outcome, lines = work(plan, wait=False)
    assert outcome.summary() == ["0 cells run, 0 recorded before, 3 left to jobs"]
    jobs = [Ticket.load(Ticket.path(plan, cell)).job for cell in cells]
    assert lines[-1].startswith(f"jobs go on; the same command waits for them, `scancel {jobs[0]}")
    cut_off = {
        0: ["scontrol", "requeue", jobs[0]],  # as SLURM preempts
        1: ["scancel", "--signal=USR2", jobs[1]],  # as before a time-out
    }
    while cut_off:
        until(lambda: any(saved(plan, cells[seed]) for seed in cut_off))
        seed = next(seed for seed in cut_off if saved(plan, cells[seed]))
        subprocess.run(cut_off.pop(seed), check=True)
    outcome, lines = work(plan, cancels=cells[2])
    assert f"{cells[0]}: job {jobs[0]} queued already" in lines
    assert (outcome.ran, outcome.exit_code) == (2, 2)
    log = plan.out / "slurm" / f"{jobs[2]}_0_log.out"
    assert outcome.lost == [
        f"{cells[2]}: job {jobs[2]} ended, see {log}; the same command resumes it"
    ]
    monkeypatch.setattr(toy_task.Slow, "pause", 0)
    (tmp_path / "alone").mkdir()
    for cell in cells[:2]:
        alone = toy_runs.trains(cell, tmp_path / "alone", tmp_path / "alone", "cpu", False)
        assert numbers(finished(cell, plan.out)) == numbers(alone)
    assert test_sweep.log(tmp_path)[:4] == ["0 new", "0 resumed", "1 new", "1 resumed"]


def test_processes_that_srun_starts_share_a_cell(tmp_path: Path) -> None:
    write_world(tmp_path, "gtav", "train", 7)
    write_world(tmp_path, "cityscapes", "val", 20)
    cell = test_scale.cell()
    together = partial(run.run_cell, devices=2)
    plan = Plan((cell,), tmp_path / "out", tmp_path, "cpu", together)
    outcome, _ = work(plan, devices=2)
    assert outcome.exit_code == 0
    record = finished(cell, plan.out)
    assert (record.cost.devices, record.cost.micro_batch) == (2, 2)
    alone = run.run_cell(cell, tmp_path / "alone", tmp_path)
    assert test_scale.furthest(test_scale.losses(record), test_scale.losses(alone)) <= 1e-5
