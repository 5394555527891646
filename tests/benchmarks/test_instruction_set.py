"""The instruction set that kernels are chosen by: one for all processors with AVX2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

import benchmarks
from benchmarks.environment import environment

PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
CPU_INFO = Path("/proc/cpuinfo")
avx2 = pytest.mark.skipif(
    not CPU_INFO.is_file() or " avx2 " not in CPU_INFO.read_text(), reason="no AVX2 here"
)
SHOW = "from benchmarks.environment import instruction_set; import json; "
SHOW += "print(json.dumps(instruction_set()))"
SPAWN = "import benchmarks, multiprocessing, subprocess, sys; "
SPAWN += f"subprocess.run([sys.executable, '-c', 'import torch; {SHOW}'], check=True)"


@avx2
@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        (f"import benchmarks, torch; {SHOW}", {}, PINNED | {"torch": "AVX2"}),
        (SHOW, {"MKL_CBWR": "COMPATIBLE"}, PINNED | {"MKL_CBWR": "COMPATIBLE"}),
        # What a process of ours starts inherits it, before it imports anything.
        (SPAWN, {}, PINNED | {"torch": "AVX2"}),
        # Too late, so that nothing is set and nothing claimed.
        (
            f"import torch; {SHOW}",
            {"ATEN_CPU_CAPABILITY": "default"},
            {"torch": "DEFAULT", "ATEN_CPU_CAPABILITY": "default"},
        ),
    ],
    ids=["torch after", "chosen by the user", "child", "torch before"],
)
def test_instruction_set_is_set_before_torch_and_told(
    code: str, given: dict[str, str], expected: dict[str, str]
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in PINNED}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("model name\t: one\nflags\t\t: fpu sse2 avx avx2 fma\n", PINNED),
        ("model name\t: an old one\nflags\t\t: fpu sse2 avx\n", {}),
        ("processor\t: 0\nFeatures\t: fp asimd\n", {}),
        (None, {}),
    ],
    ids=["avx2", "old", "arm", "no file"],
)
def test_a_processor_without_avx2_is_left_alone(
    lines: str | None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PINNED:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    benchmarks.pin_instruction_set(tmp_path / "cpuinfo")
    assert {name: os.environ[name] for name in PINNED if name in os.environ} == expected


def test_the_tests_run_on_the_instruction_set_that_records_name() -> None:
    named = environment().instruction_set
    assert named["torch"] == torch.backends.cpu.get_cpu_capability()
    if named.get("ATEN_CPU_CAPABILITY") == "avx2":
        assert named["torch"] == "AVX2"
