"""Records as tables read them: all below a folder, none twice, none that was edited."""

import itertools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.errors import UserError
from benchmarks.record import Imported, Record, Score, write_atomically
from benchmarks.segmentation.metrics import summary
from benchmarks.tasks import PROTOCOLS
from benchmarks.yaml_files import differences


def load_records(folder: Path, protocol: str, mode: str, engine: str = "") -> list[Record]:
    """The records that `read_records` reads below one folder."""
    return list(read_records([folder], protocol, mode, engine).values())


def read_records(
    folders: Sequence[Path], protocol: str, mode: str, engine: str = ""
) -> dict[Path, Record]:
    """Path -> record: all of a protocol in one recipe mode below `folders`, in order of the paths.

    With `engine`, those alone that were made with it. A cell that several folders hold with the
    same result counts once, in the first of them.

    Raises:
        UserError: one of them is unreadable, was edited, or is a copy that lies where another
            record belongs, or two folders hold different records of one cell; a table never leaves
            a record out silently, and counts none twice.
    """
    held: dict[Path, tuple[Path, Record]] = {}  # where a record belongs -> where it lies, record
    for folder in folders:
        # In order of the names: that of a folder depends on the file system, and with it the table.
        for path in sorted((folder / protocol).glob("*/*/seed*.json")):
            record = _read(path, folder, Record)
            if record.recipe != mode or engine not in ("", record.cell.get("engine")):
                continue
            first, known = held.setdefault(record.path, (path, record))
            # Copies of one result may lie in several folders; two results of one cell have no
            # order.
            if _result(known) != _result(record):
                raise UserError(
                    f"{path}: another record of the same row and seed than {first}; a table takes "
                    "one of them: leave a folder out, or move one of the two away"
                )
    return {path: record for _, (path, record) in sorted(held.items())}


def read_imported(folders: Sequence[Path], protocol: str) -> dict[Path, Imported]:
    """Path -> what `import` made under a protocol below `folders`, each file of weights once.

    Raises:
        UserError: one of them is unreadable, was edited, or lies where another belongs.
    """
    held: dict[Path, tuple[Path, Imported]] = {}
    for folder in folders:
        for path in sorted((folder / protocol / "imported").glob("*/*.json")):
            record = _read(path, folder, Imported)
            held.setdefault(record.path, (path, record))
    return dict(held.values())


Kept = TypeVar("Kept", Record, Imported)


def _read(path: Path, folder: Path, kind: type[Kept]) -> Kept:
    record = kind.load(path)
    if (belongs := folder / record.path) != path:
        raise UserError(
            f"{path}: holds a record that belongs at {belongs}, a copy perhaps, and counts for "
            f"nothing here; move it out of {folder}"
        )
    try:
        record.check()
        check_scores(record, path)
    except ValueError as error:
        raise UserError(
            f"{path}: not as its run left it: {error}; delete it and {kind.again}"
        ) from None
    return record


def _result(record: Record) -> tuple[Any, ...]:
    """What two runs of one cell share: all but time, place and memory."""
    return record.digest, record.status, record.reason, record.evaluations


# What a run needs while it lasts: elsewhere it would pass for a run that is under way.
_PASSING = (".lock", ".job", ".progress", ".checkpoint", ".checkpoint.previous", ".checkpoint.new")


def collect(folders: Sequence[Path], out: Path) -> tuple[int, int]:
    """Copy the records of several folders, with what lies beside them, into one.

    Of one cell the first record counts, or the first that is done.

    Returns:
        How many records were copied, and how many were there before.

    Raises:
        UserError: nothing to copy, an unsound record, or two records of other digests at one path;
            then nothing is copied.
    """
    chosen: dict[Path, tuple[Path, Record | Imported]] = {}
    kinds = ("*/*/*/seed*.json", Record), ("*/imported/*/*.json", Imported)
    # `out` comes first: what lies there stays, and all others are held against it.
    for folder, (pattern, kind) in itertools.product((out, *folders), kinds):
        for path in sorted(folder.glob(pattern)):
            record = _read(path, folder, kind)
            first, known = chosen.setdefault(record.path, (path, record))
            if known.digest != record.digest:
                raise UserError(
                    f"{path}: of another cell than {first}, they differ in "
                    f"{differences(known.cell, record.cell) or 'their digests'}; keep them in "
                    "folders of their own"
                )
            # One machine's failure does not outlive another's result.
            if isinstance(record, Record) and (record.status, known.status) == ("done", "failed"):
                chosen[record.path] = (path, record)
    if not chosen:
        raise UserError(f"{', '.join(map(str, folders))}: no records")
    # Only now: everything was read and compared before the first file is written.
    new = {to: path for to, (path, _) in chosen.items() if path != out / to}
    for to, path in new.items():
        beside = [file for file in path.parent.glob(f"{path.stem}.*") if file != path]
        kept = [file for file in sorted(beside) if not file.name.endswith(_PASSING)]
        # The record last: where it is, what belongs to it is there too.
        for file in (*kept, path):
            content = file.read_bytes()
            write_atomically(
                (out / to).with_name(file.name), lambda into, content=content: into.write(content)
            )
    return len(new), len(chosen) - len(new)


def check_scores(record: Record | Imported, path: Path) -> None:
    """Refuse scores that are not those of the record's cell, or of the arrays kept beside it.

    Args:
        record: whose cell and digest agree.
        path: of the record. Confusion matrices beside it are summed and scored again.

    Raises:
        ValueError: another domain or role than the cell's, another number of images, another score.
    """
    protocol = record.cell["protocol"]
    try:
        roles = PROTOCOLS[protocol["task"]].roles.items()
        scored = {d["domain"]: role for role, field in roles for d in protocol.get(field, ())}
    except (KeyError, TypeError) as error:
        raise ValueError(f"its cell does not say what is scored ({error!r})") from error
    for evaluation in record.evaluations:
        own = {name: score.role for name, score in evaluation.domains.items()}
        if odd := differences(own, scored):
            raise ValueError(
                f"iteration {evaluation.iteration} scores other domains than its cell: {odd}"
            )
    arrays = path.with_suffix(".npz")
    done = isinstance(record, Imported) or record.status == "done"
    if not (done and arrays.is_file()):
        return
    try:
        with np.load(arrays) as held:
            matrices = {name: held[name] for name in held if name in scored}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{arrays.name} beside it cannot be read ({_why(error)})") from error
    # The arrays are those of the last evaluation, which replaced the ones before.
    last = max(record.evaluations, key=lambda evaluation: evaluation.iteration)
    for name, matrix in matrices.items():
        score = last.domains[name]
        if score.images != len(matrix):
            raise ValueError(f"{name}: {score.images} images, {arrays.name} has {len(matrix)}")
        check_metrics(name, score, summary(matrix.sum(0)), f"the matrices in {arrays.name}")


def _why(error: Exception) -> str:
    """In words of its own where NumPy would advise to unpickle what a file holds."""
    return "it is no .npz" if isinstance(error, ValueError) else str(error)


def check_metrics(name: str, score: Score, again: Mapping[str, Any], where: str) -> None:
    """Refuse a score of the domain `name` that is not what scoring `where` again gives.

    Raises:
        ValueError: a metric differs.
    """
    for metric, value in again.items():
        # Not to the bit: another version of numpy may add up in another order.
        if not np.allclose(_numbers(value), _numbers(score.metrics.get(metric)), equal_nan=True):
            raise ValueError(f"{name}: {metric} is not that of {where}")


def _numbers(value: float | list[float | None] | None) -> np.ndarray:
    return np.asarray(value, dtype=float).reshape(-1)
