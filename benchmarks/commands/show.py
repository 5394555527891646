"""The command `show`: one method, protocol, table, data set or record in words."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from benchmarks import console
from benchmarks.errors import UserError, closest

if TYPE_CHECKING:
    from benchmarks.record import Imported, Record


def show(
    what: Annotated[str, typer.Argument(help="A name that `list` knows, or a record's path.")],
    images: Annotated[str, typer.Option(help="Of a record: results per image, of a domain.")] = "",
    config: Annotated[bool, typer.Option("--config", help="Of a record: its whole cell.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --images: for scripts.")] = False,
    against: Annotated[
        list[str], typer.Option(help="Of a protocol: say where another differs; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Say what a method, protocol, table, data set or record is.

    A record: row, scores per domain and class, digest, commit, and what lies beside it.
    """
    if against:
        if images or config or as_json:
            raise UserError("--against is for protocols; it takes no other option")
        print("\n".join(_differing([what, *against])))
        return
    if what.endswith(".json"):
        from benchmarks.record import load_kept

        record = load_kept(Path(what))
        if images:
            _print_images(Path(what), record, images, as_json)
        else:
            print("\n".join(_record(Path(what), record)))
            print(f"\n{_yaml(record.cell)}" if config else "")
        return
    if images or config or as_json:
        raise UserError("--images, --config and --json are for records: give the path of one")
    held = {kind: dict(names()) for kind, names in console.LISTS.items()}
    if ":" in what or what in held["methods"]:
        print("\n".join(_method(what)))
        return
    for kind in ("protocols", "tables", "datasets"):
        if what in held[kind] or (what.endswith(".yaml") and kind == "protocols"):
            print(_file(kind, what), end="")
            return
    known = [name for names in held.values() for name in names]
    raise UserError(f"show {what}: no such name or record{closest(what, known)}")


def _method(spec: str) -> list[str]:
    from benchmarks.methods import make_method

    made = make_method(spec, {})
    kind = type(made)
    doc = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    lines = [f"{spec}: {doc}", f"source: {kind.source}"]
    lines.append(f"needs: {', '.join(sorted(kind.needs)) or 'any vision transformer'}")
    start = "equals" if kind.exact_start else "differs from"
    lines.append(f"start: its output {start} the pretrained backbone's before training")
    lines.append("fields (--set method.NAME=VALUE), with their defaults:")
    lines += [
        f"  {field.name} = {getattr(made, field.name)!r}" for field in dataclasses.fields(made)
    ]
    return lines


def _file(kind: str, name: str) -> str:
    """A protocol as it resolves; a table or a card as its file has it, comments included."""
    from benchmarks.data import cards
    from benchmarks.report import spec
    from benchmarks.tasks import load_protocol

    if kind == "protocols":
        return _yaml(load_protocol(name).model_dump(mode="json"))
    folder = spec.FOLDER if kind == "tables" else cards.FOLDER
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def _differing(names: list[str]) -> list[str]:
    """One protocol beside others: only fields in which they differ, wrapped to 80 columns."""
    from tabulate import tabulate

    from benchmarks.report.protocols import SAYS, differing
    from benchmarks.tasks import load_protocol

    protocols = [load_protocol(name) for name in names]
    rows = [[field, *values] for field, values in differing(protocols)]
    if not rows:
        return [f"{' and '.join(names)}: the same settings"]
    longest = min(max(len(row[0]) for row in rows), 30)
    width = max((76 - longest - 2 * len(names)) // len(names), 12)
    headings = ["field", *(f"{p.name} {p.version}" for p in protocols)]
    widths = [longest, *[width] * len(names)]
    text = tabulate(rows, headings, "plain", disable_numparse=True, maxcolwidths=widths)
    return [*(line.rstrip() for line in text.splitlines()), SAYS]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=78)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 80, subsequent_indent=" " * 9, break_on_hyphens=False)


