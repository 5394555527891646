import re
import subprocess

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
