"""A submitted method: one file and its records, and what is checked before its row is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cell import Cell, make_cell
from benchmarks.environment import REPOSITORY, knows_commit
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record
from benchmarks.report import compare
from benchmarks.report import spec as specs
from benchmarks.report.records import load_records, read_records
from benchmarks.report.spec import TableSpec
from benchmarks.report.table import Request, Table, build, check_alike
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import differences

RECORDS = "records"  # folder of a submission
# What `tune` chooses, and the one key of a recipe that a submission may change.
RATE = "backbone_lr"


@dataclass(frozen=True)
class Submission:
    """What lies in the folder of a submission.

    Attributes:
        method: `path/to/file.py:Class`.
        records: path -> record, of one protocol, recipe mode and label.
    """

    method: str
    records: dict[Path, Record]

    @property
    def first(self) -> Record:
        """One of the records."""
        return next(iter(self.records.values()))

    @property
    def protocol(self) -> Protocol:
        """That of the records as it is here."""
        return load_protocol(self.first.protocol)


def read(folder: Path) -> Submission:
    """The submission in a folder: one .py file, and records below `records/` as runs leave them.

    Schema, digest, place and scores of every record are checked as tables check them.

    Raises:
        UserError: something is missing, edited or in the wrong place, or there are several
            protocols, recipe modes, methods or rows.
    """
    files = sorted(folder.glob("*.py"))
    if len(files) != 1:
        raise UserError(
            f"{folder}: {len(files)} .py files; a submission has one, the method's "
            "(docs/submit.md says what else)"
        )
    paths = sorted((folder / RECORDS).glob("*/*/*/seed*.json"))
    if not paths:
        raise UserError(
            f"{folder / RECORDS}: no records; copy PROTOCOL/PLACEMENT/METHOD/seedN.json from "
            "results/runs, with what lies beside them"
        )
    protocols = {path.parts[-4] for path in paths}
    modes = {Record.load(path).recipe for path in paths}
    if len(protocols) > 1 or len(modes) > 1:
        raise UserError(
            f"{folder / RECORDS}: protocols {', '.join(sorted(protocols))}, recipe modes "
            f"{', '.join(sorted(modes))}; submit one of each at a time"
        )
    records = read_records([folder / RECORDS], *protocols, *modes)
    if len(labels := {record.label for record in records.values()}) > 1:
        raise UserError(f"{folder / RECORDS}: rows {', '.join(sorted(labels))}; submit one")
    name = next(iter(records.values())).cell["method"]["name"]
    return Submission(f"{files[0]}:{name}", records)


def check(submission: Submission, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """What is wrong with a submission: property and reason; [] where nothing is.

    Args:
        submission: as `read` gives it.
        say: takes a line for each property that is checked.
    """
    faults: list[tuple[str, str]] = []
    for name, words, reasons in _properties(submission, say):
        bad = list(reasons)
        say(f"{'FAIL' if bad else 'pass'}  {name}: {'; '.join(bad) or words}")
        faults += [(name, reason) for reason in bad]
    return faults


def _properties(
    submission: Submission, say: Callable[[str], None]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Name, what holds, and what does not, one property after the other."""
    count = len(submission.records)
    yield "records", f"{count} of schema 1, with digest and scores as their runs left them", ()
    protocol, first = submission.protocol, submission.first
    version = f"{protocol.name} version {protocol.version}"
    yield "protocol", version, _of_protocol(submission)
    yield ("recipe", *_recipe(submission))
    yield (
        "cells",
        "each is the one that this checkout makes of the method's file",
        _cells(submission),
    )
    yield "commit", f"{(first.environment.commit or '')[:12]}, clean", _commits(submission)
    yield "seeds", ", ".join(map(str, protocol.seeds)), _seeds(submission)
    try:
        bad = compare.nonconforming(_cell(submission, first), say)
        failed = [f"{bad} properties fail"] if bad else []
    except UserError as error:
        failed = [str(error)]
    yield "conformance", "every property holds", failed


def _of_protocol(submission: Submission) -> list[str]:
    try:
        check_alike([*submission.records.values()], submission.protocol)
    except UserError as error:
        return [str(error)]
    return []


