"""One file over HTTP: parts side by side, resumable, two versions of it never glued together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import httpx2
from pydantic import BaseModel, ValidationError

from benchmarks.download.remote import (
    PASSING,
    Busy,
    Changed,
    Patience,
    Remote,
    answer,
    probe,
    remote_of,
)
from benchmarks.errors import UserError
from benchmarks.record import write_atomically

CONNECTIONS = 4  # per file
SMALLEST_PART = 8 << 20  # bytes that are worth a connection of their own
PROGRESS = 1 << 18  # bytes after which a connection that is cut did work
SAVE_EVERY = 1.0  # seconds between two notes of what has arrived
Report = Callable[[int], object]  # told how many bytes have arrived; negative: so many are void


class Journal(BaseModel):
    """What has arrived of a version of a file: bytes of each part, at their place in `.part`."""

    url: str
    size: int
    version: str
    done: list[int]


def fetch(http: httpx2.Client, remote: Remote, target: Path, report: Report) -> None:
    """Put the file at `target`, which appears only when it is whole.

    Until then `target`.part holds what has arrived and `target`.json says what that is; a later
    call goes on from there if the server still has the same version.

    Raises:
        UserError: the server refuses or is cut off too often, the file keeps changing, the disk is
            full.
    """
    part = target.with_name(f"{target.name}.part")
    journal = target.with_name(f"{target.name}.json")
    try:
        for _ in range(2):
            with suppress(Changed):
                if remote.resumable:
                    _Transfer(http, remote, part, journal, report).run()
                else:
                    _fetch_whole(http, remote, part, report)
                part.replace(target)
                journal.unlink(missing_ok=True)
                return
            journal.unlink(missing_ok=True)
            remote = probe(http, remote.url)
    except OSError as error:
        kept = "what has arrived is kept, " if journal.exists() else ""
        if not kept:
            part.unlink(missing_ok=True)
        raise UserError(
            f"{part}: {error.strerror or error}; {kept}make room and run the same command again"
        ) from None
    raise UserError(f"{remote.url}: changes while it is fetched; run the same command again later")


def _fetch_whole(http: httpx2.Client, remote: Remote, part: Path, report: Report) -> None:
    """From the first byte to the last in one answer."""
    patience = Patience(remote.url)
    while True:
        arrived = 0
        try:
            with answer(http, remote.url) as reply, part.open("wb") as file:
                for chunk in reply.iter_raw():
                    file.write(chunk)
                    arrived += len(chunk)
                    report(len(chunk))
            return
        except PASSING as error:
            report(-arrived)
            patience.wait(error)


class _Transfer:
    """A file in parts, each over a connection of its own and written to its place."""

    def __init__(
        self, http: httpx2.Client, remote: Remote, part: Path, journal: Path, report: Report
    ) -> None:
        self.http, self.remote, self.report = http, remote, report
        self.part, self.journal = part, journal
        self.stop = threading.Event()
        self.done = self._arrived_before()
        parts = len(self.done)
        self.bounds = [remote.size * index // parts for index in range(parts + 1)]

    def run(self) -> None:
        """Fetch what is missing.

        Raises:
            Changed: the server has another version now; what had arrived is void.
            UserError: the server refuses or is cut off too often.
            OSError: the disk is full.
        """
        self.report(sum(self.done))
        with self.part.open("r+b" if any(self.done) else "wb") as file:
            self._save(file.fileno())
            try:
                with ThreadPoolExecutor(len(self.done)) as pool:
                    running = {
                        pool.submit(self._fetch_part, file.fileno(), index)
                        for index in range(len(self.done))
                    }
                    try:
                        while running:
                            ended, running = wait(running, SAVE_EVERY, FIRST_EXCEPTION)
                            self._save(file.fileno())
                            for future in ended:
                                future.result()
                    finally:
                        self.stop.set()
            except Changed:
                self.report(-sum(self.done))
                raise
            finally:
                self._save(file.fileno())

    def _fetch_part(self, file: int, index: int) -> None:
        patience = Patience(self.remote.url)
        first, end = self.bounds[index : index + 2]
        while not self.stop.is_set() and first + self.done[index] < end:
            before = self.done[index]
            try:
                self._fetch_rest(file, index, first + before, end)
            except PASSING as error:
                patience.wait(error, progress=self.done[index] - before >= PROGRESS)

    def _fetch_rest(self, file: int, index: int, start: int, end: int) -> None:
        """Ask once for the bytes from `start` to `end` and write what comes."""
        with answer(self.http, self.remote.url, f"bytes={start}-{end - 1}") as reply:
            part = reply.headers.get("Content-Range", "")
            if remote_of(self.remote.url, reply) != self.remote or f" {start}-" not in part:
                raise Changed
            for chunk in reply.iter_raw():
                piece = chunk[: end - start]
                while piece:
                    written = os.pwrite(file, piece, start)
                    piece, start = piece[written:], start + written
                    self.done[index] += written
                    self.report(written)
                if self.stop.is_set() or start == end:
                    return
        raise Busy("the answer ended early")

    def _arrived_before(self) -> list[int]:
        parts = max(1, min(CONNECTIONS, self.remote.size // SMALLEST_PART))
        nothing = [0] * parts
        try:
            journal = Journal.model_validate_json(self.journal.read_bytes())
        except (OSError, ValidationError):
            return nothing
        same = (journal.url, journal.size, journal.version) == (
            self.remote.url,
            self.remote.size,
            self.remote.version,
        )
        return journal.done if same and self.part.exists() and journal.done else nothing

    def _save(self, file: int) -> None:
        """Note what has arrived, after it has reached the disk."""
        done = list(self.done)
        os.fsync(file)
        remote = self.remote
        journal = Journal(url=remote.url, size=remote.size, version=remote.version, done=done)
        text = journal.model_dump_json()
        with suppress(UserError):  # a full disk: the note before this one still holds
            write_atomically(self.journal, lambda out: out.write(text.encode()))
