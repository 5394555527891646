"""Where a running cell is: a small file that is rewritten, a log that grows, a bar or lines.

Beside the record `seed0.json` lie `seed0.json.progress`, as long as the cell runs, and
`seed0.log.jsonl`, which stays (docs/records.md). Neither decides anything: a disk that takes no
more of them stops no run.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY = 10.0  # seconds between two states of the file
_SOONEST = 1.0  # seconds, where a further percent is done sooner
_RECENT = 50  # steps whose mean stands for "now"
_LINES = 20  # in a log without a terminal: one for every twentieth of the steps
_APART = 30.0  # seconds that two of them lie apart at least


class State(BaseModel):
    """The content of a progress file.

    Attributes:
        iteration: steps done.
        of: all steps.
        seconds_per_step: median of the last ones; null before the first.
        loss: mean of the last ones.
        phase: "start" (weights, method), "training", or "scoring DOMAIN".
        job: number of the SLURM job, if it is one.
        started: when this process began, UTC, ISO 8601.
        updated: when it last moved on.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    iteration: int
    of: int
    seconds_per_step: float | None = None
    loss: float | None = None
    phase: str
    host: str
    pid: int
    job: str | None = None
    started: datetime
    updated: datetime

    @property
    def seconds_left(self) -> float | None:
        """Of training; None before the first step."""
        return self.seconds_per_step and (self.of - self.iteration) * self.seconds_per_step


def progress_file(record: Path) -> Path:
    """Where the progress of the cell of a record stands while it runs."""
    return Path(f"{record}.progress")


def log_file(record: Path) -> Path:
    """Where the course of training stands, beside its record."""
    return record.with_suffix(".log.jsonl")


def read_state(record: Path) -> State | None:
    """What the process of a cell wrote last, or None: it wrote nothing, or nothing readable."""
    with suppress(OSError, ValidationError):
        return State.model_validate_json(progress_file(record).read_bytes())
    return None


class Progress:
    """Follows the training of one cell; without a record it writes no file.

    Args:
        of: steps of the whole run.
        record: path of the cell's record.
        name: of the cell, in lines for people.
        bar: show a bar where stderr is a terminal. Elsewhere there are lines.
    """

    def __init__(
        self, of: int, record: Path | None = None, name: str = "", bar: bool = False
    ) -> None:
        self.of, self.record, self.name, self.bar = of, record, name, bar
        self.started = datetime.now(UTC)
        self.iteration = self.logged = 0
        self.losses: Sequence[float] = ()
        self.seconds: Sequence[float] = ()
        self.phase = "start"
        self._written, self._printed = -math.inf, time.monotonic()
        self._bars: Bars | None = None
        if record:
            with suppress(OSError):
                record.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def over(
        self, losses: Sequence[float], seconds: Sequence[float], scored: Collection[int] = ()
    ) -> Iterator[None]:
        """Follow the steps, whose lists of one entry per step grow as the run goes.

        Log lines past the last of these steps, or of scores not among the iterations `scored`, are
        of a run that was cut off later than it was saved: they are dropped.
        """
        self.losses, self.seconds = losses, seconds
        self.iteration = self.logged = len(losses)
        self.phase = "training"
        self._rewind(set(scored))
        self._write(forced=True)
        if not (self.bar and sys.stderr.isatty()):
            yield
            return
        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        loss = TextColumn("loss {task.fields[loss]:.3f}")
        with Bars(*columns, loss, console=Console(stderr=True)) as self._bars:
            self._bars.add_task("", total=self.of, completed=self.iteration, loss=math.nan)
            yield

    def step(self) -> None:
        """A step is done."""
        self.iteration = len(self.losses)
        self.phase = "training"
        if self.iteration * 100 // self.of > self.logged * 100 // self.of:
            losses, seconds = self.losses[self.logged :], self.seconds[self.logged :]
            self._log({"loss": fmean(losses), "seconds_per_step": fmean(seconds)})
            self.logged = self.iteration
            self._write(forced=False, apart=_SOONEST)
        else:
            self._write(forced=False)
        if self._bars:
            self._bars.update(self._bars.task_ids[0], advance=1, loss=self.losses[-1])
        elif self.iteration * _LINES // self.of > (self.iteration - 1) * _LINES // self.of:
            self._print()

    def enter(self, phase: str) -> None:
        """Something other than a step begins."""
        self.phase = phase
        self._write(forced=True)

    def scored(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """The weights of this iteration have been scored: domain -> role and metrics.

        Held-out source data alone are logged: a curve of test scores invites to choose by it.
        """
        held_out = {
            domain: {k: v for k, v in score["metrics"].items() if isinstance(v, float)}
            for domain, score in scores.items()
            if isinstance(score, Mapping) and score.get("role") == "validation"
        }
        if held_out:
            self._log({"held_out": held_out})

    def remove(self) -> None:
        """Delete the progress file: the cell is recorded."""
        if self.record:
            with suppress(OSError):
                progress_file(self.record).unlink(missing_ok=True)

    def state(self) -> State:
        """What the file says now."""
        recent = self.seconds[-_RECENT:]
        return State(
            iteration=self.iteration,
            of=self.of,
            seconds_per_step=median(recent) if recent else None,
            loss=fmean(self.losses[-_RECENT:]) if self.losses else None,
            phase=self.phase,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=os.environ.get("SLURM_JOB_ID"),
            started=self.started,
            updated=datetime.now(UTC),
        )

    def _write(self, forced: bool, apart: float = EVERY) -> None:
        if self.record is None or not (forced or time.monotonic() - self._written >= apart):
            return
        self._written = time.monotonic()
        text = self.state().model_dump_json()
        _replace(progress_file(self.record), text)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.record is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"iteration": self.iteration, **entry, "time": now}) + "\n"
        with suppress(OSError), log_file(self.record).open("a", encoding="utf-8") as file:
            file.write(line)  # one call, one line: a reader never sees half of it

    def _rewind(self, scored: set[int]) -> None:
        if self.record is None:
            return
        path, done = log_file(self.record), self.iteration
        with suppress(OSError):
            if not done and not scored:
                path.unlink(missing_ok=True)
                return
            kept = [
                entry
                for entry in read_log(path)
                if (
                    entry["iteration"] in scored
                    if "held_out" in entry
                    else entry["iteration"] <= done
                )
            ]
            self.logged = max((entry["iteration"] for entry in kept), default=0)
            _replace(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))

    def _print(self) -> None:
        now = time.monotonic()
        if not self.name or sys.stderr.isatty() or now - self._printed < _APART:
            return
        self._printed = now
        print(f"{self.name}: {words(self.state())}", file=sys.stderr, flush=True)


def words(state: State) -> str:
    """Where a cell is, for people: steps, loss, time per step, time left."""
    parts = [f"{state.iteration:,}/{state.of:,}"]
    if state.phase != "training":
        parts.append(state.phase)
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.seconds_per_step is not None:
        parts.append(f"{state.seconds_per_step:.2f} s/step")
    if state.seconds_left:
        parts.append(f"left {duration(state.seconds_left)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Hours and minutes as 5:26; below an hour minutes and seconds, as 3:07 min."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, in order; lines that a crash cut off are left out.

    Raises:
        OSError: the file cannot be read; none for one that is not there.
    """
    entries = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
                entries.append(entry)
    return entries


def _replace(path: Path, text: str) -> None:
    """Put text at `path`, whole or not at all, as fast as what is rewritten so often needs."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
