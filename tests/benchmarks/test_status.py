"""What a sweep's cells are doing, read from files; records of several machines in one folder."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
import pytest
from paths import ROOT
from toy_records import evaluation, toy_record, toy_table, write_toy_records

from benchmarks import slurm, status
from benchmarks.__main__ import main
from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.progress import Progress, progress_file
from benchmarks.record import Cost
from benchmarks.report import per_class
from benchmarks.report.formats import grid
from benchmarks.report.records import collect
from benchmarks.slurm import Ticket

NOW = datetime.now(UTC)


def follow(record: Path, steps: int = 12_400, minutes_ago: float = 0) -> None:
    """The progress file of a cell at so many of 40,000 steps of 0.71 s."""
    made = Progress(40_000, record)
    made.losses, made.seconds, made.iteration = [0.5] * 60, [0.71] * 60, steps
    made.enter("training")
    text = json.loads(progress_file(record).read_text())
    text |= {"updated": str(NOW - timedelta(minutes=minutes_ago)), "host": "gpu03"}
    progress_file(record).write_text(json.dumps(text))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells of the toy table in every state."""
    toy_table(tmp_path)
    monkeypatch.setattr(slurm, "queued_jobs", lambda: {"8123", "8130"})
    out = tmp_path / "runs"
    hour = Cost(train_seconds=3500.0, evaluate_seconds=100.0, devices=2)
    reason = "loss not finite at step 12"
    failed = toy_record("full", 0, status="failed", reason=reason, evaluations=[])
    write_toy_records(
        out,
        [
            *(toy_record("freeze", seed, cost=hour) for seed in (0, 1)),
            toy_record("freeze", 2, protocol_version=2),
            failed,
        ],
    )
    return out


def cells(out: Path) -> dict[Path, str]:
    names = [(label, seed) for seed in (0, 1, 2) for label in ("full", "freeze", "lora", "soma")]
    return {out / f"toy/all/{m}/seed{s}.json": f"{m} seed {s}" for m, s in names}


def test_every_state_is_told_apart(folder: Path) -> None:
    toy = folder / "toy/all"
    follow(toy / "lora/seed0.json")
    follow(toy / "lora/seed1.json", minutes_ago=41)
    follow(toy / "lora/seed2.json", minutes_ago=41)
    follow(toy / "soma/seed2.json", minutes_ago=41)
    Ticket(job="8123").write(toy / "lora/seed0.json.job")
    Ticket(job="8127").write(toy / "lora/seed2.json.job")
    Ticket(job="8130").write(toy / "soma/seed0.json.job")
    Ticket(job="8131", error="no such folder /data").write(toy / "soma/seed1.json.job")
    (folder / "slurm").mkdir()
    (folder / "slurm/8131_0_log.out").write_text("")
    with (
        filelock.FileLock(f"{toy}/lora/seed0.json.lock"),
        filelock.FileLock(f"{toy}/lora/seed1.json.lock"),
    ):
        seen = status.look(cells(folder), 3, NOW)
    states = {cell.name: (cell.state, cell.words) for cell in seen}
    where = "12,400/40,000  loss 0.500  0.71 s/step  left 5:26 h"
    assert states == {
        "lora seed 0": ("running", f"{where}  job 8123  gpu03"),
        "lora seed 1": ("silent", f"{where}  silent for 41:00 min  gpu03"),
        "lora seed 2": (
            "cut off",
            f"at {where}  job 8127 (not in squeue)  the same command resumes it",
        ),
        "soma seed 2": ("cut off", f"at {where}  the same command resumes it"),
        "soma seed 0": ("queued", "job 8130"),
        "soma seed 1": ("failed", f"no such folder /data  log {folder}/slurm/8131_0_log.out"),
        "full seed 0": ("failed", "loss not finite at step 12"),
        "freeze seed 2": ("other version", "recorded under version 2"),
        "full seed 1": ("missing", ""),
        "full seed 2": ("missing", ""),
        "freeze seed 0": ("done", ""),
        "freeze seed 1": ("done", ""),
    }
    lines = status.report("toy_table toy", seen, NOW)
    assert lines[0].startswith("toy_table toy  done 2  running 1  queued 1  failed 2  missing 2")
    assert any(line.startswith("lora seed 2    cut off        at 12,400/40,000") for line in lines)
    # Two cells of an hour on two devices; 2 x 12,400 steps of 0.71 s; 5 cells wait, 2 run on.
    ahead = status.outlook(seen, NOW)
    ran = 2 * 12_400 * 0.71 / 3600
    left = 5 * 2.0 + 2 * 27_600 * 0.71 / 3600
    assert ahead.used == pytest.approx(4.0 + ran)
    assert ahead.total == pytest.approx(4.0 + ran + left)
    assert (ahead.end - NOW).total_seconds() == pytest.approx(left / 2 * 3600)


