"""Tables of factors: rows that are a method with something changed, and the records they read."""

import json
from math import isfinite
from pathlib import Path

import pytest
import torch
from toy_records import DATA, SCORES, build, evaluation, toy_protocol, toy_record, toy_records

from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.distributed import make_fabric
from benchmarks.errors import UserError
from benchmarks.report import formats, statistics
from benchmarks.report import spec as table_spec
from benchmarks.report import table as tables
from benchmarks.report.spec import TableSpec, load_table
from benchmarks.report.table import AVERAGE, Request, values_by_seed
from benchmarks.run import build as build_model
from benchmarks.run import make_training
from benchmarks.tasks import task_of

ROWS = """
rows:
  rank:
    - {label: rank 2, method: lora, fields: {rank: 2}}
    - {label: rank 5, method: lora, fields: {rank: 5}}
  rate:
    - {label: x 3, method: lora, times: {backbone_lr: 3}}
    - {label: "other method", method: soma}
  placement:
    - {label: last third, method: lora, placement: last-third}
"""
# Percent on Cityscapes and on BDD100K: 2 points above lora, and 3 below it, each with some noise.
BETTER = {0: (30.5, 28.1), 1: (30.8, 28.3), 2: (30.7, 28.4)}
WORSE = {0: (25.5, 23.1), 1: (25.8, 23.1), 2: (25.7, 23.5)}


def factors(folder: Path, rows: str = ROWS) -> TableSpec:
    """The toy table with rows in the place of its methods, and lora as reference."""
    lines = (DATA / "toy_table.yaml").read_text().replace("TOY_PATH", str(DATA / "toy.yaml"))
    kept = [x for x in lines.splitlines() if not x.startswith(("methods", "reference", "name"))]
    (folder / "toy4.yaml").write_text("\n".join([*kept, "name: toy4", "reference: lora", rows]))
    return load_table(folder / "toy4.yaml")


def records(spec: TableSpec) -> list:
    """Toy records, and those of two rows of the table."""
    keys = {line.label: line.key for line in spec.lines(toy_protocol(), "controlled")}
    made = toy_records()
    for label, scores in (("rank 5", BETTER), ("last third", WORSE)):
        placement, name = keys[label]
        for seed, (cityscapes, bdd100k) in scores.items():
            cell = toy_record("lora", seed).cell | {"placement": placement}
            last = [evaluation(20, 40.0, cityscapes, bdd100k)]
            changes = {"method": "lora", "placement": placement, "cell": cell}
            made.append(toy_record(name, seed, evaluations=last, **changes))
    return made


def built(spec: TableSpec, **request: object) -> tables.Table:
    published = table_spec.published(spec.published)
    return tables.build(spec, toy_protocol(), records(spec), published, Request(**request))


def test_one_block_for_each_factor_with_differences_to_the_reference(tmp_path: Path) -> None:
    spec = factors(tmp_path)
    table = built(spec)
    assert [block.factor for block in table.blocks] == ["rank", "rate", "placement"]
    rank, rate, placement = table.blocks
    assert [row.label for row in rank.rows] == ["rank 2 (lora)", "rank 5"]
    assert [row.label for row in rate.rows] == ["lora", "x 3", "other method"]
    assert [(row.n, row.state) for row in rate.rows[1:]] == [(0, "missing"), (0, "missing")]
    assert rank.rows[0].baseline
    assert rank.rows[0].published["cityscapes"][0] == "65.2"
    better, worse = rank.rows[1].difference, placement.rows[1].difference
    mean = sum(sum(pair) / 2 for pair in BETTER.values()) / 3
    lora = sum(sum(scores[1:]) / 2 for scores in SCORES["lora"].values()) / 3
    assert better.mean == pytest.approx(mean - lora)
    assert better.low > 0 > worse.high
    # All factors are judged together, by the noise of all rows.
    averages = {
        label: values_by_seed(rows, "last", spec.metric, spec.domains)[AVERAGE]
        for label in ("lora", "rank 5", "last third")
        if (rows := [r for r in records(spec) if (r.placement, r.label) == key_of(spec, label)])
    }
    judged = statistics.judge(averages, [("rank 5", "lora"), ("last third", "lora")])
    assert better.low == pytest.approx(judged.differences["rank 5", "lora"].low)
    assert table.notes[0].startswith("factors by the largest difference of Avg from lora, ")
    assert table.notes[0].endswith(": placement -3.0 (last third), rank +2.0 (rank 5)")


