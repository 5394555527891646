"""Unpacking archives that somebody else made, and moving their files to where loaders look."""

from __future__ import annotations

import filecmp
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import BaseModel, ValidationError

from benchmarks.data.download_source import Archive
from benchmarks.errors import UserError
from benchmarks.record import write_atomically

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar")
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python's zipfile does not know
)
# What lists the names in a rar, and what unpacks it into the working directory. None is asked for
# a password, none overwrites.
RAR_TOOLS = {
    "unrar": (["unrar", "lb", "-p-"], ["unrar", "x", "-p-", "-o-", "-idq"]),
    "unar": (["lsar"], ["unar", "-quiet", "-no-directory", "-force-skip"]),
    "bsdtar": (["bsdtar", "-tf"], ["bsdtar", "-k", "-xf"]),
}


class Damaged(UserError):
    """No archive, or not all of it: another copy may do."""


def unpack(archive: Path, folder: Path, report: Callable[[int], object]) -> None:
    """Unpack a zip, tar or rar into `folder`, which is empty; `report` hears of bytes written.

    Nothing is written before all names are checked. Links, devices, encrypted files, files that
    are there twice and paths out of the folder are refused, and so is what has no room. Of a rar
    only the names are known before: its tool guards against links, what it wrote is checked after.

    Raises:
        Damaged: it is cut off, damaged or no archive.
        UserError: it is hostile, nothing here opens it, or the disk is full.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, report)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder, report)
        elif _begins(archive, b"Rar!"):
            _unpack_rar(archive, folder)
        else:
            page = "; it is a web page" if _begins(archive, b"<") else ""
            raise Damaged(f"{archive}: no zip, tar or rar{page}; fetch it again")
    except DAMAGED as error:
        raise Damaged(f"{archive}: damaged ({error}); remove it and fetch it again") from None
    except OSError as error:
        why = error.strerror or f"damaged ({error})"
        raise UserError(f"{archive}: cannot be unpacked: {why}; fix that and run again") from None


def _begins(file: Path, start: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).lstrip().startswith(start)


def _unpack_zip(archive: Path, folder: Path, report: Callable[[int], object]) -> None:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        for info in infos:
            mode = stat.S_IFMT(info.external_attr >> 16)
            # 0: archivers of other systems note no kind of file.
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename, "is a link or a device")
            if info.flag_bits & 1:
                raise _refused(archive, info.filename, "is encrypted")
        paths = [(_inside(archive, info.filename), info) for info in infos]
        files = [(path, info) for path, info in paths if not info.is_dir()]
        _check(archive, [(path, info.file_size) for path, info in files], folder)
        for path, info in files:
            info.filename = str(path)
            opened.extract(info, folder)
            report(info.file_size)


def _unpack_tar(archive: Path, folder: Path, report: Callable[[int], object]) -> None:
    with tarfile.open(archive) as opened:
        infos = opened.getmembers()
        for info in infos:
            if not (info.isreg() or info.isdir()):
                raise _refused(archive, info.name, "is a link or a device")
            info.name = str(_inside(archive, info.name))
        files = [info for info in infos if info.isreg()]
        _check(archive, [(PurePosixPath(info.name), info.size) for info in files], folder)
        for info in files:
            opened.extract(info, folder, filter="data")
            report(info.size)


def _inside(archive: Path, name: str) -> PurePosixPath:
    """The relative path that a name in an archive stands for; some archivers write backslashes."""
    if not name.isprintable():  # nor are bytes that are no UTF-8
        raise _refused(archive, name, "is an unprintable name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise _refused(archive, name, "would be written outside the folder")
    return path


def _refused(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"{archive}: {name!r} {why}; nothing was unpacked, get a clean archive")


def _check(archive: Path, sizes: list[tuple[PurePosixPath, int]], folder: Path) -> None:
    """See that the names of files do not collide, and that there is room for them."""
    files: set[PurePosixPath] = set()
    for path, _ in sizes:
        if path in files:
            raise _refused(archive, str(path), "is there twice")
        files.add(path)
    for path in files:
        if not files.isdisjoint(path.parents):
            raise _refused(archive, str(path), "lies in a file")
    needed, free = sum(size for _, size in sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{archive}: holds {needed / 1e9:.1f} GB, {folder} has room for {free / 1e9:.1f} GB; "
            "nothing was unpacked, make room"
        )


def _unpack_rar(archive: Path, folder: Path) -> None:
    tool = next((tool for tool in RAR_TOOLS if shutil.which(tool)), None)
    if tool is None:
        raise UserError(
            f"{archive}: nothing here opens rar archives; install one of {', '.join(RAR_TOOLS)} "
            "and run the same command again"
        )
    listing, extracting = RAR_TOOLS[tool]
    names = _output(archive, [*listing, str(archive.resolve())], folder)
    for name in names.splitlines()[tool == "unar" :]:  # lsar's first line names the archive
        _inside(archive, name)
    _output(archive, [*extracting, str(archive.resolve())], folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _inside(archive, name)
            mode = (Path(parent) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _refused(archive, name, "is a link or a device")


def _output(archive: Path, command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        # On a full disk another copy would do no better.
        full = shutil.disk_usage(folder).free < archive.stat().st_size
        raise (UserError if full else Damaged)(
            f"{archive}: {command[0]} ends with code {done.returncode}"
            f"{': ' + words[-1] if words else ''}; fetch the archive again, or try another tool"
        )
    return done.stdout.decode(errors="replace")


class Placed(BaseModel):
    """The note that an archive is unpacked: relative path -> bytes of each of its files."""

    files: dict[str, int]


def is_placed(home: Path, note: Path) -> bool:
    """Whether everything that the note lists still lies in the data set's folder."""
    try:
        files = Placed.model_validate_json(note.read_bytes()).files
        return all((home / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValidationError):
        return False


def place(unpacked: Path, home: Path, archive: Archive, note: Path) -> int:
    """Move the files that belong to the data set below `home`; the note is written last.

    A file that is there already stays, if it is the same.

    Returns:
        Their number.

    Raises:
        UserError: a file of other content is there (nothing was moved then), or no file belongs to
            the data set.
    """
    moves = {
        home / archive.into / path: file
        for file in sorted(unpacked.rglob("*"))
        if file.is_file() and (path := _wanted(file.relative_to(unpacked), archive)) is not None
    }
    if not moves:
        wanted = ", ".join(archive.only) or "files"
        raise UserError(f"{archive.name}: holds no {wanted}; is it the right archive?")
    for target, file in moves.items():
        # A planted note would pass another archive off as unpacked.
        if target.relative_to(home).parts[0].casefold() == note.parent.name:
            raise UserError(
                f"{archive.name}: holds {target.relative_to(home)}, a note of the "
                "download; nothing was moved, get a clean archive"
            )
        if target.parent == home and target.name.lower().endswith(SUFFIXES):
            raise UserError(
                f"{archive.name}: holds {target.name}, which would pass for an archive that was "
                "put there by hand; nothing was moved, get a clean archive"
            )
        if target.exists() and not (target.is_file() and filecmp.cmp(file, target, shallow=False)):
            raise UserError(
                f"{target}: is there with other content than in {archive.name}; nothing was "
                "overwritten, move it away and run the same command again"
            )
    sizes = {target.relative_to(home).as_posix(): f.stat().st_size for target, f in moves.items()}
    try:
        for target, file in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            # What is unpacked lies below `home`: a rename, which copies nothing and is never half
            # done.
            file.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}; make room") from None
    text = Placed(files=sizes).model_dump_json(indent=0)
    write_atomically(note, lambda file: file.write(text.encode()))
    return len(moves)


def _wanted(inside: Path, archive: Archive) -> PurePosixPath | None:
    """Where a file of the archive belongs below `into`; None if it does not."""
    path = PurePosixPath(inside)
    if "__MACOSX" in path.parts or path.name.startswith("._"):  # what macOS knows of other files
        return None
    if archive.strip and path.parts[0] == archive.strip:
        path = path.relative_to(archive.strip)
    if archive.only and not any(fnmatchcase(str(path), pattern) for pattern in archive.only):
        return None
    return path
