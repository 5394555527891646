import re
from pathlib import Path

import pytest
import yaml
from tiny_worlds import write_world

from benchmarks import bench
from benchmarks.__main__ import main
from benchmarks.report.spec import load_table

pytestmark = pytest.mark.usefixtures("one_thread")


def test_startup_counts_the_splits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMA_CACHE", "")  # set by the command, and taken back after the test
    assert main(["bench", "startup", "pissa", "--backbone", "test_vit"]) == 0
    number = r"\d+\.\d\d s"
    lines = rf"((first |cached) +{number}, processor +{number}, 36 entries\n){{2}}$"
    assert re.search(lines, capsys.readouterr().out)  # 6 blocks of 6 linears


def test_bench_measures_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world(tmp_path, count=3)
    write_world(tmp_path, "bdd100k", "val", count=3)
    tiny = {
        "extends": "mini_gtav",
        "name": "tiny",
        "source": [{"domain": "gtav", "card": "gtav", "split": "train"}],
        "validation": [],
        "targets": [{"domain": "bdd100k", "card": "bdd100k", "split": "val"}],
        "recipe": {"iterations": 3, "warmup": 0},
        "head": {"kind": "linear"},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(bench, "WORLDS", {"gtav": bench.WORLDS["gtav"]})
    bench.main(tmp_path, str(file), rounds=1)
    said = capsys.readouterr().out
    for start in ("render gtav", "batch of 4, decoded", "batch of 4, in memory"):
        assert len(re.findall(rf"^{start} +[\d.]+ ", said, re.MULTILINE)) == 1
    for method in load_table("table1").methods:
        assert re.search(rf"^{method} +\d+ +\d+\.\d\d *$", said, re.MULTILINE)
    for files in ("decoded", "in memory"):
        assert re.search(rf"^evaluate bdd100k, {files} +\d+\.\d images/s$", said, re.MULTILINE)


def test_bench_of_another_task_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--protocol", "mini_sdgod", "--data-root", str(tmp_path)]) == 2
    assert "its task is detection" in capsys.readouterr().err
