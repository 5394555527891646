"""The comparison of two rankings, on records whose order is known."""

import subprocess
import sys
from pathlib import Path

from paths import ROOT
from toy_records import evaluation, toy_record, write_toy_records


def compare(*folders: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/compare_rankings.py", *folders, "--placement", "all"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reversed_ranking_has_tau_minus_one(tmp_path: Path) -> None:
    order = {"freeze": 10.0, "lora": 11.0, "soma": 12.0}
    for name, sign in (("first", 1), ("second", -1)):
        records = [
            toy_record(label, seed, evaluations=[evaluation(20, 30.0, *2 * [50 + sign * v])])
            for label, v in order.items()
            for seed in (0, 1)
        ]
        write_toy_records(tmp_path / name, records)
    made = compare(tmp_path / "first/toy", tmp_path / "second/toy")
    assert made.returncode == 0, made.stderr
    assert "tau over 3 rows: -1.00" in made.stdout
    assert made.stdout.count("between single seeds of toy: 1.00 (1 pairs)") == 2


def test_a_folder_without_records_is_one_line(tmp_path: Path) -> None:
    ended = compare(tmp_path / "mini_gtav", tmp_path / "mini_gtav")
    assert ended.returncode != 0
    assert len(ended.stderr.splitlines()) == 1
    assert "no records" in ended.stderr
