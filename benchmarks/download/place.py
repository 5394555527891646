"""Moving what was unpacked to where the loaders look for it, and knowing later that it was."""

from __future__ import annotations

import filecmp
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ValidationError

from benchmarks.data.download_source import Archive
from benchmarks.errors import UserError
from benchmarks.record import write_atomically


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
        if target.exists() and not (target.is_file() and filecmp.cmp(file, target, shallow=False)):
            raise UserError(
                f"{target}: is there with other content than in {archive.name}; nothing was "
                "overwritten, move it away and run the same command again"
            )
    sizes = {target.relative_to(home).as_posix(): f.stat().st_size for target, f in moves.items()}
    try:
        for target, file in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}; mend that") from None
    text = Placed(files=sizes).model_dump_json(indent=0)
    write_atomically(note, lambda file: file.write(text.encode()))
    return len(moves)


def _wanted(inside: Path, archive: Archive) -> PurePosixPath | None:
    """Where a file of the archive belongs below `into`; None if it does not."""
    path = PurePosixPath(inside)
    if archive.strip and path.parts[0] == archive.strip:
        path = path.relative_to(archive.strip)
    if archive.only and not any(fnmatchcase(str(path), pattern) for pattern in archive.only):
        return None
    return path
