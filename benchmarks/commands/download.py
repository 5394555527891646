"""The command `download`."""

from __future__ import annotations

import shutil
from os.path import isdir, lexists
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.commands import arguments
from benchmarks.errors import UserError, closest

if TYPE_CHECKING:
    import httpx2

    from benchmarks.data.cards import Card
    from benchmarks.data.download_source import Source
    from benchmarks.download.job import Job, Step


def download(
    dataset: Annotated[str, typer.Option(help="Names, e.g. gtav,bdd100k.")] = "",
    root: Annotated[Path | None, typer.Option(help="The data root: all data sets.")] = None,
    via: Annotated[str, typer.Option(help="direct, hub, drive, ...; default: the first.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="Print what can be fetched.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print what would be fetched.")] = False,
) -> None:
    """Fetch data sets below a data root; goes on where it was cut off, overwrites nothing."""
    if list_:
        _print_list()
        return
    names = arguments.names(dataset)
    if not names or root is None:
        raise UserError("download what, and where? give --dataset NAMES --root DIR, or --list")
    # A name too long to be one makes every later look at it an error.
    long = max(map(len, root.parts), default=0) > 255 or len(str(root)) > 4000
    if not isdir(root) and (long or lexists(root) or not dry_run):
        raise UserError(f"{root}: no such folder; make it, or give another --root")
    from benchmarks.data.cards import load_card
    from benchmarks.download.job import Job
    from benchmarks.download.transfer import client

    jobs = [
        Job(card.name, _source(card, via), root / card.folder) for card in map(load_card, names)
    ]
    with client() as http:
        if dry_run:
            raise typer.Exit(_print_plans(jobs, http))
        plans = [(job, *job.plan(http)) for job in jobs]
        for _, _, problems in plans:
            if problems:
                raise problems[0]
        _check_room([(job, steps) for job, steps, _ in plans])
        for job, steps, _ in plans:
            job.run(http, steps)
            print(f"{job.name}: complete in {job.home}")


def _source(card: Card, via: str) -> Source:
    """The way to get a data set: the first one, or the one of kind `via`."""
    if not card.download:
        raise UserError(f"{card.name}: its card names nothing to download; access: {card.access}")
    ways = {source.kind: source for source in card.download}
    if via and via not in ways:
        raise UserError(f"--via {via}: {card.name} cannot be had so{closest(via, ways)}")
    return ways[via] if via else card.download[0]


def _print_list() -> None:
    from benchmarks.data.cards import load_card, names

    for card in map(load_card, names()):
        ways = ",".join(source.kind for source in card.download) or "-"
        print(f"{card.name:<20} {ways:<13} {card.title}")


def _print_plans(jobs: list[Job], http: httpx2.Client) -> int:
    """Print what would be fetched, as far as it is known without a network.

    Returns:
        The exit code: 1 where every connection failed.
    """
    from benchmarks.download.transfer import Unreachable

    unreached = asked = 0
    for job in jobs:
        steps, problems = job.plan(http, pauses=())
        failed = [problem for problem in problems if isinstance(problem, Unreachable)]
        for problem in [problem for problem in problems if problem not in failed] + failed[:1]:
            print(f"note: {problem}")
        if len(failed) > 1:
            print(f"note: {len(failed) - 1} more connections fail")
        _print_plan(job, steps)
        unreached += len(failed)
        if job.source.kind in ("direct", "hub"):
            asked += sum(not step.here for step in steps)
    return int(0 < asked == unreached)


def _print_plan(job: Job, steps: list[Step]) -> None:
    missing = {step.archive.name: step for step in steps}
    print(f"{job.name}: {job.source.kind} {job.source.url} -> {job.home}")
    if job.source.note:
        print(f"  {job.source.note}")
    for archive in job.archives():
        step = missing.get(archive.name)
        todo = "in place" if step is None else "unpack" if step.here else "fetch"
        print(f"  {archive.name:<44} {_size(step.bytes if step else archive.about):>12}  {todo}")
    needed, unknown = _needed(steps)
    more = f" and {unknown} of unknown size" if unknown else ""
    print(f"  needs {_size(needed)}{more}, free {_size(shutil.disk_usage(_existing(job)).free)}")


def _needed(steps: list[Step]) -> tuple[int, int]:
    """Bytes that unpacking takes, and how many archives of unknown size come on top.

    Pictures hardly shrink in an archive, so that its size is that of its files; of those that were
    fetched, the one that is unpacked at the moment lies there twice.
    """
    sizes = [step.bytes for step in steps if step.bytes is not None]
    beside = max((step.beside for step in steps), default=0)
    return sum(sizes) + beside, len(steps) - len(sizes)


def _check_room(plans: list[tuple[Job, list[Step]]]) -> None:
    """Compare what is needed on each disk with what is free there, before anything is fetched."""
    needed: dict[int, int] = {}
    for job, steps in plans:
        folder = _existing(job)
        device = folder.stat().st_dev
        needed[device] = needed.get(device, 0) + _needed(steps)[0]
        free = shutil.disk_usage(folder).free
        if needed[device] > free:
            raise UserError(
                f"{folder}: {job.name} needs {_size(needed[device])} with what comes before it, "
                f"free are {_size(free)}; make room or choose another --root"
            )


def _existing(job: Job) -> Path:
    """The folder of the data set, or the nearest one above it that is there."""
    return next(path for path in (job.home, *job.home.absolute().parents) if isdir(path))


def _size(count: int | None) -> str:
    return "size unknown" if count is None else f"{count / 1e9:,.3f} GB"