def _recipe(submission: Submission) -> tuple[str, list[str]]:
    """What the recipe is, and what of it a submission must not change."""
    first = submission.first
    try:
        here = _cell(submission, first).resolved["recipe"]
    except UserError as error:
        return "", [str(error)]
    made = [record.cell["recipe"] for record in submission.records.values()]
    # Rates of the other modes come from what is published, or from trials.
    free = {RATE} if first.recipe == "controlled" else set()
    for recipe in made:
        if odd := differences(recipe, here | {key: recipe[key] for key in free & recipe.keys()}):
            return "", [
                f"other {odd} than the protocol's; of a recipe {RATE} alone may be another, and "
                "only of the recipe mode controlled"
            ]
    rates = sorted({recipe[RATE] for recipe in made})
    if len(rates) > 1:
        several = ", ".join(map(str, rates))
        return "", [f"several values of {RATE}: {several}; submit the runs of one"]
    if rates[0] == here[RATE]:
        return f"the protocol's, {RATE} {here[RATE]}", []
    return f"the protocol's with {RATE} {rates[0]} in the place of {here[RATE]}", []


def _cell(submission: Submission, record: Record) -> Cell:
    """The cell that this checkout makes of the method's file for the seed of a record.

    It has the protocol's recipe.
    """
    settings = {"seed": record.seed, "placement": record.placement, "mode": record.recipe}
    plain = make_cell(submission.protocol, submission.method, data=record.data, **settings)
    defaults, given = plain.resolved["method"]["fields"], record.cell["method"]["fields"]
    placed = ("start_block", "end_block")  # the placement's
    # Fields that were set with --set: they are part of the row, and the file does not show them.
    own = {k: v for k, v in given.items() if k not in placed and v != defaults.get(k)}
    if not own:
        return plain
    changes = {"method": own}
    return make_cell(
        submission.protocol, submission.method, data=record.data, changes=changes, **settings
    )


def _cells(submission: Submission) -> list[str]:
    reasons = []
    for path, record in submission.records.items():
        try:
            here = json.loads(json.dumps(_cell(submission, record).resolved))
        except UserError as error:
            reasons.append(f"{path.name}: {error}")
            continue
        # Another engine is no fault of the submission; the table refuses to mix them.
        recorded = {
            key: value for key, value in record.cell.items() if key not in ("engine", "recipe")
        }
        here.pop("engine", None)
        # `_recipe` says what may differ there.
        here.pop("recipe")
        if here != recorded:
            odd = differences(recorded, here)
            reasons.append(f"{path.name}: other {odd} than this checkout and the method's file")
    return reasons


def _commits(submission: Submission) -> list[str]:
    reasons = []
    for path, record in submission.records.items():
        commit = record.environment.commit
        # Not `if dirty`: where nobody knows, it is not known to be clean.
        if commit is None or record.environment.dirty is not False:
            reasons.append(f"{path.name}: not made from a clean commit; commit, and run again")
        elif not knows_commit(REPOSITORY, commit):
            reasons.append(f"{path.name}: commit {commit[:12]} is not in this checkout; fetch it")
    return reasons


def _seeds(submission: Submission) -> list[str]:
    reasons = []
    for placement in sorted({record.placement for record in submission.records.values()}):
        own = [r for r in submission.records.values() if r.placement == placement]
        done = {record.seed for record in own if record.status == "done"}
        missing = [seed for seed in submission.protocol.seeds if seed not in done]
        reasons += [f"{placement}: seed {seed} is missing or failed" for seed in missing]
    return reasons


def table_of(submission: Submission, table: str, reference: Path) -> Table:
    """The table with the submitted row among the committed ones.

    Args:
        submission: without faults.
        table: its name; "" for the first one of methods that has the protocol.
        reference: folder of the committed records.

    Raises:
        UserError: no table has the protocol, or the row cannot stand beside the committed ones.
    """
    protocol, first = submission.protocol, submission.first
    spec = specs.load_table(table) if table else _table_with(protocol)
    fixed = load_records(reference, protocol.name, first.recipe, first.cell.get("engine", ""))
    mine = [*submission.records.values()]
    places = tuple(dict.fromkeys(record.placement for record in mine))
    request = Request(mode=first.recipe, placements=places)
    return build(spec, protocol, [*fixed, *mine], specs.published(spec.published), request)


def _table_with(protocol: Protocol) -> TableSpec:
    for file in sorted(specs.FOLDER.glob("*.yaml")):
        spec = specs.load_table(file)
        profile = protocol.profile
        known = spec.methods and profile in spec.protocols
        if known and spec.protocol(profile).name == protocol.name:
            return spec
    raise UserError(f"no table of methods has the protocol {protocol.name}; say one with --table")
