"""Hand-made records of the toy protocol, for tests of records, tables and the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paths import DATA

from benchmarks.cell import protocol_semantics
from benchmarks.protocol import Protocol
from benchmarks.record import Cost, Environment, Evaluation, Imported, Parameters, Record, Score
from benchmarks.report import spec as table_spec
from benchmarks.report import table as tables
from benchmarks.report.spec import TableSpec, load_table
from benchmarks.report.table import Request, Row, Table
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import digest_of

FINGERPRINTS = {"gtav": "aa", "gtav_held_out": "aa", "cityscapes": "bb", "bdd100k": "cc"}
ENVIRONMENT = Environment(
    commit="0123456789abcdef", dirty=False, python="3.11.7", cpu="Toy CPU", threads=1
)
# method -> seed -> (held-out source, Cityscapes, BDD100K) in percent, at the last iteration
SCORES = {
    "full": {0: (44.0, 22.0, 24.0), 1: (44.2, 22.4, 24.4), 2: (43.9, 22.1, 24.3)},
    "freeze": {0: (31.0, 26.0, 25.0), 1: (31.1, 26.2, 25.2), 2: (31.2, 26.1, 25.1)},
    "lora": {0: (42.0, 28.5, 26.0), 1: (42.5, 28.9, 26.2), 2: (42.1, 28.6, 26.5)},
    "soma": {0: (41.9, 26.5, 24.3), 1: (42.2, 26.1, 25.7)},
}
TRAINABLE = {"full": 1_843_200, "freeze": 0, "lora": 36_864, "soma": 73_728}


def toy_protocol() -> Protocol:
    return load_protocol(DATA / "toy.yaml")


def toy_table(folder: Path) -> TableSpec:
    """The toy table, from a file written into `folder` that names the toy protocol by its path."""
    text = (DATA / "toy_table.yaml").read_text().replace("TOY_PATH", str(DATA / "toy.yaml"))
    (folder / "toy_table.yaml").write_text(text)
    return load_table(folder / "toy_table.yaml")


def evaluation(iteration: int, source: float, cityscapes: float, bdd100k: float) -> Evaluation:
    roles = {"gtav_held_out": "validation", "cityscapes": "target", "bdd100k": "target"}
    values = zip(roles, (source, cityscapes, bdd100k), strict=True)
    return Evaluation(
        iteration=iteration,
        domains={
            name: Score(role=roles[name], metrics={"mIoU": value, "IoU": [value, None]}, images=2)
            for name, value in values
        },
    )


def toy_import(**changes: Any) -> Imported:
    """What `import` makes of a file of released weights; `changes` replace fields of it."""
    weights = {"file": "soma_best.pth", "sha256": "5" * 64, "state_dict": "state_dict"}
    weights |= {"selection": "chosen by the authors on the targets", "base_checked": 22}
    method = {"name": "soma-release", "fields": {"rank": 16, "start_block": 2}}
    protocol = protocol_semantics(toy_protocol())
    cell = {"protocol": protocol, "method": method, "weights": weights, "data": FINGERPRINTS}
    return Imported(
        **{
            "cell": cell,
            "digest": digest_of(cell),
            "protocol": "toy",
            "protocol_version": 3,
            "method": "soma-release",
            "label": "soma_best",
            "rank": 16,
            "start_block": 2,
            "parameters": Parameters(backbone_trainable=5, backbone_total=50, head=7),
            "domains": evaluation(0, 41.0, 90.0, 80.0).domains,
            "evaluate_seconds": 1.0,
            "environment": ENVIRONMENT,
            "data": FINGERPRINTS,
            "classes": ["road", "sky"],
            **weights,
        }
        | changes
    )


def toy_record(label: str, seed: int, **changes: Any) -> Record:
    """The record of one cell with the numbers of `SCORES`; `changes` replace fields of it."""
    protocol = toy_protocol()
    recipe = protocol.recipe_for(label, "controlled")
    cell = {
        "protocol": protocol_semantics(protocol),
        "recipe": recipe.model_dump(mode="json"),
        "method": {"name": label, "fields": protocol.changes_for(label, "controlled").fields},
        "placement": "all",
        "recipe_mode": "controlled",
        "data": FINGERPRINTS,
        "seed": seed,
    }
    fields = {
        "cell": cell,
        "digest": digest_of(cell),
        "protocol": "toy",
        "protocol_version": 3,
        "method": label,
        "label": label,
        "placement": "all",
        "recipe": "controlled",
        "seed": seed,
        "status": "done",
        "parameters": Parameters(
            backbone_trainable=TRAINABLE.get(label, 1), backbone_total=1_843_200, head=740_000
        ),
        "cost": Cost(seconds_per_step=0.125),
        "environment": ENVIRONMENT,
        "data": FINGERPRINTS,
    }
    if label in SCORES and seed in SCORES[label]:
        early = evaluation(10, 30.0, 29.0, 27.0)
        fields["evaluations"] = [early, evaluation(20, *SCORES[label][seed])]
    fields |= changes
    if "digest" not in changes:
        whole = dict(fields["cell"], data=fields["data"], recipe_mode=fields["recipe"])
        if "protocol_version" in changes:
            whole["protocol"] = dict(whole["protocol"], version=fields["protocol_version"])
        fields |= {"cell": whole, "digest": digest_of(whole)}
    return Record(**fields)


def toy_records() -> list[Record]:
    """Eleven done cells; the third seed of soma failed."""
    records = [toy_record(label, seed) for label, seeds in SCORES.items() for seed in seeds]
    reason = "loss not finite at step 12"
    failed = toy_record(
        "soma", 2, status="failed", reason=reason, evaluations=[], parameters=None, cost=Cost()
    )
    return [*records, failed]


def write_toy_records(folder: Path, records: list[Record]) -> None:
    for record in records:
        place = folder / record.protocol / record.placement / record.label
        record.write(place / f"seed{record.seed}.json")


def build(
    folder: Path,
    records: Sequence[Record] | None = None,
    against: Sequence[Record] | None = None,
    **request: Any,
) -> Table:
    spec = toy_table(folder)
    return tables.build(
        spec,
        toy_protocol(),
        toy_records() if records is None else records,
        table_spec.published(spec.published),
        Request(**request),
        against,
    )


def row(table: Table, label: str, block: int = 0) -> Row:
    return next(row for row in table.blocks[block].rows if row.label == label)
