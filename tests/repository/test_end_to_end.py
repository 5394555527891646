"""The command line on real files: workers, a killed run, and the table that comes out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from paths import ROOT
from tiny_setting import setting

from benchmarks.environment import instruction_set

__all__ = ["setting"]


def start(setting: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(setting: Path, *arguments: str) -> str:
    process = start(setting, *arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def outcome(folder: Path, method: str, seed: int) -> tuple[list, dict[str, np.ndarray]]:
    path = folder / "tiny" / "all" / method / f"seed{seed}.json"
    with np.load(path.with_suffix(".npz")) as arrays:
        matrices = {name: arrays[name] for name in arrays}
    record = json.loads(path.read_text())
    assert record["environment"]["instruction_set"] == instruction_set()  # workers inherit it
    return [record["digest"], record["evaluations"], record["losses"]], matrices


def assert_same(one: Path, two: Path, method: str, seed: int) -> None:
    ours, theirs = outcome(one, method, seed), outcome(two, method, seed)
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert all(np.array_equal(ours[1][name], theirs[1][name]) for name in ours[1])


def test_one_worker_and_two_give_the_same_bits_and_a_killed_run_too(setting: Path) -> None:
    table, data = str(setting / "tiny_table.yaml"), str(setting / "data")
    for workers in ("1", "2"):
        out = str(setting / f"workers{workers}")
        call(setting, "sweep", table, "--data-root", data, "--out", out, "--workers", workers)
    for method in ("freeze", "soma"):
        for seed in (0, 1):
            assert_same(setting / "workers1", setting / "workers2", method, seed)

    printed = call(setting, "table", table, "--records", str(setting / "workers2"))
    assert "4/4 cells" in printed
    assert "soma" in printed

    killed = setting / "killed"
    command = ["run", str(setting / "tiny.yaml"), "soma", "--seed", "1"]
    command += ["--data-root", data, "--out", str(killed)]
    process = start(setting, *command)
    checkpoint = killed / "tiny" / "all" / "soma" / "seed1.json.checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.exists(), "it was killed too late to test anything"
    assert not checkpoint.with_suffix("").exists()
    call(setting, *command)
    assert_same(setting / "workers1", killed, "soma", 1)
    assert not checkpoint.exists()
