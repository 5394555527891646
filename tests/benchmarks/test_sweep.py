"""Sweeps: nothing twice, nothing lost, and what happens when a cell or a worker fails."""

import ast
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
import toy_runs
from paths import ROOT, SUPPORT
from toy_records import toy_record, write_toy_records
from toy_sweep import log, plan, work

from benchmarks import sweep
from benchmarks.errors import UserError
from benchmarks.record import Cost, Record
from benchmarks.sweep import Plan, RunCell, finished, forecast, run_one


def test_every_cell_runs_once_and_is_recorded(tmp_path: Path) -> None:
    made = plan(tmp_path)
    outcome, lines = work(made)
    assert (outcome.ran, outcome.skipped, outcome.exit_code) == (4, 0, 0)
    assert log(tmp_path) == ["0 freeze", "0 lora", "1 freeze", "1 lora"]
    assert len(lines) == 4
    for cell in made.cells:
        assert finished(cell, made.out).digest == cell.digest


def test_recorded_cells_are_not_run_again(tmp_path: Path) -> None:
    made = plan(tmp_path)
    work(made)
    outcome, lines = work(made)
    assert (outcome.ran, outcome.skipped) == (0, 4)
    assert len(log(tmp_path)) == 4
    assert all("recorded before" in line for line in lines)


def test_one_worker_follows_the_order_of_the_list(tmp_path: Path) -> None:
    work(plan(tmp_path), workers=1)
    order = (tmp_path / "log").read_text().splitlines()
    assert order == ["0 freeze", "0 lora", "1 freeze", "1 lora"]


def test_two_sweeps_at_once_run_no_cell_twice(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import toy_sweep, toy_runs\n"
        "if __name__ == '__main__':\n"
        "    made = toy_sweep.plan(Path(sys.argv[1]), toy_runs.slow)\n"
        "    print(toy_sweep.work(made, 1)[0].exit_code)\n"
    )
    script = tmp_path / "other.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    command = [sys.executable, str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": path}
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # until the other sweep is in its first cell
    outcome, _ = work(plan(tmp_path, toy_runs.slow), workers=1)
    assert 0 < outcome.ran < 4, "the two sweeps did not overlap"
    assert other.communicate(timeout=30)[0].strip() == "0"
    assert (outcome.ran + outcome.skipped, outcome.exit_code) == (4, 0)
    assert log(tmp_path) == ["0 freeze", "0 lora", "1 freeze", "1 lora"]


def test_cell_that_another_sweep_holds_is_waited_for(tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    path = made.out / made.cells[0].path
    path.parent.mkdir(parents=True)
    code = (
        "import filelock, sys, time\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(2)\n"
    )
    command = [sys.executable, "-c", code, f"{path}.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        outcome, _ = work(made, workers=1)
        assert holder.poll() is not None, "the sweep ran a cell that was locked"
    assert outcome.ran == 1


def test_run_of_a_locked_cell_gives_up_at_once(tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    path = made.out / made.cells[0].path
    path.parent.mkdir(parents=True)
    with filelock.FileLock(f"{path}.lock"):
        assert run_one(made, made.cells[0], progress=False, wait_for_lock=False) is None
    assert not path.exists()


def test_broken_cell_is_recorded_as_failed_and_the_sweep_goes_on(tmp_path: Path) -> None:
    made = plan(tmp_path, toy_runs.breaks_on_lora)
    outcome, _ = work(made)
    assert outcome.exit_code == 1
    assert sorted(outcome.failed) == [
        "lora seed 0 (all): RuntimeError: something unexpected",
        "lora seed 1 (all): RuntimeError: something unexpected",
    ]
    assert log(tmp_path) == ["0 freeze", "1 freeze"]
    record = finished(made.cells[1], made.out)
    assert (record.status, record.reason) == ("failed", "RuntimeError: something unexpected")


def test_failed_cell_is_listed_again_and_rerun_only_on_request(tmp_path: Path) -> None:
    work(plan(tmp_path, toy_runs.breaks_on_lora))
    outcome, _ = work(plan(tmp_path))
    assert (outcome.ran, outcome.exit_code, len(outcome.failed)) == (0, 1, 2)
    outcome, _ = work(plan(tmp_path), retry_failed=True)
    assert (outcome.ran, outcome.exit_code) == (2, 0)


def test_dead_worker_is_reported_with_its_cell_and_the_others_finish(tmp_path: Path) -> None:
    made = plan(tmp_path, toy_runs.dies_on_lora_seed_0)
    outcome, lines = work(made)
    line = "lora seed 0 (all): its worker died (signal 9); the same command resumes it"
    assert outcome.lost == [line]
    assert line in lines
    assert outcome.exit_code == 2
    assert log(tmp_path) == ["0 freeze", "1 freeze", "1 lora"]
    again, _ = work(plan(tmp_path))
    assert (again.ran, again.skipped, again.exit_code) == (1, 3, 0)


def test_cells_left_by_a_dead_worker_are_counted(tmp_path: Path) -> None:
    outcome, _ = work(plan(tmp_path, toy_runs.dies_on_lora_seed_0), workers=1)
    assert (outcome.ran, outcome.unstarted, outcome.exit_code) == (3, 0, 2)
    assert len(outcome.lost) == 1
    assert outcome.summary()[-1] == "3 cells run, 0 recorded before"


@pytest.mark.parametrize("run", [toy_runs.memory_is_full, toy_runs.loader_is_killed])
def test_a_fault_of_the_machine_leaves_no_record_and_goes_on(run: RunCell, tmp_path: Path) -> None:
    outcome, _ = work(plan(tmp_path, run), workers=1)
    assert (outcome.ran, len(outcome.lost), outcome.exit_code) == (2, 2, 2)
    assert all("the same command resumes it" in line for line in outcome.lost)
    again, _ = work(plan(tmp_path), workers=1)
    assert (again.ran, again.skipped) == (2, 2)


def test_what_a_killed_write_left_goes_with_the_next_run(tmp_path: Path) -> None:
    made = plan(tmp_path)
    path = made.out / made.cells[0].path
    path.parent.mkdir(parents=True)
    left = [path.with_name(f".{path.name}.checkpoint.new.abc"), path.with_name(".seed0.npz.abc")]
    other = path.with_name(".seed01.npz.abc")
    for file in (*left, other):
        file.write_bytes(b"half")
    work(made)
    assert [file.exists() for file in (*left, other)] == [False, False, True]


def test_a_stopped_worker_does_not_hang_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PATIENCE", 0.5)

    def stop_one(line: str, ends: bool) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGSTOP)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(plan(tmp_path, toy_runs.dies_on_lora_seed_0), 2, stop_one)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (toy_runs.data_is_broken, "image_7.png: truncated; fetch it again"),
        (toy_runs.disk_is_full, "No space left on device"),
    ],
)
def test_what_the_user_has_to_mend_stops_the_sweep_without_a_record(
    run: RunCell, words: str, tmp_path: Path
) -> None:
    made = plan(tmp_path, run)
    outcome, _ = work(made, workers=1)
    assert outcome.exit_code == 2
    assert len(outcome.errors) == 1
    assert words in outcome.errors[0]
    assert not list(made.out.rglob("*.json"))


