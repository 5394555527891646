"""One data set on its way: what is missing, what it needs, and fetching it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import httpx2

from benchmarks.console import bytes_bar
from benchmarks.data.download_source import Archive, Source
from benchmarks.download import clients
from benchmarks.download.transfer import LIMIT, fetch, size_of
from benchmarks.download.unpack import SUFFIXES, Damaged, is_placed, place, unpack
from benchmarks.errors import UserError

WORK = ".download"  # below the data set's folder: what has arrived, notes of what is unpacked
CONNECTIONS = 4  # files that are fetched side by side, and lie there until they are unpacked


@dataclass(frozen=True)
class Step:
    """One archive of a job.

    Attributes:
        here: whether it lies in the data set's folder already.
        size: bytes as the server states them; None where it does not or was not asked.
    """

    archive: Archive
    here: bool
    size: int | None = None

    @property
    def bytes(self) -> int | None:
        """Its size, exact or about; None: unknown."""
        return self.size or self.archive.about

    @property
    def beside(self) -> int:
        """What the archive itself takes while its files are unpacked; a hub has loose files."""
        return 0 if self.here or self.archive.name == "hub" else self.bytes or 0


@dataclass(frozen=True)
class Job:
    """A data set, the source to take it from, and its folder."""

    name: str
    source: Source
    home: Path

    @property
    def work(self) -> Path:
        """Where everything lies that is not yet in its place."""
        return self.home / WORK

    def note(self, archive: Archive) -> Path:
        """The note that an archive is unpacked."""
        return self.work / f"{archive.name}.done.json"

    def archives(self) -> tuple[Archive, ...]:
        """What is fetched and put into place at once: a whole repository, or one archive."""
        if self.source.kind in ("hub", "drive"):
            sizes = [archive.about for archive in self.source.archives()]
            known = {"gigabytes": sum(sizes) / 1e9} if sizes and None not in sizes else {}
            return (Archive(name=self.source.kind, **known),)
        return self.source.archives()

    def missing(self) -> list[Step]:
        """The archives that are not unpacked yet."""
        return [
            Step(archive, (self.home / archive.name).is_file())
            for archive in self.archives()
            if not is_placed(self.home, self.note(archive))
        ]

    def plan(
        self, http: httpx2.Client, pauses: tuple[float, ...] | None = None
    ) -> tuple[list[Step], list[UserError]]:
        """What is missing, with sizes as far as they are known, and what stands in the way.

        That is: a client is missing, a server refuses or has another size, people have to fetch a
        file themselves.
        """
        steps = self.missing()
        if all(step.here for step in steps):
            return steps, []
        try:
            self._check_access([step.archive.name for step in steps if not step.here])
            if self.source.kind == "hub":
                return [Step(steps[0].archive, False, clients.hub_bytes(self.source))], []
        except UserError as error:
            return steps, [error]
        if self.source.kind != "direct":
            return steps, []
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = list(pool.map(lambda step: self._ask(step, http, pauses), steps))
        return [step for step, _ in answers], [error for _, error in answers if error]

    def _check_access(self, absent: list[str]) -> None:
        if self.source.kind == "login":
            note = f" ({self.source.note})" if self.source.note else ""
            raise UserError(
                f"{self.name}: fetch {', '.join(absent)} from {self.source.url} with an account of "
                f"your own{note}, put them into {self.home} and run the same command again"
            )
        clients.check_installed(self.source)

    def _ask(
        self, step: Step, http: httpx2.Client, pauses: tuple[float, ...] | None
    ) -> tuple[Step, UserError | None]:
        if step.here:
            return step, None
        url, published = self.source.url + step.archive.name, step.archive.bytes
        try:
            size = size_of(http, url, pauses)
            if None not in (published, size) and published != size:
                raise UserError(
                    f"{url}: has {size} bytes, the card says {published}; the file on the server "
                    "changed"
                )
        except UserError as error:
            return step, error
        return Step(step.archive, False, size), None

    def run(self, http: httpx2.Client, steps: list[Step]) -> None:
        """Fetch, check, unpack and put into place what is missing.

        Raises:
            UserError: anything that the user has to fix; what has arrived is kept.
        """
        with self._lock():
            # Looked again under the lock: another process may have unpacked since the plan was
            # made.
            left = {step.archive.name for step in self.missing()}
            steps = [step for step in steps if step.archive.name in left]
            if self.source.kind == "cityscapes":
                self._fetch_packages(steps)
            for first in range(0, len(steps), CONNECTIONS):
                batch = steps[first : first + CONNECTIONS]
                if self.source.kind == "direct":
                    self._fetch_files(http, [step for step in batch if not step.here])
                for step in batch:
                    self._unpack_step(step)

    def _unpack_step(self, step: Step) -> None:
        archive, unpacked = step.archive, self.work / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        try:
            if self.source.kind in ("hub", "drive"):
                fetched = self._fetch_repository(unpacked)
            else:
                fetched = (self.home if step.here else self.work) / archive.name
                _verify(fetched, archive)
                self._unpack(fetched, unpacked)
            files = place(unpacked, self.home, archive, self.note(archive))
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        if fetched.parent == self.work:  # an archive that people put there stays
            shutil.rmtree(fetched) if fetched.is_dir() else fetched.unlink()
        _say(f"{self.name}: {archive.name}: {files} files are in place in {self.home}")

    def _unpack(self, archive: Path, folder: Path) -> None:
        # Pictures hardly shrink in an archive: its size is near the number of bytes written.
        with bytes_bar(f"unpacking {archive.name}", archive.stat().st_size) as report:
            try:
                unpack(archive, folder, report)
            except Damaged as error:
                if archive.parent == self.home:
                    raise
                archive.unlink()  # or every further run would take the same bytes again
                raise UserError(
                    f"{error} (it is removed: run the same command again to fetch it)"
                ) from None

    def _fetch_files(self, http: httpx2.Client, steps: list[Step]) -> None:
        """Fetch files side by side; the first one that fails stops the others."""
        steps = [step for step in steps if not (self.work / step.archive.name).exists()]
        if not steps:
            return
        names = ", ".join(step.archive.name for step in steps)
        _say(f"{self.name}: fetching {names} from {self.source.url}")
        stop = threading.Event()
        sizes = [step.bytes for step in steps]
        with (
            bytes_bar(names, None if None in sizes else sum(sizes)) as advance,
            ThreadPoolExecutor(len(steps)) as pool,
        ):

            def report(count: int) -> None:
                if stop.is_set():
                    # The only way to stop a thread is from inside; `fetch` keeps what has arrived.
                    raise InterruptedError(errno.EINTR, "another file failed")
                advance(count)

            def fetch_one(step: Step) -> None:
                # Cards state such sizes roughly; beyond twice as much it is another file.
                limit = 2 * step.archive.about if step.archive.about else LIMIT
                name = step.archive.name
                fetch(http, self.source.url + name, self.work / name, report, limit)

            try:
                running = [pool.submit(fetch_one, step) for step in steps]
                for future in as_completed(running):
                    future.result()
            finally:
                stop.set()  # Ctrl-C as well: the pool waits for its threads

    def _fetch_packages(self, steps: list[Step]) -> None:
        """Have csDownload fetch all packages at once, so that it asks for the account once."""
        arriving = self.work / "csdownload"
        arriving.mkdir(exist_ok=True)
        absent = [step.archive.name for step in steps if not step.here]
        absent = [name for name in absent if not (self.work / name).exists()]
        # csDownload cannot go on with a package that is whole already.
        if begun := [name for name in absent if not zipfile.is_zipfile(arriving / name)]:
            clients.from_cityscapes(begun, arriving)
        for name in absent:
            (arriving / name).replace(self.work / name)

    def _fetch_repository(self, unpacked: Path) -> Path:
        """Fetch everything of a hub or a drive, unpack its archives; the folder it arrived in."""
        arriving = self.work / self.source.kind
        arriving.mkdir(exist_ok=True)
        _say(f"{self.name}: fetching {self.source.url}")
        take = clients.from_hub if self.source.kind == "hub" else clients.from_drive
        take(self.source, arriving)
        for file in sorted(arriving.rglob("*")):
            inside = file.relative_to(arriving)
            if not file.is_file() or inside.parts[0].startswith("."):  # notes of the client
                continue
            if file.name.lower().endswith(SUFFIXES):
                self._unpack(file, unpacked)
            else:
                (unpacked / inside.parent).mkdir(parents=True, exist_ok=True)
                file.replace(unpacked / inside)
        return arriving

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time fetches into a folder; the other one is told which it is."""
        holder = self.work / "holder"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.work / "lock", timeout=0):
                holder.write_text(f"process {os.getpid()} on {os.uname().nodename}")
                yield
                holder.unlink()
        except filelock.Timeout:
            who = holder.read_text() if holder.exists() else "another process"
            raise UserError(f"{self.home}: {who} fetches into it now; wait for it") from None
        except OSError as error:
            where = error.filename or self.work
            raise UserError(f"{where}: {error.strerror or error}; fix that and run again") from None


def _verify(file: Path, archive: Archive) -> None:
    """Compare size and digests with what is published.

    Raises:
        UserError: they differ; a file that was fetched is removed, it is of no use.
    """
    actual = {"bytes": file.stat().st_size}
    for kind in ("md5", "sha256"):
        if getattr(archive, kind):
            with file.open("rb") as opened:
                actual[kind] = hashlib.file_digest(opened, kind).hexdigest()
    for kind, value in actual.items():
        wanted = getattr(archive, kind)
        if wanted not in (None, value):
            if file.parent.name == WORK:
                file.unlink()
            raise UserError(
                f"{file}: {kind} is {value}, published is {wanted}; it was not unpacked, "
                "fetch it again"
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
