"""`compare`: what it refuses before anything is trained, what it trains, and what it says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_compare
import toy_runs
from toy_records import FINGERPRINTS, toy_protocol, toy_record, toy_records, toy_table

from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.conformance import check
from benchmarks.conformance.check import Finding
from benchmarks.record import Record
from benchmarks.report import compare as comparison
from benchmarks.report import statistics

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
from soma import Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    source: ClassVar[str] = "a test"

    def trains(self, name: str) -> bool:
        return name.endswith(".bias")
"""
BROKEN = (
    METHOD
    + """
    def attach(self, vit) -> None:
        vit.blocks[0].mlp.fc1.bias.data.add_(1.0)
"""
)


def test_best_baseline_is_one_with_all_seeds() -> None:
    values = {
        "a": {"avg": {0: 1.0, 1: 2.0}},
        "b": {"avg": {0: 9.0}},
        "c": {"avg": {0: 2.0, 1: 2.0}},
    }
    assert comparison.best(values, ["a", "b", "c"]) == "c"
    assert comparison.best(values, ["b"]) == "b"
    assert comparison.best({"d": {"avg": {}}}, ["d"]) is None


# --- the command ---


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a method, a table and the records of three baselines."""
    toy_table(tmp_path)
    (tmp_path / "mine.py").write_text(METHOD)
    write(tmp_path, [record for record in toy_records() if record.label != "soma"])
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: FINGERPRINTS)
    monkeypatch.setattr("benchmarks.run.run_cell", toy_compare.scored)
    monkeypatch.setattr(check, "KINDS", ("class token",))
    monkeypatch.setattr(check, "check_method", lambda *_: [Finding("fits", "pass", "well")])
    return tmp_path


def write(folder: Path, records: list[Record]) -> None:
    for record in records:
        place = folder / "reference" / record.protocol / record.placement / record.label
        record.write(place / f"seed{record.seed}.json")


@pytest.fixture
def compare(toy: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `compare` in this process: exit code, stdout, stderr."""

    def call(*more: object, method: str | None = None) -> tuple[int, str, str]:
        argv = [
            *("compare", method or f"{toy}/mine.py:Mine", "--table", toy / "toy_table.yaml"),
            *("--profile", "toy", "--data-root", toy, "--out", toy / "runs"),
            *("--against", toy / "reference", "--workers", 1, "--format", "md", *more),
        ]
        code = main([str(argument) for argument in argv])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def cells(text: str, start: str) -> list[list[str]]:
    """The cells of all table rows whose first cell is `start`."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() == start]


def test_only_the_new_method_is_trained_and_the_table_has_every_row(toy: Path, compare) -> None:
    before = {path: path.read_bytes() for path in (toy / "reference").rglob("*.json")}
    code, out, err = compare()
    assert code == 0, err
    assert log(toy) == ["0 mine.Mine", "1 mine.Mine", "2 mine.Mine"]
    assert {path: path.read_bytes() for path in (toy / "reference").rglob("*.json")} == before
    table, _, verdict = out.partition("# Verdict on mine.Mine (placement all)")
    for label in ("full", "freeze", "lora", "mine.Mine"):
        assert cells(table, label)[0][1] == "3"
    assert cells(table, "soma")[0][1] == "0"  # a row of the table without a baseline: said, not run
    assert "12/15 cells, 3 missing: soma seed 0, 1, 2" in table
    assert verdict


def test_text_fits_a_terminal_and_the_files_hold_the_row(toy: Path, compare) -> None:
    code, out, err = compare("--format", "text", "--notes", "--write", toy / "tables")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert "recipe mode: controlled; differences between rows: lora" in " ".join(out.split())
    assert "# Verdict on mine.Mine (placement all)" in out
    stem = "compare.mine.Mine.toy_table.toy"
    assert f"Written: {toy}/tables/{stem}.{{md,csv,tex,html}}" in err.splitlines()
    assert cells((toy / f"tables/{stem}.md").read_text(), "mine.Mine")[0][1] == "3"
    assert compare("--format", "json")[1].count('"method": "mine.Mine"') == 1


def test_verdict_has_the_numbers_of_the_rule(compare) -> None:
    _, out, _ = compare()
    verdict = out.partition("# Verdict on")[2]
    assert "Against freeze, the table's reference row:" in verdict
    assert "Against lora, the best baseline on Avg:" in verdict
    for key in ("Cityscapes", "BDD100K", "Avg"):  # over lora by 2.9, 3.0, 3.1 on every domain
        (_, found, word) = cells(verdict, key)[1]
        assert found.startswith("+3.00 [+")
        assert word == "better"
    # Avg of lora 27.25, 27.55, 27.55, of freeze 25.5, 25.7, 25.6: 1.75, 1.85, 1.95 and the gain
    avg = {"full": [23.0, 23.4, 23.2], "freeze": [25.5, 25.7, 25.6], "lora": [27.25, 27.55, 27.55]}
    avg["mine"] = [30.15, 30.55, 30.65]
    pairs = [("mine", other) for other in ("full", "freeze", "lora")]
    judged = statistics.judge({k: dict(enumerate(v)) for k, v in avg.items()}, pairs)
    made = judged.differences["mine", "freeze"]
    expected = f"{made.mean:+.2f} [{made.low:+.2f}, {made.high:+.2f}]"
    assert expected.startswith("+4.85 [+4.")
    assert cells(verdict, "Avg")[0] == ["Avg", expected, "better"]
    assert cells(verdict, "freeze") == [["freeze", expected, "better"]]
    assert cells(verdict, "soma") == [["soma", "-", "-"]]
    assert "Avg, mine.Mine against every row: 3 better, 1 without two seeds in common" in verdict
    assert "intervals of 3 comparisons hold together" in verdict
    assert "noise of 4 rows with 6 degrees of freedom" in verdict


def test_table_and_verdict_have_one_judgement(compare) -> None:
    # Four rows with scores: the table and the verdict both make three comparisons, against freeze
    # in the table, of the new row in the verdict.
    table, _, verdict = compare()[1].partition("# Verdict on")
    (row,) = cells(table, "mine.Mine")
    ((_, numbers, word),) = cells(verdict, "freeze")
    (difference,) = (cell.replace("*", "") for cell in row if cell.endswith(f" {word}"))
    assert word in statistics.WORDS
    mean, low, high = (float(n) for n in re.findall(r"[+-][\d.]+", numbers))
    found = [float(n) for n in re.findall(r"[+-][\d.]+", difference)]
    assert found == pytest.approx([mean, low, high], abs=0.06)


def test_second_call_trains_nothing_and_says_the_same(toy: Path, compare) -> None:
    first = compare()
    second = compare()
    assert second[:2] == first[:2]
    assert len(log(toy)) == 3
    assert "every cell is recorded; nothing was trained" in second[2]


def test_one_seed_cannot_tell(compare) -> None:
    code, out, _ = compare("--seeds", "1")
    assert code == 0
    assert cells(out.partition("# Verdict")[2], "Avg")[1] == [*("Avg", "+3.00", "one seed")]


def changed(key: str, value: Any) -> Record:
    cell = toy_record("full", 0).cell
    return toy_record("full", 0, cell=cell | {"protocol": cell["protocol"] | {key: value}})


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            lambda: toy_record("full", 0, protocol_version=2),
            "the baselines were made under toy version 2, which is at version 3 now",
        ),
        (
            lambda: changed("backbone", {"name": "vit_large", "sha256": "f00d"}),
            "the baselines were made on another backbone (backbone of toy differ)",
        ),
        (
            lambda: changed("window", {"size": 64, "stride": 64}),
            "the baselines were made under other settings (window of toy differ)",
        ),
        (
            lambda: toy_record("full", 0, data=FINGERPRINTS | {"bdd100k": "XX"}),
            "made from other data than the records before it (bdd100k)",
        ),
    ],
)
def test_baselines_of_something_else_are_refused_before_anything_runs(
    odd: Callable[[], Record], words: str, toy: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_method", None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", None)
    write(toy, [odd()])
    code, out, err = compare()
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not log(toy)


def test_without_baselines_there_is_nothing_to_compare_with(toy: Path, compare) -> None:
    for argument, value in (("--placement", "both"), ("--against", toy / "nowhere")):
        code, _, err = compare(argument, value)
        assert code == 2
        assert "no baselines of toy (placement " in err
        assert "--profile toy --out DIR` and compare with `--against DIR`" in err
        assert err.count("\n") == 1
    assert not log(toy)


def test_other_data_here_are_refused(toy: Path, compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr(
        "benchmarks.cell.fingerprints", lambda *_: FINGERPRINTS | {"bdd100k": "other"}
    )
    code, _, err = compare()
    assert code == 2
    assert f"{toy}: not the data that the baselines in" in err
    assert "(bdd100k differ)" in err
    assert not log(toy)


def test_seed_without_baseline_is_refused(toy: Path, compare) -> None:
    code, _, err = compare("--seeds", "2,3,4")
    assert code == 2
    assert "no baseline has seed 3, 4" in err
    assert "choose --seeds among 0, 1, 2" in err
    assert not log(toy)


def test_failed_property_stops_before_training(
    toy: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: FINGERPRINTS)
    monkeypatch.setattr("benchmarks.run.run_cell", toy_compare.scored)
    monkeypatch.setattr(check, "KINDS", ("class token",))
    (toy / "mine.py").write_text(BROKEN)
    code, out, err = compare()
    assert (code, out) == (1, "")
    assert "FAIL  class token: exact start: " in err
    assert "nothing was trained" in err
    assert not log(toy)
    (toy / "mine.py").write_text(METHOD)
    assert compare("--seeds", "0")[0] == 0  # the sound one passes the same checks
    assert log(toy) == ["0 mine.Mine"]


def test_edited_method_runs_again_only_on_request(toy: Path, compare) -> None:
    compare()
    (toy / "mine.py").write_text(METHOD + "\n# edited\n")
    code, _, err = compare()
    assert code == 2
    assert "record of another cell" in err
    assert err.rstrip().endswith("or --replace it")
    assert len(log(toy)) == 3
    stale = toy / "runs/toy/all/mine.Mine/seed0.json.checkpoint"
    stale.write_text("of the method before")
    assert compare("--replace")[0] == 0
    assert len(log(toy)) == 6
    assert not stale.exists()
    assert compare("--replace")[0] == 0
    assert len(log(toy)) == 6


def test_failed_cells_have_a_row_and_no_verdict(
    toy: Path, compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.run.run_cell", toy_compare.breaks)
    code, out, err = compare()
    assert code == 1
    assert "failed: mine.Mine seed 0 (all): RuntimeError: no such head" in err
    assert cells(out, "mine.Mine")[0][2] == "failed"
    assert "No verdict: no scores of mine.Mine to compare" in out
    monkeypatch.setattr("benchmarks.run.run_cell", toy_compare.scored)
    assert compare()[0] == 1
    assert compare("--replace")[0] == 0


def test_what_the_user_has_to_mend_ends_without_a_table(
    compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.run.run_cell", toy_runs.data_is_broken)
    code, out, err = compare()
    assert (code, out) == (2, "")
    assert "image_7.png: truncated" in err


def test_committed_row_is_used_and_not_trained_again(toy: Path, compare) -> None:
    for seed in (0, 1, 2):
        cell = make_cell(toy_protocol(), "lora", seed=seed, data=FINGERPRINTS)
        write(toy, [toy_record("lora", seed, cell=cell.resolved)])
    code, out, _ = compare(method="lora")
    assert code == 0
    assert not log(toy)
    assert cells(out.partition("# Verdict on lora")[2], "lora") == []  # not compared with itself
    assert cells(out.partition("# Verdict on lora")[2], "freeze")[0][1].startswith("+1.85 ")


def test_committed_row_of_other_fields_is_not_passed_for_the_method(toy: Path, compare) -> None:
    code, _, err = compare(method="lora")  # the digests of the toy records are no cell's
    assert code == 2
    assert "lora: " in err
    assert "holds a row of this name with other fields" in err
    code, out, _ = compare("--set", "method.rank=3", method="lora")  # a label of its own
    assert code == 0
    assert [line.split()[1].split("+")[0] for line in log(toy)] == ["lora"] * 3
    assert cells(out, "lora")