def _record(path: Path, record: Record | Imported) -> list[str]:
    from benchmarks.record import Imported
    from benchmarks.report.formats import grid
    from benchmarks.report.per_class import class_names, class_scores
    from benchmarks.tasks import PROTOCOLS

    made, of = record.environment, f"{record.protocol} version {record.protocol_version}"
    if isinstance(record, Imported):
        lines = [f"{record.label}: weights that others released, scored under {of}"]
        lines.append(f"file     {record.file}, SHA-256 {record.sha256}; {record.selection}")
    else:
        row = f"{record.label} seed {record.seed}, placement {record.placement}"
        lines = [f"{row}, {record.recipe}, of {of}"]
        lines.append(f"status   {record.status}{f': {record.reason}' if record.reason else ''}")
        lines += _wrapped(f"recipe   {json.dumps(record.cell.get('recipe', {}))}")
    lines += [
        f"digest   {record.digest}",
        f"made     {made.date or 'no date'} at commit {made.commit or 'unknown'}"
        f"{', with uncommitted changes' if made.dirty else ''}",
        f"on       {made.gpu or made.cpu}, {made.threads or '?'} thread(s), python {made.python}",
        *_wrapped(
            f"method   {record.method} {json.dumps(record.cell['method'].get('fields', {}))}"
        ),
    ]
    if record.parameters:
        counts = record.parameters
        lines.append(
            f"learn    {counts.backbone_trainable:,} of {counts.backbone_total:,} in the backbone, "
            f"{counts.head:,} in the head"
        )
    cost = None if isinstance(record, Imported) else record.cost
    if cost and cost.seconds_per_step is not None:
        lines.append(
            f"cost     {cost.seconds_per_step:.3f} s/step, {cost.train_seconds or 0:.0f} s"
        )
    beside = sorted(file.name for file in path.parent.glob(f"{path.stem}.*") if file != path)
    lines.append(f"beside   {', '.join(beside) or 'nothing'} (docs/records.md)")
    if record.evaluations:
        last = max(record.evaluations, key=lambda evaluation: evaluation.iteration)
        metric = PROTOCOLS[record.cell["protocol"]["task"]].metric
        rows = [["", *last.domains], ["role", *(score.role for score in last.domains.values())]]
        rows.append(["images", *(str(score.images) for score in last.domains.values())])
        rows.append([metric, *(_percent(s.metrics.get(metric)) for s in last.domains.values())])
        columns = [class_scores(score, metric) for score in last.domains.values()]
        for place, name in enumerate(class_names(record)):
            rows.append([name, *(_percent(c[place]) if c else "-" for c in columns)])
        after = "" if isinstance(record, Imported) else f" after {last.iteration} steps"
        lines += ["", f"percent{after}", *grid(rows)]
        lines += ["", f"per image: python -m benchmarks show {path} --images {[*last.domains][-1]}"]
    return lines


def _percent(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "-"


def _print_images(path: Path, record: Record | Imported, domain: str, as_json: bool) -> None:
    from benchmarks.report.formats import grid
    from benchmarks.report.per_class import images

    made = images(path, record, domain)
    if as_json:
        print(json.dumps(made, indent=1))
        return
    if made and "mIoU" in made[0]:
        made = sorted(made, key=lambda image: image["mIoU"] if image["mIoU"] is not None else 101)
        rows = [["image", "mIoU", "worst class", "IoU"]]
        for image in made:
            known = {name: v for name, v in image["IoU"].items() if v is not None}
            worst = min(known, key=known.__getitem__, default="-")
            rows.append(
                [image["image"], _percent(image["mIoU"]), worst, _percent(known.get(worst))]
            )
    else:
        rows = [["image", "detections"]]
        for image in made:
            counts = image["detections"].items()
            rows.append([image["image"], ", ".join(f"{n} {name}" for name, n in counts)])
    print("\n".join(grid(rows)))
