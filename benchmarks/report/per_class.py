"""Scores per class: of the rows of a table, and of the images of one record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.data.cards import load_card
from benchmarks.errors import UserError, closest
from benchmarks.record import Imported, Record, Score
from benchmarks.report.formats import WIDTH, grid
from benchmarks.report.statistics import Summary, summarise
from benchmarks.report.table import Block, Row, Table, select
from benchmarks.segmentation.metrics import iou

FORMATS = ("text", "md", "csv", "json")
MEAN = "mean"  # of all classes


def class_names(record: Record | Imported) -> tuple[str, ...]:
    """Class names in the order of scores per class; the card's, where an old record has none."""
    if record.classes:
        return tuple(record.classes)
    protocol = record.cell["protocol"]
    domain = next(d for d in (*protocol["targets"], *protocol["source"]))
    return load_card(domain["card"]).classes


def class_scores(score: Score, metric: str) -> list[float | None]:
    """Percent per class behind a metric of one domain; empty where there is none."""
    values = score.metrics.get("IoU" if metric == "mIoU" else f"{metric}_per_class")
    return values if isinstance(values, list) else []


@dataclass(frozen=True)
class ClassRow:
    """Summaries over seeds of one row of a table, class by class, the mean of all last."""

    label: str
    n: int
    scores: tuple[Summary | None, ...]


def blocks(table: Table, domain: str) -> list[tuple[Block, list[str], list[ClassRow]]]:
    """The blocks of a table with names of the classes and rows, the reference row first.

    Blocks without such scores, as those of released weights, are left out.

    Raises:
        UserError: no record scores this domain, or none per class.
    """
    known: dict[str, None] = {}
    made = [(block, *_rows(table, block, domain, known)) for block in table.blocks]
    held = [(block, names, rows) for block, names, rows in made if any(row.n for row in rows)]
    if not held:
        raise UserError(f"{table.name}: no scores per class of {domain!r}{closest(domain, known)}")
    return held


def _rows(
    table: Table, block: Block, domain: str, known: dict[str, None]
) -> tuple[list[str], list[ClassRow]]:
    names: tuple[str, ...] = ()
    made = []
    for row in sorted(block.rows, key=lambda row: not row.baseline):
        seeds = _of_seeds(table, block, row, domain, known)
        done = [record for record in row.records if record.status == "done"]
        names = names or next((class_names(record) for record in done), ())
        columns = zip(*seeds, strict=True) if seeds else [()] * (len(names) + 1)
        # A class that the images of one seed lack has no score there; the others count.
        kept = [summarise([v for v in column if v is not None]) for column in columns]
        made.append(ClassRow(row.label, len(seeds), tuple(kept)))
    return [*names, MEAN], made


def _of_seeds(
    table: Table, block: Block, row: Row, domain: str, known: dict[str, None]
) -> list[list[float | None]]:
    """Per seed the scores of all classes and their mean; notes which domains there are."""
    seeds = []
    for record in row.records:
        chosen = None
        if record.status == "done":
            chosen = select(record.evaluations, block.selection, table.spec.metric)
        if chosen is None:
            continue
        known |= dict.fromkeys(chosen.domains)
        score = chosen.domains.get(domain)
        if score and (values := class_scores(score, table.spec.metric)):
            # As recorded: which classes count in it is for the evaluation to say.
            mean = score.metrics.get(table.spec.metric)
            seeds.append([*values, mean if isinstance(mean, float) else None])
    return seeds


def render(table: Table, domain: str, form: str) -> str:
    """Scores per class on one domain in one of `FORMATS`, ending in a newline.

    Raises:
        UserError: another format, or no such scores.
    """
    if form not in FORMATS:
        raise UserError(f"--per-class: no format {form}{closest(form, FORMATS)}")
    if form in ("csv", "json"):
        return _flat(table, domain, form)
    parts = []
    for block, names, made in blocks(table, domain):
        where = f"factor {block.factor}" if block.factor else f"placement {block.placement}"
        metric = "IoU" if table.spec.metric == "mIoU" else table.spec.metric
        parts.append(f"{domain}: {metric} per class in %, {where}, selection {block.selection}")
        columns = [["class", *names], *([row.label, *map(_number, row.scores)] for row in made)]
        if form == "md":
            body = [list(cells) for cells in zip(*columns, strict=True)]
            parts.append(tabulate(body[1:], body[0], tablefmt="pipe", disable_numparse=True))
        else:
            parts += ["\n".join(grid(group)) for group in _groups(columns)]
    return "\n\n".join(parts) + "\n"


def _groups(columns: Sequence[Sequence[str]]) -> list[list[tuple[str, ...]]]:
    """The columns side by side as far as a terminal reaches, beside names and reference row."""
    first, reference, *rest = columns
    groups: list[list[Sequence[str]]] = [[first, reference]]
    for column in rest:
        lengths = [max(map(len, c)) for c in (*groups[-1], column)]
        if sum(lengths) + 2 * (len(lengths) - 1) > WIDTH and len(groups[-1]) > 2:
            groups.append([first, reference])
        groups[-1].append(column)
    return [list(zip(*group, strict=True)) for group in groups]


def _number(score: Summary | None) -> str:
    return "-" if score is None else f"{score.mean:.1f}"


def _flat(table: Table, domain: str, form: str) -> str:
    flat = [
        {
            "placement": block.placement,
            "selection": block.selection,
            "domain": domain,
            "method": row.label,
            "class": name,
            "n": score.n if score else 0,
            "mean": score.mean if score else None,
            "sd": score.sd if score else None,
        }
        for block, names, made in blocks(table, domain)
        for row in made
        for name, score in zip(names, row.scores, strict=True)
    ]
    if form == "json":
        return json.dumps(flat, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def images(path: Path, record: Record | Imported, domain: str) -> list[dict[str, Any]]:
    """What is kept of every image of a domain beside the record at `path`, in the domain's order.

    Segmentation: name, mIoU of the image over its classes, and IoU per class. Detection: name and
    numbers of detections per class, of images with any.

    Raises:
        UserError: no such domain, or nothing is kept.
    """
    scored = record.evaluations[-1].domains if record.evaluations else {}
    if domain not in scored:
        raise UserError(f"{path}: no domain {domain!r}{closest(domain, scored)}")
    names = class_names(record)
    detections = path.with_suffix(f".{domain}.json.gz")
    try:
        if detections.is_file():
            return _detected(json.loads(gzip.decompress(detections.read_bytes())), names)
        with np.load(path.with_suffix(".npz")) as kept:
            matrices = kept[domain]
            order = kept.get(f"{domain}.names")
    # Before `OSError`, of which it is one: a missing file has a remedy of its own.
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: results per image are not kept beside it: no "
            f"{Path(error.filename).name}; {record.again}"
        ) from None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: results per image cannot be read beside it ({error}); {record.again}"
        ) from None
    made = []
    for place, matrix in enumerate(matrices):
        values = [None if np.isnan(v) else float(v) for v in iou(matrix)]
        known = [value for value in values if value is not None]
        made.append(
            {
                "image": f"number {place}" if order is None else str(order[place]),
                "mIoU": float(np.mean(known)) if known else None,
                "IoU": dict(zip(names, values, strict=True)),
            }
        )
    return made


def _detected(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = {}
    for entry in found:
        # COCO counts categories from 1.
        name = names[entry["category_id"] - 1]
        counts.setdefault(entry["file_name"], Counter())[name] += 1
    return [{"image": image, "detections": dict(count)} for image, count in counts.items()]