def test_status_says_1_where_a_cell_failed_and_speaks_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(folder.parent / "toy_table.yaml")
    command = ["status", table, "--profile", "toy", "--out", str(folder)]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert f"out={folder}  done 2  running 0  queued 0  failed 1  missing 8" in out
    assert main([*command, "--json", "--watch"]) == 1  # nothing runs: one look
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["done"] == 2
    assert {c["state"] for c in told["cells"] if "/full/seed0" in c["record"]} == {"failed"}
    assert main([*command, "--methods", "freeze", "--seeds", "0,1"]) == 0
    assert main(["status", "--out", str(folder)]) == 1
    assert "freeze" not in capsys.readouterr().out.partition("full/seed0")[2]
    assert main(["status", "--out", str(folder / "nowhere")]) == 2


def test_two_hundred_cells_take_less_than_a_second(tmp_path: Path) -> None:
    wanted = {tmp_path / f"toy/all/m{n}/seed0.json": f"m{n}" for n in range(200)}
    for number, path in enumerate(wanted):
        path.parent.mkdir(parents=True)
        if number % 2:
            toy_record("freeze", 0).write(path)
        else:
            follow(path)
            Path(f"{path}.lock").touch()
    began = time.perf_counter()
    assert len(status.look(wanted, 3, NOW)) == 200
    assert time.perf_counter() - began < 1


