import re
import subprocess

import pytest
from paths import ROOT


@pytest.mark.parametrize(
    ("out", "folder"), [("", "results"), ("  ", "results"), ("my runs", "my runs")]
)
def test_every_folder_that_is_written_lies_below_out(out: str, folder: str) -> None:
    command = ["make", "-n", "reproduce-table1", "compare", "METHOD=lora", f"OUT={out}"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"--(?:out|write|records) ('.*?'|\S+)", text) == [
        f"'{folder}/{part}'" for part in ("runs", "runs", "tables", "runs")
    ]
