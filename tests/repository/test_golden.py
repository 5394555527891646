"""The digits of a tiny cell: equal to the committed ones on such a machine, and for any threads."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

SCRIPT = ROOT / "scripts" / "golden.py"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def here(golden: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    yield golden.measure(tmp_path_factory.mktemp("golden"))
    torch.use_deterministic_algorithms(False)


def test_digits_are_the_committed_ones_on_such_a_machine(golden: ModuleType, here: dict) -> None:
    committed = json.loads(golden.GOLDEN.read_text())
    lines = "; ".join(golden.differences(here, committed))
    if here["made_on"] == committed["made_on"]:
        assert not lines, "if digits are meant to change: python scripts/golden.py --write"
    else:
        warnings.warn(f"other kernels than those of golden.json: {lines}", stacklevel=1)


def test_threads_of_the_environment_change_no_digit(here: dict, tmp_path: Path) -> None:
    """The recipe says one thread."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import golden, json, pathlib; "
    code += f"print(json.dumps(golden.measure(pathlib.Path({str(tmp_path)!r}))))"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here


def test_a_difference_is_told_with_its_size(golden: ModuleType) -> None:
    committed = json.loads(golden.GOLDEN.read_text())
    assert golden.differences(committed, committed) == []
    other = copy.deepcopy(committed)
    other["made_on"]["processor"] = "GenuineIntel 6 143"
    other["losses"][3] *= 1 + 2e-6
    other["scores"]["IoU"][0] += 0.25
    told = golden.differences(other, committed)
    assert told[0].startswith("processor GenuineIntel 6 143 instead of ")
    assert told[1:] == [
        "losses differ from step 3 on, by up to 2.0e-06 of their size",
        "scores differ by up to 0.25 points",
    ]
