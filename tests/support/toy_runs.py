"""Quick stand-ins for `run_cell`, in a module so that spawned workers find them."""

import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

from toy_records import toy_record

from benchmarks import tasks
from benchmarks.cell import Cell
from benchmarks.errors import UserError
from benchmarks.record import Record


def quick(
    cell: Cell, out: Path, data_root: Path, device: str, progress: bool, **where: int
) -> Record:
    """A done record; leaves one line per run in `<data_root>/log`."""
    with (data_root / "log").open("a") as log:
        log.write(" ".join((str(cell.seed), cell.label, *map(str, where.values()))) + "\n")
    return toy_record(cell.label, cell.seed, digest=cell.digest)


def environment(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    """Leaves the variables of its process in `<data_root>/environment`."""
    lines = [f"{name}={value!r}" for name, value in os.environ.items()]
    (data_root / "environment").write_text("\n".join(lines))
    return quick(cell, out, data_root, device, progress)


def slow(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    record = quick(cell, out, data_root, device, progress)
    time.sleep(1.5)  # long enough that a second sweep, still importing, finds it at work
    return record


def breaks_on_lora(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    if cell.label == "lora":
        raise RuntimeError("something\nunexpected")
    return quick(cell, out, data_root, device, progress)


def dies_on_lora_seed_0(
    cell: Cell, out: Path, data_root: Path, device: str, progress: bool
) -> Record:
    if cell.label == "lora" and cell.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(cell, out, data_root, device, progress)


def data_is_broken(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    raise UserError("image_7.png: truncated; fetch it again")


def memory_is_full(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    if cell.label == "lora":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return quick(cell, out, data_root, device, progress)


def loader_is_killed(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    if cell.label == "lora":
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    return quick(cell, out, data_root, device, progress)


def disk_is_full(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    raise OSError(28, "No space left on device", "checkpoint")


def never_ends(cell: Cell, out: Path, data_root: Path, device: str, progress: bool) -> Record:
    (data_root / f"started{os.getpid()}").touch()
    time.sleep(60)
    return quick(cell, out, data_root, device, progress)


def trains(
    cell: Cell, out: Path, data_root: Path, device: str, progress: bool, **where: int
) -> Record:
    """`run_cell` on a slow toy task.

    Each start leaves a line in `<data_root>/log`: the cell's seed, and whether it was resumed.
    """
    from toy_task import SlowTask

    from benchmarks import run

    resumed = Path(f"{out / cell.path}.checkpoint").exists()
    with (data_root / "log").open("a") as log:
        log.write(f"{cell.seed} {'resumed' if resumed else 'new'}\n")
    slow = SlowTask("slow_task")
    unread = patch.object(run, "_check_unchanged", lambda *_: None)
    with patch.object(tasks, "task_of", lambda _: slow), unread:
        return run.run_cell(cell, out, data_root, device, progress, **where)


def measured(cell: Cell, device: str, root: Path) -> float:
    """What stands for two measured steps, in the process that is started for them."""
    if cell.label == "soma":
        raise UserError("no cuda here")
    return 8.0
