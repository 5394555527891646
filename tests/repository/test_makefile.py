import re
import subprocess
from pathlib import Path

import pytest
from paths import ROOT


@pytest.mark.parametrize("target", ["table1", "reproduce-table1"])
def test_a_table_takes_what_decides_its_rows(target: str) -> None:
    given = ["PROFILE=smoke", "PLACEMENT=both", "SEEDS=0,1", "METHODS=soma", "RECIPE=as-published"]
    command = ["make", "-n", target, *given, "RECORDS=a b"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = re.findall(r"benchmarks table table1.*", text)
    wanted = "--profile smoke --placement both --recipe as-published --data-root data/mini"
    for part in (wanted, "--seeds 0,1", "--methods soma", "--write 'results/tables'"):
        assert part in line
    folders = re.findall(r"--records '(.*?)'", line)
    assert folders == (["a", "b"] if target == "table1" else ["results/runs"])


def test_help_lists_every_variable_with_its_default_and_meaning() -> None:
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^([A-Z_]+)  +(\S.*)", text.stdout, re.MULTILINE))
    assert listed.keys() == {*re.findall(r"^([A-Z_]+) +\?=", (ROOT / "Makefile").read_text(), re.M)}
    assert re.match(r"controlled +controlled \| as-published", listed["RECIPE"])


@pytest.mark.parametrize(
    ("out", "folder"), [("", "results"), ("  ", "results"), ("my runs", "my runs")]
)
def test_every_folder_that_is_written_lies_below_out(out: str, folder: str) -> None:
    command = ["make", "-n", "reproduce-table1", "compare", "METHOD=lora", f"OUT={out}"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"--(?:out|write|records) ('.*?'|\S+)", text) == [
        f"'{folder}/{part}'" for part in ("runs", "runs", "tables", "runs", "tables")
    ]


@pytest.mark.parametrize(
    ("target", "tables"),
    [
        (["reproduce-table1"], ["table1"]),
        (["reproduce-table3"], ["table3a", "table3b", "table3c", "table3d"]),
        (["reproduce-table1", "reproduce-table2"], ["table1", "table2"]),
        (["compare", "METHOD=lora", "TABLE=table2"], ["table2"]),
        (["reproduce-table1", "PROFILE=mini_m2f"], ["table1"]),
        (["reproduce-table3c", "PROFILE=paper", "DATA_ROOT=/data"], []),
    ],
)
def test_a_target_renders_what_its_tables_read(target: list[str], tables: list[str]) -> None:
    command = ["make", "-n", "-o", ".venv/.ready", *target]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"benchmarks mini render.*", text)
    assert [line.split() for line in lines] == [
        f"benchmarks mini render --root data/mini --table {table}".split() for table in tables
    ]


def test_compare_takes_the_rate_that_tune_found() -> None:
    for given, wanted in (["RATE=3e-3"], ["recipe.backbone_lr=3e-3"]), ([], []):
        command = ["make", "-n", "-o", ".venv/.ready", "compare", "METHOD=lora", *given]
        text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert re.findall(r"--set (\S+)", text) == wanted


def test_every_part_of_table_3_is_printed_whatever_the_others_lack(tmp_path: Path) -> None:
    ready = tmp_path / "ready"  # nothing is installed
    ready.touch()
    command = ["make", "table3", f"READY={ready}", "BENCH=echo broken; false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.count("broken") == 4
