"""Kill sweeps with SIGKILL at random moments and count what was lost, changed or left behind.

Usage: .venv/bin/python scripts/kill_runs.py DATA_ROOT [KILLS]

Cells of both tasks of the smoke profile, two workers each. A kill hits the sweep with all its
processes, or one of them alone. Every time all cells are recorded, their scores are compared with
those of a sweep that nobody killed, and the next round begins in a new folder.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.record import Record  # noqa: E402

SWEEPS = [
    ("table1", "--methods", "freeze,lora", "--seeds", "0,1"),
    ("table2", "--methods", "lora", "--seeds", "0,1"),
]
CELLS = 6
LONGEST = 25.0  # seconds until a kill


def start(data_root: Path, out: Path, sweep: tuple[str, ...]) -> subprocess.Popen:
    """A sweep in a session of its own."""
    common = ["--profile", "smoke", "--workers", "2", "--data-root", data_root, "--out", out]
    command = [sys.executable, "-m", "benchmarks", "sweep", *sweep, *common]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Of its own, so that a kill of the group hits the workers and not this script.
    return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, **quiet)


def finish(data_root: Path, out: Path) -> None:
    """All sweeps, without a kill."""
    for sweep in SWEEPS:
        start(data_root, out, sweep).wait()


def kill_once(data_root: Path, out: Path, draw: random.Random) -> None:
    """One sweep until a random moment, then SIGKILL."""
    process = start(data_root, out, draw.choice(SWEEPS))
    try:
        process.wait(draw.uniform(0.2, LONGEST))
        # It was done before: a kill that came too late, which counts all the same.
        return
    except subprocess.TimeoutExpired:
        pass
    family = psutil.Process(process.pid)
    everyone = [family, *family.children(recursive=True)]
    if draw.random() < 0.5:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        draw.choice(everyone).kill()
        # The others either notice and end by themselves, or die before they can.
        process.wait(120) if process.poll() is None and draw.random() < 0.5 else None
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()
    # Workers outlive their parent for a moment, and would write into what is counted next.
    psutil.wait_procs(everyone, timeout=30)


def scores(out: Path) -> dict[str, list]:
    """Path of a record -> its evaluations and losses."""
    records = {}
    for path in sorted(out.rglob("seed*.json")):
        record = Record.load(path)
        record.check()
        records[str(path.relative_to(out))] = [record.evaluations, record.losses]
    return records


def main(data_root: Path, kills: int) -> None:
    """Print the counts."""
    draw, done = random.Random(0), 0
    lost = changed = partial = left = rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        finish(data_root, Path(folder) / "whole")
        whole = scores(Path(folder) / "whole")
        if len(whole) != CELLS:
            sys.exit(f"{len(whole)} of {CELLS} cells recorded where nothing was killed")
        while done < kills:
            out = Path(folder) / f"round{rounds}"
            rounds += 1
            for _ in range(min(10, kills - done)):
                before = scores(out)
                started = time.monotonic()
                kill_once(data_root, out, draw)
                done += 1
                try:
                    after = scores(out)
                except Exception as error:  # noqa: BLE001 - counted
                    partial += 1
                    print(f"partial: {error}")
                    continue
                lost += len(before.keys() - after.keys())
                print(f"{done}: {len(after)} records, {time.monotonic() - started:.0f} s")
            finish(data_root, out)
            ended = scores(out)
            changed += sum(ended.get(path) != value for path, value in whole.items())
            # A lock that no process holds counts for nothing, so it may stay.
            endings = (".json", ".lock", ".npz", ".safetensors", ".gz")
            odd = [p for p in out.rglob("*") if p.is_file() and not p.name.endswith(endings)]
            left += len(odd)
    print(
        f"{done} kills in {rounds} rounds: {lost} records lost, {changed} changed, {partial} "
        f"partial, {left} files left behind"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
