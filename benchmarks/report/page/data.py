"""What the page shows, as plain values: the rows of every table, its seeds, classes and costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from baselines import METHODS
from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.protocol import Protocol
from benchmarks.record import Record
from benchmarks.report import spec as specs
from benchmarks.report.findings import baseline
from benchmarks.report.formats import render
from benchmarks.report.protocols import differing
from benchmarks.report.records import read_imported, read_records
from benchmarks.report.spec import AVERAGE, SOURCE, TableSpec
from benchmarks.report.statistics import verdict
from benchmarks.report.table import (
    Block,
    Request,
    Row,
    Table,
    build,
    select,
    with_released,
)
from benchmarks.trials import Tried, summary_of, tried

Points = list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """One table of the page.

    Attributes:
        table: with all placements that have records; no chart shows released weights.
        rows: those of `table --format json`, in its order, block after block.
        released: blocks of weights that others released, with their rows.
        others: a row that was scored -> the same table with differences to it.
    """

    table: Table
    rows: Points
    released: list[tuple[Block, Points]]
    others: Mapping[str, Table]

    @property
    def spec(self) -> TableSpec:
        """What the table shows."""
        return self.table.spec

    @property
    def protocol(self) -> Protocol:
        """What was held fixed."""
        return self.table.protocol

    @property
    def blocks(self) -> list[tuple[Block, Points]]:
        """Every block with its rows."""
        return _with_rows(self.table, self.rows)

    @property
    def lines(self) -> list[tuple[str, Row]]:
        """Name of the block, row."""
        return [(block.name, row) for block in self.table.blocks for row in block.rows]


@dataclass(frozen=True)
class Empty:
    """A table without rows; `problem` says in one line why."""

    spec: TableSpec
    protocol: Protocol
    problem: str


def domain_name(section: Section, domain: str) -> str:
    """The heading of its column; held-out source has that of the source."""
    roles = section.protocol.scored
    held_out = any(one.domain == domain for one in roles.get("validation", ()))
    return section.table.headings.get(SOURCE if held_out else domain, domain)


def _with_rows(table: Table, points: Points) -> list[tuple[Block, Points]]:
    # `table --format json` gives the rows of all blocks one after the other.
    rows = iter(points)
    return [(block, [next(rows) for _ in block.rows]) for block in table.blocks]


def sections(profile: str, folders: Sequence[Path], mode: str) -> list[Section | Empty]:
    """All tables that have the profile, in order of their names.

    A table whose records cannot stand together is there with the reason in their place.

    Raises:
        UserError: no table has the profile, or it has no such recipe mode.
    """
    held: list[Section | Empty] = []
    for file in sorted(specs.FOLDER.glob("*.yaml")):
        spec = specs.load_table(file)
        if profile in spec.protocols:
            held.append(_section(spec, spec.protocol(profile), folders, mode))
    if not held:
        raise UserError(f"--profile {profile}: no table has this profile; `list tables` says which")
    return held


def _section(spec: TableSpec, protocol: Protocol, folders: Sequence[Path], mode: str) -> Section:
    # Refuses an unknown mode: below, an error of one table would become its empty section.
    protocol.changes_for("", mode)
    try:
        records = read_records(folders, protocol.name, mode)
        imported = read_imported(folders, protocol.name)
        if not (records or imported):
            return Empty(spec, protocol, "no records yet")
        places = {r.digest: path for path, r in [*records.items(), *imported.items()]}
        published, those = specs.published(spec.published), [*records.values()]
        table = build(spec, protocol, those, published, Request(mode=mode), places=places)
        # Built again, not turned round: intervals hold together over the comparisons with one row.
        others = {
            label: build(spec, protocol, those, published, Request(mode=mode, reference=label))
            for label in _scored(table)
            if label != table.reference
        }
        released = with_released(table, [*imported.values()], (), alone=True)
    except UserError as error:
        return Empty(spec, protocol, str(error))
    rows = json.loads(render(table, "json"))
    if not (imported or any(row["n"] for row in rows)):
        return Empty(spec, protocol, "no records of its rows yet")
    own = _with_rows(released, json.loads(render(released, "json")))
    return Section(table, rows, own, others)


def _scored(table: Table) -> list[str]:
    """Rows that have an Avg in some block; none of a table of factors, whose blocks share one."""
    blocks = [block for block in table.blocks if not block.factor]
    scored = [label for block in blocks for label, own in block.values.items() if own[AVERAGE]]
    return [*dict.fromkeys(scored)]


def differences(section: Section) -> Points:
    """Avg of every row minus that of the reference, and of every other row as the reference.

    As `table --reference ROW` judges them. Rows of a table of factors are compared with its
    reference alone.
    """
    points: Points = []
    for table in (section.table, *section.others.values()):
        for block in table.blocks:
            for row in block.rows:
                if (result := row.difference) is None:
                    continue
                ends = {"mean": result.mean, "low": result.low, "high": result.high}
                numbers = {k: None if v is None else round(v, 3) for k, v in ends.items()}
                names = {"block": block.name, "reference": baseline(block)}
                points.append({**names, "method": row.label, **numbers, "verdict": verdict(result)})
    return points


def seeds(section: Section, places: Mapping[str, str]) -> Points:
    """Every seed of every row, its columns and scores as lists, with what leads to its record."""
    table, points = section.table, []
    records = {
        (block.name, row.label, record.seed): record
        for block in table.blocks
        for row in block.rows
        for record in row.records
    }
    for block in table.blocks:
        for label, columns in block.values.items():
            for seed in sorted({seed for values in columns.values() for seed in values}):
                record = records.get((block.name, label, seed))
                digest = record.digest if record else ""
                commit = record.environment.commit if record else None
                scored = {key: values[seed] for key, values in columns.items() if seed in values}
                points.append(
                    {
                        "block": block.name,
                        "method": label,
                        "column": [table.headings[key] for key in scored],
                        "seed": seed,
                        # Three digits: one is shown, and there are thousands of scores.
                        "score": [round(value, 3) for value in scored.values()],
                        "record": places.get(digest, str(record.path) if record else ""),
                        "digest": digest[:12],
                        "commit": (commit or "")[:12],
                    }
                )
    return points


def source_and_unseen(section: Section) -> Points:
    """Mean of the held-out source and of the unseen domains, per row."""
    return [
        {
            "block": name,
            "method": row.label,
            "source": row.scores[SOURCE].mean,
            "unseen": row.scores[AVERAGE].mean,
        }
        for name, row in section.lines
        if row.scores.get(SOURCE) and row.scores[AVERAGE]
    ]


_COSTS = {
    "parameters": lambda row: row.trainable,
    "seconds per step": lambda row: row.seconds_per_step,
    "memory in training, GiB": lambda row: _memory(row),
}


def _memory(row: Row) -> float | None:
    # None where a run went on from its checkpoint and only scored.
    peaks = [record.cost.peak_train_bytes for record in row.records]
    known = [peak / 2**30 for peak in peaks if peak]
    return fmean(known) if known else None


def costs(section: Section) -> Points:
    """Avg against what it costs; `frontier`: no cheaper row is as good."""
    points: Points = []
    for block, _ in section.blocks:
        for name, cost in _COSTS.items():
            own = [
                {
                    "block": block.name,
                    "method": row.label,
                    "cost": name,
                    "value": cost(row),
                    "avg": row.scores[AVERAGE].mean,
                    "low": min(block.values[row.label][AVERAGE].values()),
                    "high": max(block.values[row.label][AVERAGE].values()),
                }
                for row in block.rows
                if row.scores[AVERAGE] and cost(row) is not None
            ]
            for point in own:
                point["frontier"] = not any(
                    other["value"] <= point["value"]
                    and other["avg"] >= point["avg"]
                    and (other["value"], other["avg"]) != (point["value"], point["avg"])
                    for other in own
                )
            points += own
    return points


def class_names(section: Section, records: Sequence[Record]) -> list[str]:
    """Names in the order of the metrics per class: the records' own, else the card's."""
    for record in records:
        if record.classes:
            return list(record.classes)
    kind = "label" if section.protocol.task == "segmentation" else "boxes"
    return list(load_card(section.protocol.scored_domains[0].card, kind).classes)


def _per_class(record: Record, section: Section, metric: str, domain: str) -> list | None:
    chosen = select(record.evaluations, section.protocol.selection, section.spec.metric)
    score = chosen.domains.get(domain) if chosen else None
    values = score.metrics.get(metric) if score else None
    return values if isinstance(values, list) else None


def per_class(section: Section) -> Points:
    """Percent per class of every row in every domain, and minus the reference row's, as lists."""
    points: Points = []
    for block, _ in section.blocks:
        held: dict[tuple[str, str], dict[str, float]] = {}
        for row in block.rows:
            done = [record for record in row.records if record.status == "done"]
            for domain, metric in _listed(done):
                names = class_names(section, done)
                scored = [_per_class(record, section, metric, domain) for record in done]
                means = map(_mean, zip(*(values for values in scored if values), strict=True))
                held[row.label, domain] = {
                    name: mean for name, mean in zip(names, means, strict=False) if mean is not None
                }
        for (label, domain), own in held.items():
            base = held.get((baseline(block), domain), {})
            names = [name for name in own if name in base]
            # One object per row and domain: one per class would make half the page.
            if names:
                points.append(
                    {
                        "block": block.name,
                        "method": label,
                        "domain": domain_name(section, domain),
                        "class": names,
                        "score": [round(own[name], 1) for name in names],
                        "difference": [round(own[name] - base[name], 1) for name in names],
                    }
                )
    return points


