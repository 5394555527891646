"""One data set on its way: what is missing, what it needs, and fetching it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import httpx2

from benchmarks.console import bytes_bar
from benchmarks.data.download_source import Archive, Source
from benchmarks.download import clients
from benchmarks.download.place import is_placed, place
from benchmarks.download.remote import Remote, probe
from benchmarks.download.transfer import Report, fetch
from benchmarks.download.unpack import SUFFIXES, unpack
from benchmarks.errors import UserError

WORK = ".download"  # below the data set's folder: what has arrived, notes of what is unpacked


@dataclass(frozen=True)
class Step:
    """One archive of a job.

    Attributes:
        here: whether it lies in the data set's folder already.
        remote: known where a web server was asked.
    """

    archive: Archive
    here: bool
    remote: Remote | None = None

    @property
    def bytes(self) -> int | None:
        """Its size, exact or about; None: unknown."""
        return (self.remote and self.remote.size) or self.archive.about

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
            return (Archive(name=self.source.kind),)
        return self.source.archives()

    def missing(self) -> list[Step]:
        """The archives that are not unpacked yet."""
        return [
            Step(archive, (self.home / archive.name).is_file())
            for archive in self.archives()
            if not is_placed(self.home, self.note(archive))
        ]

    def prepared(self, http: httpx2.Client, pauses: tuple[float, ...] | None = None) -> list[Step]:
        """What is missing, after a look at whether it can be had.

        Raises:
            UserError: a client is missing, a server refuses or has another size, people have to
                fetch a file themselves.
        """
        steps = self.missing()
        absent = [step.archive.name for step in steps if not step.here]
        if not absent:
            return steps
        if self.source.kind == "login":
            note = f" ({self.source.note})" if self.source.note else ""
            raise UserError(
                f"{self.name}: fetch {', '.join(absent)} from {self.source.url} with an account of "
                f"your own{note}, put them into {self.home} and run the same command again"
            )
        clients.check_installed(self.source)
        if self.source.kind == "hub":
            size = {"bytes": clients.hub_bytes(self.source)}
            return [Step(step.archive.model_copy(update=size), False) for step in steps]
        if self.source.kind == "direct":
            return [step if step.here else self._asked(step, http, pauses) for step in steps]
        return steps

    def _asked(self, step: Step, http: httpx2.Client, pauses: tuple[float, ...] | None) -> Step:
        archive = step.archive
        remote = probe(http, self.source.url + archive.name, pauses)
        if None not in (archive.bytes, remote.size) and archive.bytes != remote.size:
            raise UserError(
                f"{remote.url}: has {remote.size} bytes, the card says {archive.bytes}; the file "
                "on the server changed"
            )
        return Step(archive, False, remote)

    def run(self, http: httpx2.Client, steps: list[Step]) -> None:
        """Fetch, check, unpack and put into place what is missing, one archive after the other.

        Raises:
            UserError: anything that the user has to mend; what has arrived is kept.
        """
        with self._lock():
            left = {step.archive.name for step in self.missing()}
            steps = [step for step in steps if step.archive.name in left]
            if self.source.kind == "cityscapes":
                self._fetch_packages(steps)
            for step in steps:
                self._run_step(http, step)

    def _run_step(self, http: httpx2.Client, step: Step) -> None:
        archive, unpacked = step.archive, self.work / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        try:
            if self.source.kind in ("hub", "drive"):
                fetched = self._fetch_repository(unpacked)
            else:
                fetched = (self.home if step.here else self.work) / archive.name
                if step.remote and not fetched.exists():
                    self._fetch_file(http, step, fetched)
                _verify(fetched, archive)
                with _unpacking(fetched) as report:
                    unpack(fetched, unpacked, report)
            files = place(unpacked, self.home, archive, self.note(archive))
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        if fetched.parent == self.work:  # an archive that people put there stays
            shutil.rmtree(fetched) if fetched.is_dir() else fetched.unlink()
        _say(f"{self.name}: {archive.name}: {files} files are in place in {self.home}")

    def _fetch_file(self, http: httpx2.Client, step: Step, target: Path) -> None:
        _say(f"{self.name}: fetching {step.remote.url}")
        with bytes_bar(step.archive.name, step.remote.size) as report:
            fetch(http, step.remote, target, report)

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
                with _unpacking(file) as report:
                    unpack(file, unpacked, report)
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
            raise UserError(
                f"{where}: {error.strerror or error}; mend that and run again"
            ) from None


def _verify(file: Path, archive: Archive) -> None:
    """Compare size and digests with what is published.

    Raises:
        UserError: they differ; a file that was fetched is removed, it is of no use.
    """
    found = {"bytes": file.stat().st_size}
    for kind in ("md5", "sha256"):
        if getattr(archive, kind):
            with file.open("rb") as opened:
                found[kind] = hashlib.file_digest(opened, kind).hexdigest()
    for kind, value in found.items():
        wanted = getattr(archive, kind)
        if wanted not in (None, value):
            if file.parent.name == WORK:
                file.unlink()
            raise UserError(
                f"{file}: {kind} is {value}, published is {wanted}; it was not unpacked, "
                "fetch it again"
            )


def _unpacking(archive: Path) -> AbstractContextManager[Report]:
    """A bar for the bytes written; pictures hardly shrink in an archive, so its size is near."""
    return bytes_bar(f"unpacking {archive.name}", archive.stat().st_size)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