def test_record_of_another_digest_is_refused_before_anything_runs(tmp_path: Path) -> None:
    made = plan(tmp_path)
    toy_record("lora", 1, digest="0" * 64).write(made.out / made.cells[3].path)
    with pytest.raises(UserError, match=r"another cell, it differs in data\.bdd100k"):
        work(made)
    assert not (tmp_path / "log").exists()


def hear_interrupts() -> None:
    """Tests run in the background of a shell have inherited that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_stops_all_workers_and_leaves_no_record(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import toy_sweep, toy_runs\n"
        "if __name__ == '__main__':\n"
        "    toy_sweep.work(toy_sweep.plan(Path(sys.argv[1]), toy_runs.never_ends), 2)\n"
    )
    script = tmp_path / "sweep.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    command = [sys.executable, str(script), str(tmp_path)]
    running = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )
    started: list[Path] = []
    deadline = time.monotonic() + 30
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        started = list(tmp_path.glob("started*"))
    os.killpg(running.pid, signal.SIGINT)  # what Ctrl-C does: the whole group hears it
    _, errors = running.communicate(timeout=20)
    assert len(started) == 2
    assert b"KeyboardInterrupt" in errors
    assert errors.count(b"Traceback") == 1, "a worker left a traceback of its own"
    for path in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("started")), 0)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_record_that_the_run_wrote_is_kept(tmp_path: Path) -> None:
    made = plan(tmp_path, methods=("freeze",), seeds=1)
    cell = made.cells[0]

    def writes(*arguments: object) -> Record:
        record = toy_record(cell.label, cell.seed, digest=cell.digest)
        record.model_copy(update={"reason": "written inside"}).write(made.out / cell.path)
        return record

    run_one(Plan(made.cells, made.out, tmp_path, "cpu", writes), cell, False, False)
    assert finished(cell, made.out).reason == "written inside"


def test_workers_get_settings_of_the_allocator_that_the_user_has_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    work(plan(tmp_path, toy_runs.environment, seeds=1), workers=1)
    lines = (tmp_path / "environment").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines)
    assert {name: ast.literal_eval(seen[name]) for name in names} == {
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def test_a_sweep_of_long_cells_says_how_many_hours_it_takes(tmp_path: Path) -> None:
    made = plan(tmp_path, seeds=2)
    assert forecast(made, 2, toy_runs.measured) == ""  # cells of twenty steps
    recipe = made.cells[0].protocol.recipe.model_copy(update={"iterations": 40_000})
    long = made.cells[0].protocol.model_copy(update={"recipe": recipe, "data_root": None})
    cells = [replace(cell, protocol=long) for cell in made.cells]
    made = replace(made, cells=tuple(cells))
    assert forecast(made, 2, toy_runs.measured) == (
        "about 8 h a cell (projected from two steps and one image of freeze seed 0 (all) on cpu), "
        "4 cells to run: 32 h, 16 h with 2 workers on devices of their own"
    )
    assert "--dry-run on their device says" in forecast(made, None, None)
    odd = replace(made, cells=(replace(cells[0], label="soma"),))
    assert "is not known: no cuda here" in forecast(odd, 1, toy_runs.measured)
    cost = Cost(train_seconds=7000.0, evaluate_seconds=200.0)
    write_toy_records(made.out, [toy_record("freeze", 0, cost=cost)])
    assert forecast(made, 1, None) == (
        "about 2 h a cell (the median of 1 recorded), 3 cells to run: 6 h"
    )
