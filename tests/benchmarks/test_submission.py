"""A submission: a method file and its records; every fault is told, and a sound one has its row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from toy_compare import scored
from toy_records import ENVIRONMENT, FINGERPRINTS, toy_protocol, toy_records, toy_table
from toy_records import write_toy_records as write

from benchmarks import submission
from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.record import Record
from benchmarks.report import spec as specs

CODE = """
from dataclasses import dataclass

from soma.method import Method


@dataclass(frozen=True)
class Mine(Method):
    source = "here"
    width: int = 3

    def trains(self, name: str) -> bool:
        return name.endswith("bias")
"""


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sound submission, beside committed records."""
    toy_table(tmp_path)
    write(tmp_path / "reference", toy_records())
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE)
    for seed in (0, 1, 2):
        change(folder, seed)
    monkeypatch.setattr(specs, "FOLDER", tmp_path)
    monkeypatch.setattr(submission, "load_protocol", lambda name: toy_protocol())
    monkeypatch.setattr(submission, "knows_commit", lambda *_: True)
    monkeypatch.setattr("benchmarks.report.compare.nonconforming", lambda *_: 0)
    return folder


def change(
    folder: Path, seed: int, recipe: Mapping[str, float] | None = None, **changes: Any
) -> None:
    """Write the record of one seed, with some fields of it or of its recipe changed."""
    fields = {"method": {"width": 5}, "recipe": recipe or {}}
    data = FINGERPRINTS
    method = f"{folder / 'mine.py'}:Mine"
    cell = make_cell(toy_protocol(), method, seed=seed, changes=fields, data=data)
    made = scored(cell, folder, folder, "cpu", False)
    record = made.model_copy(update={"method": "Mine", **changes})
    record.write(folder / "records" / record.path)


def accept(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["accept", str(folder), "--against", str(folder.parent / "reference")])
    output = capfd.readouterr()
    return code, output.out, output.err


def test_a_sound_submission_has_its_row(sent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = accept(sent, capfd)
    assert (code, err.count("pass")) == (0, 7), err
    rows = [line.split() for line in out.splitlines()]
    (mine,) = [row for row in rows if row and row[0].startswith("mine.Mine")]
    assert {"31.7", "29.2", "30.4"} <= set(mine)  # lora's means and three points
    assert any(row and row[0] == "freeze" for row in rows)


def test_the_method_file_is_the_one_of_the_records(
    sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (sent / "mine.py").write_text(CODE.replace("bias", "weight"))
    code, out, err = accept(sent, capfd)
    assert (code, out) == (1, "")
    assert "FAIL  cells: seed0.json: other method.code_sha256" in err


def with_recipe(folder: Path, seeds: tuple[int, ...], recipe: Mapping[str, float]) -> None:
    """Put records of another recipe in the place of all of these seeds."""
    for seed in seeds:
        for path in folder.rglob(f"seed{seed}.*"):
            path.unlink()
        change(folder, seed, recipe)


def test_the_rate_that_tune_chose_is_accepted_and_named(
    sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with_recipe(sent, (0, 1, 2), {"backbone_lr": 0.0625})
    code, out, err = accept(sent, capfd)
    assert (code, err.count("pass")) == (0, 7), err
    here = toy_protocol().recipe.backbone_lr
    assert f"recipe: the protocol's with backbone_lr 0.0625 in the place of {here}" in err
    assert "mine.Mine" in out


def test_no_other_key_of_the_recipe_may_change(
    sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with_recipe(sent, (0, 1, 2), {"backbone_lr": 0.0625, "lr": 0.5})
    code, out, err = accept(sent, capfd)
    assert (code, out) == (1, "")
    assert "FAIL  recipe: other lr than the protocol's; of a recipe backbone_lr alone" in err
    assert err.count("FAIL") == 1
    assert "not accepted: recipe" in err


def test_seeds_of_two_rates_are_refused(sent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_recipe(sent, (1,), {"backbone_lr": 0.0625})
    code, _, err = accept(sent, capfd)
    assert (code, err.count("\n")) == (2, 1)
    assert "submit one" in err
    label = Record.load(next(sent.rglob("seed0.json"))).label
    for path in sent.rglob("seed1.*"):
        path.unlink()
    change(sent, 1, {"backbone_lr": 0.0625}, label=label)
    code, _, err = accept(sent, capfd)
    assert code == 1
    assert "FAIL  recipe: several values of backbone_lr: " in err


def test_a_changed_tree_and_a_missing_seed_are_faults(
    sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(sent, 0, environment=ENVIRONMENT.model_copy(update={"dirty": True}))
    next(sent.rglob("seed1.json")).unlink()
    code, _, err = accept(sent, capfd)
    assert code == 1
    assert "FAIL  commit: seed0.json: not made from a clean commit" in err
    assert "FAIL  seeds: all: seed 1 is missing or failed" in err
    assert "not accepted: commit, seeds" in err


def test_an_edited_score_and_an_older_protocol_are_refused(
    sent: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = toy_protocol().model_copy(update={"version": 4})
    monkeypatch.setattr(submission, "load_protocol", lambda name: newer)
    code, _, err = accept(sent, capfd)
    assert code == 1
    assert "made under toy version 3, which is at version 4 now" in err
    path = next(sent.rglob("seed0.json"))
    text = path.read_text()
    path.write_text(text.replace(Record.load(path).digest, "0" * 64))
    code, _, err = accept(sent, capfd)
    assert code == 2
    assert "its digest is not that of its cell" in err


@pytest.mark.parametrize(("spoil", "words"), [("method", "0 .py files"), ("records", "no records")])
def test_what_is_not_there_is_one_line(
    sent: Path, capfd: pytest.CaptureFixture[str], spoil: str, words: str
) -> None:
    if spoil == "method":
        (sent / "mine.py").unlink()
    else:
        (sent / "records").rename(sent / "elsewhere")
    code, _, err = accept(sent, capfd)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
