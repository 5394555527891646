"""The command `verify`: is a data set the one we mean, and a record what its run left?"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.errors import UserError
from benchmarks.record import write_atomically

if TYPE_CHECKING:
    from benchmarks.verify import Report, Summary


SHOWN = 10  # faults


def verify(
    card: Annotated[str, typer.Argument(help="A data set (`list datasets`), or a record.json.")],
    root: Annotated[Path, typer.Option(help="Data root: the folder of all data sets.")],
    split: Annotated[list[str], typer.Option(help="Default: all; repeatable.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=0, help="Processes that read.")] = 2,
    partial: Annotated[
        bool, typer.Option(help="Splits may be missing and hold any number of images.")
    ] = False,
    exclude: Annotated[
        list[str], typer.Option(help="Name of an image to leave out, or a .txt file of names.")
    ] = [],  # noqa: B006
    write_faults: Annotated[
        Path | None, typer.Option(help="Text file for all faults, which --exclude takes.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="JSON file for what was found.")] = None,
) -> None:
    """Read every file of the data set CARD below ROOT: is it complete, sound and the one we mean?

    The fingerprints are those of records. Exit code 2 if there are faults, which --write-faults
    lists; nothing else is written then.

    A record in place of CARD: what is kept beside it is scored again, and compared with it.
    """
    from benchmarks import verify as verification
    from benchmarks.data.cards import load_card
    from benchmarks.data.files import excluded

    if card.endswith(".json"):
        again = verification.verify_record(Path(card), root)
        print(f"{card}: scored again as its run did: {', '.join(again)}")
        return
    data_set = load_card(card)
    splits = tuple(dict.fromkeys(split or data_set.splits))
    try:
        for name in splits:
            data_set.split(name)
        names = excluded(exclude)
        report = verification.verify(data_set, root, splits, workers, partial, names)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; is this the data root?") from None
    pace = report.images / report.seconds
    print(f"{report.images} images in {report.seconds:.1f} s, {pace:.0f} images/s", file=sys.stderr)
    for fault in report.faults[:SHOWN]:
        print(f"fault: {fault}", file=sys.stderr)
    if write_faults:
        _write_faults(write_faults, report)
    if report.faults:
        count, shown = len(report.faults), min(len(report.faults), SHOWN)
        where = f"{write_faults} has all" if write_faults else "--write-faults FILE lists all"
        raise UserError(
            f"{card}: faults: {count}, shown above: {shown}, {where}; fix them and verify again"
        )
    print(_text(report))
    if write:
        _write(write, card, report)


def _text(report: "Report") -> str:
    """A line per split, then what else is worth knowing about each."""
    from tabulate import tabulate

    rows, notes = [], [f"{split}: left out: {why}" for split, why in report.absent.items()]
    for split, summary in report.splits.items():
        edition = summary.edition or "no known edition"
        rows.append((split, summary.images, edition, _sizes(summary), summary.fingerprint))
        notes += [f"{split}: {note}" for note in _notes(summary)]
    headers = ("split", "images", "edition", "size", "fingerprint")
    return "\n".join([tabulate(rows, headers, tablefmt="plain"), *notes])


def _sizes(summary: "Summary") -> str:
    first, *others = sorted(summary.sizes, key=summary.sizes.__getitem__, reverse=True)
    return f"{first}, {len(others)} others" if others else first


def _notes(summary: "Summary") -> Iterator[str]:
    if summary.listing:
        yield f"list {summary.listing}"
    if summary.counted == "boxes":
        parts = ", ".join(f"{name} {count}" for name, count in summary.classes.items())
        yield f"{sum(summary.classes.values())} boxes ({parts})"
    elif missing := [name for name, count in summary.classes.items() if not count]:
        yield f"no pixel of {', '.join(missing)}"
    if summary.empty:
        yield f"{summary.empty} images without {summary.counted} of any class"
    if summary.repaired:
        parts = ", ".join(f"{count} {what}" for what, count in sorted(summary.repaired.items()))
        yield f"boxes repaired in memory while reading: {parts}"


def _write_faults(file: Path, report: "Report") -> None:
    """Each fault as a remark, followed by the name of its image where it is one image's."""
    lines = [part for fault in report.faults for part in (f"# {fault}", report.names[fault])]
    text = "".join(f"{line}\n" for line in lines if line)
    write_atomically(file, lambda opened: opened.write(text.encode()))


def _write(file: Path, card: str, report: "Report") -> None:
    splits = {split: asdict(summary) for split, summary in report.splits.items()}
    text = json.dumps({"card": card, "splits": splits}, indent=1) + "\n"
    write_atomically(file, lambda opened: opened.write(text.encode()))
    print(file)