def key_of(spec: TableSpec, label: str) -> tuple[str, str]:
    lines = spec.lines(toy_protocol(), "controlled")
    return next(line.key for line in lines if line.label == label)


def test_formats_name_the_factor(tmp_path: Path) -> None:
    table = built(factors(tmp_path), methods=("rank",))
    rows = json.loads(formats.render(table, "json"))
    assert [(row["factor"], row["method"]) for row in rows] == [
        ("rank", "rank 2 (lora)"),
        ("rank", "rank 5"),
    ]
    text = formats.render(table, "md")
    assert "## Factor rank, selection last" in text
    assert "(baseline)" in text
    assert formats.render(table, "csv").startswith("factor,placement,method,")


def test_rows_share_the_records_of_equal_cells(tmp_path: Path) -> None:
    spec, protocol = factors(tmp_path), toy_protocol()
    for line in spec.lines(protocol, "controlled"):
        where = {"seed": 0, "placement": line.placement, "changes": line.changes}
        cell = make_cell(protocol, line.method, **where)
        assert (cell.placement, cell.label) == line.key
    assert key_of(spec, "rank 2") == ("all", "lora")
    assert (
        key_of(spec, "rank 5")[1]
        == make_cell(protocol, "lora", seed=0, changes={"method": {"rank": 5}}).label
    )
    # A row of another method has what the protocol sets for the reference.
    (other,) = [x for x in spec.lines(protocol, "controlled") if x.label == "other method"]
    cell = make_cell(protocol, "soma", seed=0, changes=other.changes)
    assert (cell.protocol.recipe.backbone_lr, cell.make_method().rank) == (3e-3, 2)


def test_other_tables_do_not_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = factors(tmp_path)
    monkeypatch.setattr(table_spec, "FOLDER", tmp_path)
    named = (tmp_path / "toy4.yaml").read_text().replace(str(DATA / "toy.yaml"), "toy")
    (tmp_path / "toy4.yaml").write_text(named)
    labels = [row.label for row in build(tmp_path, records(spec)).blocks[0].rows]
    assert labels == ["full", "freeze", "lora", "soma"]
    user = toy_record("lora+12345678", 0, method="lora")
    labels = [row.label for row in build(tmp_path, [*records(spec), user]).blocks[0].rows]
    assert labels == ["full", "freeze", "lora", "soma", "lora+12345678"]


def test_their_records_change_no_interval_of_other_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = factors(tmp_path)
    monkeypatch.setattr(table_spec, "FOLDER", tmp_path)
    named = (tmp_path / "toy4.yaml").read_text().replace(str(DATA / "toy.yaml"), "toy")
    (tmp_path / "toy4.yaml").write_text(named)
    asked = {"methods": ("full", "freeze", "lora", "soma")}
    for options in ({}, asked):
        alone = build(tmp_path, toy_records(), **options).blocks[0]
        beside = build(tmp_path, records(spec), **options).blocks[0]
        assert [row.difference for row in beside.rows] == [row.difference for row in alone.rows]
        assert beside.comparisons == alone.comparisons


def test_a_placement_that_every_protocol_knows_is_shown_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    spec = factors(tmp_path)
    assert not build(tmp_path, records(spec)).others
    table = build(tmp_path, records(spec), placements=("last-third",))
    assert [block.start for block in table.blocks] == [2 / 3]
    assert next(row.n for row in table.blocks[0].rows if row.label == "lora") == 3


