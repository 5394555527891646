"""What the cells of a sweep are doing, from what lies in the folder of their records.

Nothing is asked of the processes themselves, so that it works from another machine that sees the
folder, and while they are too busy to answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import filelock

from benchmarks.progress import State, duration, read_state, words

# A running cell that moves on no more is worth a look.
SILENT = timedelta(minutes=15)
# In the order in which they are shown.
STATES = (
    *("running", "silent", "cut off", "queued", "failed", "other version"),
    *("missing", "not applicable", "done"),
)
# Named even where there are none.
_COUNTED = ("done", "running", "queued", "failed", "missing")


@dataclass(frozen=True)
class CellStatus:
    """One cell.

    Attributes:
        name: for people.
        record: its path.
        state: one of `STATES`. "silent" runs, but has not moved on for `SILENT`; "cut off" runs no
            more and has no record; "other version" has a record of another protocol version.
        words: what else there is to say.
        progress: of a cell that runs or was cut off.
        hours: device hours that a finished cell took.
    """

    name: str
    record: Path
    state: str
    words: str = ""
    progress: State | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Jobs:
    """Which SLURM jobs are not over; None where nobody knows."""

    queued: frozenset[str] | None

    def about(self, job: str) -> str:
        """Words on a job."""
        gone = self.queued is not None and job not in self.queued
        return f"job {job}{' (not in squeue)' if gone else ''}"


def look(cells: Mapping[Path, str], version: int | None, now: datetime) -> list[CellStatus]:
    """The state of every cell, those that say most first.

    Args:
        cells: path of the record -> name.
        version: of the protocol; None accepts all.
        now: UTC.
    """
    tickets = {path: ticket for path in cells if (ticket := _ticket(path))}
    # squeue is slow and asked only where a job may still be waiting.
    jobs = Jobs(_queued() if any(not path.exists() for path in tickets) else None)
    seen = [
        _look(path, name, version, tickets.get(path), jobs, now) for path, name in cells.items()
    ]
    return sorted(seen, key=lambda cell: STATES.index(cell.state))


def _look(
    path: Path,
    name: str,
    version: int | None,
    ticket: Mapping[str, str] | None,
    jobs: Jobs,
    now: datetime,
) -> CellStatus:
    if path.exists():
        return _recorded(path, name, version)
    state = read_state(path)
    job = ticket["job"] if ticket else state.job if state else None
    about = [jobs.about(job)] if job else []
    if ticket and ticket.get("error"):
        return CellStatus(name, path, "failed", "  ".join([ticket["error"], *_log(path, job)]))
    # The lock is held by the process itself: it is gone with it, however it ended.
    if _locked(path):
        where = [words(state)] if state else ["starting"]
        place = [state.host] if state else []
        quiet = now - state.updated if state else timedelta()
        if quiet > SILENT:
            where.append(f"silent for {duration(quiet.total_seconds())}")
        kind = "silent" if quiet > SILENT else "running"
        return CellStatus(name, path, kind, "  ".join([*where, *about, *place]), state)
    if ticket and jobs.queued and job in jobs.queued:
        return CellStatus(name, path, "queued", about[0], state)
    if state or Path(f"{path}.checkpoint").exists() or ticket:
        where = [f"at {words(state)}"] if state else []
        said = "  ".join([*where, *about, "the same command resumes it", *_log(path, job)])
        return CellStatus(name, path, "cut off", said, state)
    return CellStatus(name, path, "missing")


def _recorded(path: Path, name: str, version: int | None) -> CellStatus:
    try:
        # Not by the schema: what another version wrote has a state too, and looking must not fail.
        record = json.loads(path.read_bytes())
        status, reason, cost = record["status"], record.get("reason", ""), record.get("cost") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return CellStatus(name, path, "failed", f"{path} is no record; delete it")
    made = record.get("protocol_version")
    if version is not None and made != version:
        return CellStatus(name, path, "other version", f"recorded under version {made}")
    seconds = (cost.get("train_seconds") or 0) + (cost.get("evaluate_seconds") or 0)
    hours = seconds * cost.get("devices", 1) * cost.get("nodes", 1) / 3600
    state = {"not_applicable": "not applicable"}.get(status, status)
    return CellStatus(name, path, state if state in STATES else "failed", reason, hours=hours)


def _log(record: Path, job: str | None) -> list[str]:
    log = record.parents[3] / "slurm" / f"{job}_0_log.out"
    return [f"log {log}"] if log.is_file() else []


def _ticket(record: Path) -> dict[str, str] | None:
    try:
        ticket = json.loads(Path(f"{record}.job").read_bytes())
    except (OSError, ValueError):
        return None
    return ticket if isinstance(ticket, dict) and "job" in ticket else None


def _queued() -> frozenset[str] | None:
    from benchmarks.errors import UserError
    from benchmarks.slurm import queued_jobs

    try:
        return frozenset(queued_jobs())
    except (UserError, OSError):
        return None


def _locked(record: Path) -> bool:
    """Whether a process runs the cell of a record."""
    lock = Path(f"{record}.lock")
    if not lock.exists():
        return False
    try:
        with filelock.FileLock(lock, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


@dataclass(frozen=True)
class Outlook:
    """Device hours used and expected of all cells, and when they would end as things go."""

    used: float
    total: float | None
    end: datetime | None


def outlook(cells: Sequence[CellStatus], now: datetime) -> Outlook:
    """What is left, from the cells that ended and the steps of those that run."""
    ended = [cell.hours for cell in cells if cell.state == "done" and cell.hours]
    active = [
        cell.progress for cell in cells if cell.state in ("running", "silent") and cell.progress
    ]
    known = [state for state in active if state.seconds_per_step]
    running = sum(state.iteration * state.seconds_per_step for state in known) / 3600
    used = sum(cell.hours or 0 for cell in cells) + running
    whole = [*ended, *(state.of * state.seconds_per_step / 3600 for state in known)]
    if not whole:
        return Outlook(used, None, None)
    # From cells that ended, if any did: those that run have not been scored yet.
    each = fmean(ended or whole)
    waiting = [cell for cell in cells if cell.state in ("cut off", "queued", "missing")]
    left = each * (len(waiting) + len(active) - len(known))
    left += sum(state.seconds_left or 0 for state in known) / 3600
    # As many cells side by side as now.
    end = now + timedelta(hours=left / len(active)) if active else None
    return Outlook(used, used + left, end)


def report(title: str, cells: Sequence[CellStatus], now: datetime) -> list[str]:
    """Lines for people: counts, one line for every cell that is not simply done or missing."""
    counts = Counter(cell.state for cell in cells)
    named = [*_COUNTED, *(state for state in STATES if counts[state] and state not in _COUNTED)]
    lines = [f"{title}  {'  '.join(f'{state} {counts[state]}' for state in named)}"]
    told = [cell for cell in cells if cell.state not in ("done", "missing", "not applicable")]
    name, state = (
        max((len(getattr(c, key)) for c in told), default=0) for key in ("name", "state")
    )
    lines += [f"{c.name:<{name}}  {c.state:<{state}}  {c.words}".rstrip() for c in told]
    ahead = outlook(cells, now)
    if ahead.total:
        of = f" of about {ahead.total:.3g}" if ahead.total > ahead.used else ""
        hours = f"{ahead.used:.3g}{of} device hours used"
        when = f"{ahead.end.astimezone():%a %H:%M}" if ahead.end else ""
        lines.append(f"projected end {when}; {hours}" if when else hours)
    return lines


def as_json(title: Mapping[str, Any], cells: Sequence[CellStatus], now: datetime) -> dict[str, Any]:
    """The same for scripts."""
    ahead, counts = outlook(cells, now), Counter(cell.state for cell in cells)
    return {
        **title,
        "counts": {state: counts[state] for state in STATES},
        "device_hours_used": ahead.used,
        "device_hours_total": ahead.total,
        "projected_end": ahead.end.isoformat(timespec="seconds") if ahead.end else None,
        "cells": [
            {
                "name": cell.name,
                "record": str(cell.record),
                "state": cell.state,
                "words": cell.words,
                "progress": cell.progress.model_dump(mode="json") if cell.progress else None,
            }
            for cell in cells
        ],
    }
