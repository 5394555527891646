"""The worked example of CONTRIBUTING.md conforms, trains, and is what the text says."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import nn
from toy_task import FakeTask, protocol, take_place

import benchmarks
from benchmarks import run
from benchmarks.__main__ import app
from benchmarks.cell import Cell, make_cell
from benchmarks.conformance.check import KINDS, check_method

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """The example, extracted into a file outside the repository, in the toy protocol."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (name,) = re.findall(r"This one, `(\w+\.py)`", TEXT)
    file = tmp_path_factory.mktemp("elsewhere") / name
    file.write_text(code)
    return make_cell(protocol(), f"{file}:MyMethod", seed=0, placement="all", data={"gtav": "f00d"})


@pytest.mark.parametrize("kind", KINDS)
def test_example_conforms(kind: str, cell: Cell) -> None:
    findings = check_method(cell.make_method(), kind)
    assert not [finding for finding in findings if finding.verdict == "fail"]
    assert sum(finding.verdict == "pass" for finding in findings) > 10


def test_example_is_about_25_lines(cell: Cell) -> None:
    lines = Path(cell.method.rpartition(":")[0]).read_text().splitlines()
    assert 20 <= sum(bool(line.strip()) for line in lines) <= 30


def test_example_trains_what_the_text_says(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = FakeTask("fake_task")
    take_place(task, monkeypatch)
    adapted = run.build(cell, task)
    backbone: nn.Module = adapted.model.backbone
    before = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    training = run.make_training(cell, adapted, run.make_fabric("cpu", "32-true"))
    batches = task.batches(cell.protocol, tmp_path, cell.seed)
    for _ in range(2):
        training.step(batches)
    moved = {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {
        f"blocks.{block}.mlp.{name}"
        for block in range(4)
        for name in ("fc1.bias", "fc2.bias", "fc2.scale")
    }


def test_example_goes_through_a_run(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = FakeTask("fake_task")
    take_place(task, monkeypatch)
    record = run.run_cell(cell, tmp_path, tmp_path)
    torch.use_deterministic_algorithms(False)
    assert (record.status, record.label) == ("done", "my_method.MyMethod")
    # four blocks of width 32: 128 biases of fc1, 32 of fc2 and 32 scales
    assert record.parameters.backbone_trainable == 4 * (128 + 32 + 32)


def test_commands_of_the_text_exist() -> None:
    named = set(re.findall(r"python -m benchmarks (\w+)", TEXT))
    known = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {"check", "compare", "tune"} <= named <= known
    targets = set(re.findall(r"\bmake (\w+)", TEXT))
    makefile = (ROOT / "Makefile").read_text()
    assert "compare" in targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_version_of_records_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == benchmarks.__version__
