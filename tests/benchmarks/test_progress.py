"""Where a running cell is: the file, the log, lines without a terminal, bars with one."""

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import progress
from benchmarks.console import CellBars
from benchmarks.progress import Progress, duration, log_file, progress_file, read_log, read_state


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "seed0.json"


def drive(follow: Progress, steps: int, losses: list[float], seconds: list[float]) -> None:
    """So many further steps of loss 1, 2, 3, ..., half a second each."""
    for _ in range(steps):
        losses.append(float(len(losses) + 1))
        seconds.append(0.5)
        follow.step()


def test_a_cell_says_where_it_is_and_what_its_loss_was(record: Path) -> None:
    follow = Progress(200, record, "soma seed 0 (all)")
    follow.enter("start")
    assert (read_state(record).iteration, read_state(record).phase) == (0, "start")
    losses: list[float] = []
    seconds: list[float] = []
    with follow.over(losses, seconds):
        drive(follow, 101, losses, seconds)
        follow.enter("scoring night")
        state = read_state(record)
        assert (state.iteration, state.of, state.phase) == (101, 200, "scoring night")
        assert state.loss == sum(range(52, 102)) / 50  # the last fifty
        assert state.seconds_left == 99 * 0.5
        assert abs(datetime.now(UTC) - state.updated) < timedelta(minutes=1)
        follow.scored(
            {
                "gtav_held_out": {"role": "validation", "metrics": {"mIoU": 40.5, "IoU": [1.0]}},
                "night": {"role": "target", "metrics": {"mIoU": 99.0}},
            }
        )
    *steps, scored = read_log(log_file(record))
    assert [entry["iteration"] for entry in steps] == list(range(2, 102, 2))  # one a percent
    assert steps[1]["loss"] == 3.5  # of steps 3 and 4
    assert (scored["iteration"], scored["held_out"]) == (101, {"gtav_held_out": {"mIoU": 40.5}})
    follow.remove()
    assert [path.name for path in record.parent.iterdir()] == ["seed0.log.jsonl"]


def test_a_resumed_run_drops_what_the_run_before_wrote_past_its_checkpoint(record: Path) -> None:
    first, losses, seconds = Progress(100, record), [], []
    with first.over(losses, seconds):
        drive(first, 30, losses, seconds)
        first.scored({"held": {"role": "validation", "metrics": {"mIoU": 1.0}}})
    with log_file(record).open("a") as file:
        file.write('{"iteration": 31, "lo')  # killed here
    again, losses, seconds = Progress(100, record), losses[:20], seconds[:20]
    with again.over(losses, seconds, scored=()):
        drive(again, 15, losses, seconds)
    entries = read_log(log_file(record))
    assert [entry["iteration"] for entry in entries] == list(range(1, 36))
    assert [entry["loss"] for entry in entries] == [float(n) for n in range(1, 36)]
    for line in log_file(record).read_text().splitlines():
        json.loads(line)
    with Progress(100, record).over([], []):
        assert not log_file(record).exists()  # a new run


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("no folder")
    follow = Progress(10, tmp_path / "gone" / "seed0.json")
    with follow.over(losses := [], seconds := []):
        drive(follow, 10, losses, seconds)
    follow.remove()
    assert read_state(tmp_path / "gone" / "seed0.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


def test_without_a_terminal_there_is_a_line_per_twentieth(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_APART", 0.0)
    follow, losses, seconds = Progress(200, record, "soma seed 0 (all)"), [], []
    with follow.over(losses, seconds):
        drive(follow, 200, losses, seconds)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "soma seed 0 (all): 10/200  loss 5.500  0.50 s/step  left 1:35 min"
    monkeypatch.setattr(progress, "_APART", 30.0)
    with Progress(200, record, "soma").over(losses := [], seconds := []):
        drive(follow, 20, losses, seconds)
    assert capsys.readouterr().err == ""


def test_durations_are_read_without_counting() -> None:
    assert [duration(s) for s in (7, 187, 3600, 19560)] == [
        "0:07 min",
        "3:07 min",
        "1:00 h",
        "5:26 h",
    ]


def test_every_running_cell_has_a_bar_with_its_loss_and_time_left(tmp_path: Path) -> None:
    records = {tmp_path / f"seed{seed}.json": f"soma seed {seed} (all)" for seed in range(3)}
    ended, running, cut_off = records
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with CellBars(console, 3, records) as bars:
        for record in records:
            follow = Progress(40_000, record)
            follow.losses, follow.seconds, follow.iteration = [0.5] * 9, [0.7] * 9, 12_400
            follow.enter("training")
        ended.write_text("{}")
        old = read_state(cut_off).model_copy(update={"updated": bars.began - timedelta(hours=1)})
        progress_file(cut_off).write_text(old.model_dump_json())
        bars.report("soma seed 0 (all): done (60 s)", True)
        bars.look()
        (whole, one) = bars.bars.tasks
        assert (whole.completed, whole.total) == (1, 3)
        assert one.description == "soma seed 1 (all)"
        assert (one.completed, one.total) == (12_400, 40_000)
        assert one.fields["note"] == "loss 0.500  0.70 s/step  left 5:22 h"
        progress_file(running).unlink()
        bars.look()
        assert len(bars.bars.tasks) == 1
    assert "soma seed 0 (all): done (60 s)" in console.file.getvalue()


def test_a_bar_of_one_cell_counts_its_steps(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    follow = Progress(4, record, "soma", bar=True)
    with follow.over(losses := [], seconds := []):
        drive(follow, 4, losses, seconds)
        (task,) = follow._bars.tasks
        assert (task.completed, task.fields["loss"]) == (4, 4.0)
    assert "soma:" not in capsys.readouterr().err
