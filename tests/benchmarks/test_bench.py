import re

import pytest

from benchmarks.__main__ import main


@pytest.mark.usefixtures("one_thread")
def test_startup_counts_the_splits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMA_CACHE", "")  # set by the command, and taken back after the test
    assert main(["bench", "startup", "pissa", "--backbone", "test_vit"]) == 0
    number = r"\d+\.\d\d s"
    lines = rf"((first |cached) +{number}, processor +{number}, 36 entries\n){{2}}$"
    assert re.search(lines, capsys.readouterr().out)  # 6 blocks of 6 linears