def test_a_method_is_not_compared_with_factors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "lora", "--table", "table4"]) == 2
    assert "--table table4: its rows vary one method" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("methods: [lora]\nrows: {a: [{label: x, method: lora}]}", "methods: give these, or rows"),
        ("rows: {a: [{label: x, method: lora}, {label: x, method: full}]}", "two are called 'x'"),
        ("rows: {a: [{label: x, method: lora, recipe: {lrr: 1}}]}", "did you mean 'lr'?"),
    ],
)
def test_wrong_rows_are_one_line(rows: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        factors(tmp_path, rows)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_factor_on_no_number_is_one_line(tmp_path: Path) -> None:
    spec = factors(tmp_path, "rows: {a: [{label: x, method: lora, times: {schedule: 2}}]}")
    with pytest.raises(UserError, match=r"row x: times.schedule: toy has no such number"):
        spec.lines(toy_protocol(), "controlled")


# What a row of a factor may differ in from the reference's cell.
MAY_DIFFER = {
    "components": {"method.name", "method.fields.components", "method.fields.subtract"},
    "placement": {"placement", "method.fields.start_block", "method.fields.end_block"},
    "weight-decay": {
        "recipe.weight_decay_schedule",
        "recipe.backbone_weight_decay",
        "method.fields.adapter_decay",
    },
    "ema": {"recipe.ema"},
    "biases": {"method.fields.train_bias"},
    "rank": {"method.fields.rank", "method.fields.alpha"},
    "targets": {"method.fields.targets"},
    "learning-rate": {"recipe.backbone_lr"},
}


def flat(cell: dict) -> dict[str, object]:
    parts = {f"method.fields.{k}": v for k, v in cell["method"]["fields"].items()}
    parts |= {f"recipe.{k}": v for k, v in cell["recipe"].items()}
    return parts | {"method.name": cell["method"]["name"], "placement": cell["placement"]}


@pytest.mark.parametrize("profile", ["mini", "smoke", "paper"])
def test_rows_of_table_4_differ_in_their_factor_alone(profile: str) -> None:
    spec = load_table("table4")
    protocol, cells = spec.protocol(profile), {}
    for line in spec.lines(protocol, "controlled"):
        where = {"seed": 0, "placement": line.placement, "data": {}}
        cell = make_cell(protocol, line.method, changes=line.changes, **where)
        assert (cell.placement, cell.label) == line.key
        cells[line.label] = (line.factor, flat(cell.resolved), line.key)
    _, own, first = cells.pop(spec.reference)
    same = [factor for factor, _, key in cells.values() if key == first]
    assert sorted(same) == sorted(MAY_DIFFER)  # one row of each factor is the reference itself
    keys = [key for _, _, key in cells.values() if key != first]
    assert len(keys) == len(set(keys)) == 26
    for label, (factor, cell, key) in cells.items():
        changed = {k for k in own | cell if own.get(k, "-") != cell.get(k, "-")}
        assert changed <= MAY_DIFFER[factor], label
        assert bool(changed) == (key != first), label


def test_every_row_of_table_4_learns_under_the_protocol_of_the_paper() -> None:
    # All but the size: a step of ViT-L takes minutes on a CPU, for each of 27 rows.
    spec = load_table("table4")
    protocol = spec.protocol("paper")
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 2}
    backbone = {"weights": "random", "sha256": None, "resize": None, "args": small}
    head = {"hidden": 32, "attention_heads": 2, "queries": 19, "points": 64}
    changes = {
        "backbone": protocol.backbone.model_copy(update=backbone | {"features": (0, 1, 2, 3)}),
        "head": protocol.head.model_copy(update=head),
    }
    protocol = protocol.model_copy(update=changes)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "label": torch.arange(8).repeat_interleave(8).repeat(2, 64, 1),
        "targets": torch.tensor([8, 8]),
    }
    for line in spec.lines(protocol, "controlled"):
        cell = make_cell(
            protocol, line.method, seed=0, placement=line.placement, changes=line.changes, data={}
        )
        adapted = build_model(cell, task_of(cell.protocol))
        training = make_training(cell, adapted, make_fabric("cpu", "32-true", 1, 1))
        assert isfinite(training.step(iter([batch]))), line.label
        learnt = [p.grad for p in adapted.model.backbone.parameters() if p.requires_grad]
        assert any(gradient is not None and gradient.any() for gradient in learnt), line.label
