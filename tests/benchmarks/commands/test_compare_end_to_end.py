"""`compare` on files: the example of CONTRIBUTING.md, trained beside a baseline made here."""

import re
from pathlib import Path

import pytest
import torch
from paths import ROOT
from tiny_setting import setting

from benchmarks.__main__ import main
from benchmarks.conformance import check

__all__ = ["setting"]


@pytest.mark.usefixtures("one_thread")
def test_example_of_the_document_against_a_baseline_made_here(
    setting: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    table, data = str(setting / "tiny_table.yaml"), str(setting / "data")
    baselines, runs = setting / "baselines", setting / "compared"
    made = ["run", str(setting / "tiny.yaml"), "freeze", "--data-root", data]
    assert main([*made, "--out", str(baselines)]) == 0
    torch.use_deterministic_algorithms(False)
    before = {path: path.read_bytes() for path in baselines.rglob("*") if path.is_file()}
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (setting / "my_method.py").write_text(code)
    monkeypatch.setattr(check, "KINDS", ("class token",))  # one says as much here as four
    capfd.readouterr()
    method = f"{setting / 'my_method.py'}:MyMethod"
    command = ["compare", method, "--table", table, "--data-root", data, "--seeds", "0"]
    command += ["--format", "md"]
    assert main([*command, "--against", str(baselines), "--out", str(runs)]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"conformance of my_method.MyMethod: \d+ properties hold, 0 fail", err)
    assert {path: path.read_bytes() for path in baselines.rglob("*") if path.is_file()} == before
    trained = sorted(path.relative_to(runs).as_posix() for path in runs.rglob("*.json"))
    assert trained == ["tiny/all/my_method.MyMethod/seed0.json"]
    printed, _, verdict = out.partition("# Verdict on my_method.MyMethod (placement all)")
    assert "2/3 cells, 1 missing: soma seed 0" in printed
    # ViT of 4 blocks, width 64: 256 biases of fc1, 64 of fc2 and 64 scales in each
    assert f"{4 * (256 + 64 + 64):,}" in printed
    assert re.search(r"\| Avg +\| [+-]\d+\.\d\d +\| one seed +\|", verdict)
