"""Running a cell once: its lock, its record, and what becomes of an unexpected error."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock

from benchmarks.cell import Cell
from benchmarks.errors import UserError
from benchmarks.record import Record, record_of

POLL = 0.5  # seconds between two looks at a lock that is waited for
RunCell = Callable[[Cell, Path, Path, str, bool], Record]


@dataclass(frozen=True)
class Plan:
    """What to run: cells in order, folder of records, data, devices, and what runs one cell."""

    cells: tuple[Cell, ...]
    out: Path
    data_root: Path
    device: str
    run: RunCell
    devices: int = 1  # of each cell, which `run` knows too


def finished(cell: Cell, out: Path) -> Record | None:
    """The record of a cell, of any status, if there is one of the same digest.

    Raises:
        UserError: an unreadable record, or one of another digest, lies at the cell's path.
    """
    path = out / cell.path
    if not path.exists():
        return None
    record = Record.load(path)
    if record.digest != cell.digest:
        raise UserError(
            f"{path}: record of another cell (digest {record.digest[:8]}, wanted "
            f"{cell.digest[:8]}): settings, method or data changed; move it away or choose --out"
        )
    return record


def run_one(
    plan: Plan, cell: Cell, progress: bool, wait_for_lock: bool
) -> tuple[Record, bool] | None:
    """The record of a cell, and whether it was made now, under the cell's lock.

    None if someone else holds the lock and it is not waited for.

    Anything unexpected inside the cell becomes a failed record and its traceback goes to stderr.

    Raises:
        UserError: the user has to mend something; no record is written.
    """
    path = plan.out / cell.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        timeout = -1 if wait_for_lock else 0
        with filelock.FileLock(f"{path}.lock", timeout=timeout, poll_interval=POLL):
            record = finished(cell, plan.out)
            if record is not None:
                return record, False
            try:
                record = plan.run(cell, plan.out, plan.data_root, plan.device, progress)
            except (UserError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - one broken cell must not end a sweep
                traceback.print_exc()
                record = record_of(cell, "failed", f"{type(error).__name__}: {error}")
            if not path.exists():
                record.write(path)
            return record, True
    except filelock.Timeout:
        return None
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{cell}: {where}: {error.strerror or error}") from None


def follow(plan: Plan, cell: Cell) -> None:
    """Take part in a cell as one of several processes, of which the first has its lock.

    Raises:
        UserError: as `run_one`.
    """
    if finished(cell, plan.out) is None:
        plan.run(cell, plan.out, plan.data_root, plan.device, False)
