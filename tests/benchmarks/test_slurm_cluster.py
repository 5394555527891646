"""Sweeps on a real SLURM of one node, which `tests/one_node_slurm.sh` starts around pytest."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
import toy_runs
import toy_shards
import toy_sweep
from paths import ROOT, SUPPORT
from tiny_worlds import write_world
from toy_task import cell_of, numbers, uninterrupted

from benchmarks import run
from benchmarks.cell import Cell, prepare
from benchmarks.slurm import Resources, Ticket, sweep
from benchmarks.sweep import Outcome, Plan, finished

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        "ONE_NODE_SLURM" not in os.environ, reason="needs tests/one_node_slurm.sh around pytest"
    ),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def _jobs_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(SUPPORT)]))
    yield
    torch.use_deterministic_algorithms(False)


def work(plan: Plan, wait: bool = True, **asked: Any) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    resources = Resources(minutes=30, **asked)
    return sweep(plan, resources, lambda line, ends: lines.append(line), wait=wait), lines


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
    plan = toy_sweep.plan(
        tmp_path, toy_runs.breaks_on_lora, methods=("freeze", "lora", "full"), seeds=1
    )
    paths = [plan.out / cell.path for cell in plan.cells]
    paths[2].parent.mkdir(parents=True)
    found: list[tuple[Outcome, list[str]]] = []
    sweeps = [threading.Thread(target=lambda: found.append(work(plan))) for _ in range(2)]
    with filelock.FileLock(f"{paths[2]}.lock"):
        for each in sweeps:
            each.start()
        until(lambda: all(path.exists() for path in paths[:2]))
        toy_runs.quick(plan.cells[2], plan.out, tmp_path, "cpu", False).write(paths[2])
    for each in sweeps:
        each.join(timeout=120)
    assert toy_sweep.log(tmp_path) == ["0 freeze", "0 full"]
    assert len(list((plan.out / "slurm").glob("*_submission.sh"))) == 2
    assert not list(plan.out.rglob("*.job"))
    for outcome, lines in found:
        assert outcome.failed == ["lora seed 0 (all): RuntimeError: something unexpected"]
        assert (outcome.ran, outcome.skipped, outcome.exit_code) == (2, 1, 1)
        assert "full seed 0 (all): another process runs it" in lines


def test_a_cancelled_job_is_reported(tmp_path: Path) -> None:
    plan = toy_sweep.plan(tmp_path, methods=("freeze",), seeds=1)
    later = Resources(options={"begin": "now+1hour"})

    def cancel(line: str, ends: bool) -> None:
        if line.endswith("submitted"):
            subprocess.run(["scancel", line.split()[-2]], check=True)

    outcome = sweep(plan, later, cancel)
    (line,) = outcome.lost
    assert line.startswith("freeze seed 0 (all): job ")
    assert outcome.exit_code == 2


def test_jobs_that_slurm_cuts_off_go_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tuple(cell_of(seed=seed, iterations=40) for seed in range(2))
    plan = Plan(cells, tmp_path / "out", tmp_path, "cpu", toy_runs.trains)
    outcome, lines = work(plan, wait=False)
    assert outcome.summary() == ["0 cells run, 0 recorded before, 2 left to jobs"]
    jobs = [Ticket.load(Ticket.path(plan, cell)).job for cell in cells]
    ids = " ".join(jobs)
    assert lines[-1] == f"jobs go on; the same command waits for them, `scancel {ids}` ends them"
    cut_off = {
        0: ["scontrol", "requeue", jobs[0]],  # as SLURM preempts
        1: ["scancel", "--signal=USR2", jobs[1]],  # as before a time-out
    }
    while cut_off:
        until(lambda: any(saved(plan, cells[seed]) for seed in cut_off))
        seed = next(seed for seed in cut_off if saved(plan, cells[seed]))
        subprocess.run(cut_off.pop(seed), check=True)
    outcome, lines = work(plan)
    assert f"{cells[0]}: job {jobs[0]} queued already" in lines
    assert (outcome.ran, outcome.exit_code) == (2, 0)
    for cell in cells:
        alone = uninterrupted(cell, tmp_path, monkeypatch)
        assert numbers(finished(cell, plan.out)) == numbers(alone)
    assert toy_sweep.log(tmp_path) == ["0 new", "0 resumed", "1 new", "1 resumed"]


def test_processes_that_srun_starts_share_a_cell(tmp_path: Path) -> None:
    write_world(tmp_path, "gtav", "train", 7)
    write_world(tmp_path, "cityscapes", "val", 20)
    (cell,) = prepare([toy_shards.cell()], tmp_path, tmp_path / "out")
    together = partial(run.run_cell, devices=2)
    plan = Plan((cell,), tmp_path / "out", tmp_path, "cpu", together)
    outcome, _ = work(plan, devices=2)
    assert outcome.exit_code == 0
    record = finished(cell, plan.out)
    assert (record.cost.devices, record.cost.micro_batch) == (2, 2)
    alone = run.run_cell(cell, tmp_path / "alone", tmp_path)
    assert toy_shards.furthest(toy_shards.losses(record), toy_shards.losses(alone)) <= 1e-5