def test_records_of_several_machines_come_together_and_conflicts_are_refused(
    tmp_path: Path,
) -> None:
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    failed = toy_record("lora", 0, status="failed", reason="no memory", evaluations=[])
    write_toy_records(one, [toy_record("freeze", 0), failed])
    write_toy_records(two, [toy_record("freeze", 0), toy_record("lora", 0)])
    beside = two / "toy/all/lora"
    for ending in (".safetensors", ".log.jsonl", ".json.lock", ".json.checkpoint"):
        (beside / f"seed0{ending}").write_text(ending)
    assert collect([one, two], out) == (2, 0)
    assert sorted(path.name for path in (out / "toy/all/lora").iterdir()) == [
        *("seed0.json", "seed0.log.jsonl", "seed0.safetensors")
    ]
    kept = json.loads((out / "toy/all/lora/seed0.json").read_text())
    assert kept["status"] == "done"  # rather than the failed one
    assert collect([one, two], out) == (0, 2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = toy_record("freeze", 0, cell=toy_record("freeze", 0).cell | {"engine": "other"})
    write_toy_records(two, [other, toy_record("soma", 0)])
    with pytest.raises(UserError, match=r"freeze/seed0.json: of another cell than .*engine"):
        collect([one, two], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


Command = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line that has to end well, and returns what it prints."""
    monkeypatch.chdir(ROOT)

    def call(line: str) -> str:
        assert main(line.split()) == 0
        return capsys.readouterr().out

    return call


def test_three_commands_lead_from_a_cell_of_the_table_to_single_images(command: Command) -> None:
    rows = json.loads(command("table table1 --placement default --format json"))
    row = next(row for row in rows if row["method"] == "freeze")
    # 1: the table names the records behind a row.
    listed = command("table table1 --paths").splitlines()
    paths = [line.split()[1] for line in listed if line.startswith("freeze  results/")]
    assert paths == row["records"]
    averages, per_image = [], []
    for path in paths:
        # 2: the record says what made it, and its scores.
        shown = command(f"show {path} --config")
        assert json.loads((ROOT / path).read_text())["digest"] in shown
        assert "recipe_mode: controlled" in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("mIoU")]
        averages.append(sum(map(float, line.split()[2:])) / 3)
        # 3: the images behind a score.
        per_image.append(json.loads(command(f"show {path} --images cityscapes --json")))
    assert sum(averages) / len(averages) == pytest.approx(row["avg_mean"], abs=0.06)
    assert (
        len(per_image[0])
        == json.loads((ROOT / paths[0]).read_text())["evaluations"][-1]["domains"]["cityscapes"][
            "images"
        ]
    )
    assert all(len(image["IoU"]) == 19 for image in per_image[0])
    text = command(f"show {paths[0]} --images cityscapes")
    assert max(map(len, text.splitlines())) <= 80


def test_scores_per_class_are_those_of_the_records(command: Command) -> None:
    flat = json.loads(command("table table2 --per-class night_clear --format json"))
    files = json.loads(command("table table2 --format json"))
    row = next(row for row in files if row["method"] == "full")
    records = [json.loads((ROOT / path).read_text()) for path in row["records"]]
    scores = [r["evaluations"][-1]["domains"]["night_clear"]["metrics"] for r in records]
    car = next(r for r in flat if (r["method"], r["class"]) == ("full", "car"))
    names = list(load_card("sdgod").classes)
    values = [score["AP50_voc07_per_class"][names.index("car")] for score in scores]
    assert car["mean"] == pytest.approx(sum(values) / len(values))
    mean = next(r for r in flat if (r["method"], r["class"]) == ("full", "mean"))
    assert mean["mean"] == pytest.approx(row["night_clear_mean"])
    text = command("table table2 --per-class night_clear --methods freeze,soma")
    assert max(map(len, text.splitlines())) <= 80
    assert main(["table", "table2", "--per-class", "night_cler"]) == 2


def test_columns_beyond_the_terminal_stand_below_with_the_reference_row() -> None:
    columns = [["class", "sky"], ["freeze", "1.0"], *([f"method{n:02}", "2.0"] for n in range(12))]
    groups = per_class._groups(columns)
    assert [group[0][:2] for group in groups] == [("class", "freeze")] * 2
    assert sum(len(group[0]) - 2 for group in groups) == 12
    assert max(len(line) for group in groups for line in grid(group)) <= 80


def test_show_tells_what_a_name_is(command: Command) -> None:
    method = command("show soma")
    assert "source: SoMA, arXiv 2412.04077" in method
    assert "  rank = 16" in method.splitlines()
    assert "lr:" in command("show mini_gtav")
    assert "reference: freeze" in command("show table1")
    assert "name: cityscapes" in command("show cityscapes")
    assert main(["show", "somma"]) == 2
    assert main(["show", "soma", "--config"]) == 2


def test_a_record_shows_its_own_names_of_classes_and_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    path = tmp_path / "seed0.json"
    made = toy_record(
        "lora", 0, classes=["road", "sky"], evaluations=[evaluation(20, 1.0, 2.0, 3.0)]
    )
    made = made.model_copy(update={"cell": made.cell | {"recipe": {"backbone_lr": 0.003}}})
    made.write(path)
    matrices = np.array([[[8, 2], [0, 10]], [[1, 0], [3, 0]]])
    np.savez(path.with_suffix(".npz"), cityscapes=matrices, **{"cityscapes.names": ["a b", "c"]})
    assert main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["road", "1.0", "2.0", "3.0"] for line in lines)
    assert 'recipe   {"backbone_lr": 0.003}' in lines
    assert main(["show", str(path), "--images", "cityscapes"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    # c: 1 pixel of road right of 4 predicted or true, none of 3 of sky; a b: 8 of 10, 10 of 12.
    assert rows == [["c", "12.5", "sky", "0.0"], ["a", "b", "81.7", "road", "80.0"]]
    assert main(["show", str(path), "--images", "city"]) == 2