def _listed(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Domain and the name of its metric per class, of the last evaluation of the first record."""
    if not records or not records[0].evaluations:
        return []
    return [
        (domain, metric)
        for domain, score in records[0].evaluations[-1].domains.items()
        for metric, value in list(score.metrics.items())
        if isinstance(value, list)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def confusions(section: Section, places: Mapping[str, Path]) -> Points:
    """Per row of the first block: of the pixels of a class, the percent taken for another.

    One seed, all unseen domains together; `share` is rows of ground truth, one after the other.
    """
    points: Points = []
    for row in section.table.blocks[0].rows:
        arrays = [places[r.digest].with_suffix(".npz") for r in row.records if r.digest in places]
        file = next((file for file in arrays if file.is_file()), None)
        if file is None:
            continue
        with np.load(file) as held:
            # Kept in 32 bits per image, which a sum over a large domain exceeds.
            known = [
                held[name].sum(0, dtype=np.int64) for name in section.spec.domains if name in held
            ]
        if known:
            total = np.sum(known, axis=0)
            # A class without pixels has a row of zeros, not 0 / 0.
            share = 100 * total / np.maximum(total.sum(1, keepdims=True), 1)
            points.append(
                {"method": row.label, "share": share.round().astype(int).ravel().tolist()}
            )
    return points


def curves(section: Section, places: Mapping[str, Path]) -> Points:
    """Loss of one seed over the steps: the means of its log where that is kept, else single steps.

    Scores on the way too, where the protocol evaluates before the end. A line is one object, its
    steps and values lists: one per step would weigh more than the pictures of the page.
    """
    points: Points = []
    for name, row in section.lines:
        done = [record for record in row.records if record.losses]
        # One seed: three curves of a row hide each other.
        for record in done[:1]:
            scores = [
                (evaluation.iteration, value)
                for evaluation in (record.evaluations if len(record.evaluations) > 1 else [])
                for score in evaluation.domains.values()
                if score.role == "validation"
                and isinstance(value := score.metrics.get(section.spec.metric), float)
            ]
            lines = {
                "loss": _losses(record, places.get(record.digest)),
                "score on held-out source": scores,
            }
            for what, line in lines.items():
                if line:
                    steps, values = zip(*line, strict=True)
                    own = {"block": name, "method": row.label, "what": what}
                    points.append({**own, "iteration": steps, "value": values})
    return points


def _losses(record: Record, path: Path | None) -> list[tuple[int, float]]:
    log = path.with_suffix(".log.jsonl") if path else None
    means: list[tuple[int, float]] = []
    if log is not None and log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                means.append((int(entry["iteration"]), round(float(entry["loss"]), 4)))
            except (ValueError, KeyError, TypeError):
                # A line of another kind, or the last one of a killed run.
                continue
    single = [(point.iteration, point.loss) for point in record.losses if point.loss is not None]
    # Single losses are noisy, and few of them are recorded; the log's means come first.
    return means or [(iteration, round(loss, 4)) for iteration, loss in single]


def published_links(table: Table) -> dict[str, tuple[str, str]]:
    """Footnote letter -> text and address of the paper; "" where its source names none."""
    links = {}
    for letter, text in table.footnotes.items():
        paper = re.search(r"arXiv[ :]*(\d{4}\.\d{4,5}(?:v\d+)?)", text)
        links[letter] = text, f"https://arxiv.org/abs/{paper[1]}" if paper else ""
    return links


def cards() -> dict[str, str]:
    """Method -> what it is, in one line."""
    return {name: kind.source.partition(". ")[0] for name, kind in METHODS.items()}


def environments(section: Section) -> list[tuple[str, int]]:
    """Commit, version and processor of the records, with how many there are of each."""
    counts: dict[str, int] = {}
    others = [row for block, _ in section.released for row in block.rows]
    for row in (*(row for _, row in section.lines), *others):
        for record in row.kept:
            env = record.environment
            words = [f"commit {(env.commit or 'unknown')[:12]}{' (changed)' if env.dirty else ''}"]
            words += [env.gpu or env.cpu, f"torch {env.packages.get('torch', '?')}"]
            words += [env.date] if env.date else []
            line = ", ".join(words)
            counts[line] = counts.get(line, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def protocols(section: Section) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names with versions of all protocols of a table, its own first, and where they differ."""
    every = [section.protocol, *map(section.spec.protocol, section.spec.protocols)]
    made = {protocol.name: protocol for protocol in every}.values()
    return [f"{protocol.name} {protocol.version}" for protocol in made], differing([*made])


def trials_of(section: Section) -> tuple[str, list[Tried]]:
    """What the kept trials of the protocol are, in words, and what they hold per method."""
    try:
        kept = summary_of(section.protocol)
    # The table's notes say it.
    except UserError:
        kept = None
    if kept is None:
        return "", []
    file, runs = kept
    first = runs[0]
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    said = (
        f"{file}: {section.protocol.metric} on {first.domain}, {first.protocol} version "
        f"{first.version}, seed {seeds}"
    )
    return said, tried(runs)
