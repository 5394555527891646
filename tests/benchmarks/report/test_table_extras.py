"""Domains that are scored twice, and recipes of a method's own with their source."""

from pathlib import Path
from typing import Any

import pytest
from toy_records import SCORES, evaluation, toy_protocol, toy_record, toy_table

from benchmarks import tuning
from benchmarks.cell import make_cell, protocol_semantics
from benchmarks.protocol import Domain, MethodChanges, Mode, Protocol, RecipeChanges
from benchmarks.record import Record, Score
from benchmarks.report import compare
from benchmarks.report import spec as table_spec
from benchmarks.report import table as tables
from benchmarks.report.formats import render

LOW = Domain(domain="cityscapes_low", card="cityscapes", split="val", size=(48, 80))


def twice() -> Protocol:
    """The toy protocol with Cityscapes scored a second time."""
    return toy_protocol().model_copy(update={"extra": (LOW,)})


def records(protocol: Protocol, low: float = 90.0) -> list[Record]:
    made = []
    for label in ("freeze", "lora"):
        for seed in (0, 1):
            scored = evaluation(20, *SCORES[label][seed])
            score = Score(role="extra", metrics={"mIoU": low}, images=2)
            scored.domains["cityscapes_low"] = score
            record = toy_record(label, seed, evaluations=[scored])
            cell = record.cell | {"protocol": protocol_semantics(protocol)}
            made.append(record.model_copy(update={"cell": cell}))
    return made


def build(folder: Path, protocol: Protocol, found: list[Record], **request: Any) -> tables.Table:
    spec = toy_table(folder)
    published = table_spec.published(spec.published)
    return tables.build(spec, protocol, found, published, tables.Request(**request))


def test_a_domain_scored_twice_has_its_column_and_is_in_no_average(tmp_path: Path) -> None:
    protocol = twice()
    built = build(tmp_path, protocol, records(protocol))
    assert list(built.headings)[-1] == "cityscapes_low"
    lora = next(row for row in built.blocks[0].rows if row.label == "lora")
    assert lora.scores["cityscapes_low"].mean == 90
    assert lora.scores["avg"].mean == pytest.approx((28.5 + 26.0 + 28.9 + 26.2) / 4)
    assert "scored a second time, in no average: cityscapes_low" in built.notes
    assert "cityscapes_low 48x80" in render(built, "md")
    oracle = build(tmp_path, protocol, records(protocol), selections=("target-oracle",))
    assert oracle.blocks[1].rows[2].scores["avg"].mean == lora.scores["avg"].mean


def test_without_one_nothing_changes_and_the_digest_stays(tmp_path: Path) -> None:
    assert "extra" not in protocol_semantics(toy_protocol())
    assert "extra" in protocol_semantics(twice())
    assert "cityscapes_low" not in toy_table(tmp_path).headings


def test_the_segmentation_task_scores_it_too() -> None:
    protocol = twice()
    assert protocol.scored_domains[-1] == LOW
    assert protocol.role(LOW) == "extra"


def test_trials_on_source_data_do_not_read_it() -> None:
    scored = tuning.source_only(twice()).scored
    assert {role for role, group in scored.items() if group} == {"validation"}


def test_the_verdict_on_a_method_is_about_the_targets_alone(tmp_path: Path) -> None:
    protocol = twice()
    found = records(protocol)
    cells = [make_cell(protocol, "lora", seed=seed, data={}) for seed in (0, 1)]
    fixed = compare.Baselines(tmp_path, tuple(found[:2]))
    table = compare.build(toy_table(tmp_path), fixed, cells, found[2:])
    assert "cityscapes_low" in render(table, "md")
    assert "cityscapes_low" not in compare.verdicts(table, cells[0])


def with_source() -> Protocol:
    """The toy protocol with a published recipe of LoRA: own rate, start block and ground."""
    own = MethodChanges(
        recipe=RecipeChanges(backbone_lr=2e-4, backbone_weight_decay=0.0),
        fields={"start_block": 1, "rank": 4},
        source="Table 9 of a paper",
    )
    mode = Mode(methods={"lora": own, "freeze": MethodChanges(source="a configuration")})
    protocol = toy_protocol()
    return protocol.model_copy(update={"recipes": protocol.recipes | {"as-published": mode}})


def published_records(protocol: Protocol) -> list[Record]:
    made = []
    for label in ("freeze", "lora"):
        cell = make_cell(protocol, label, seed=0, mode="as-published", data={})
        scored = [evaluation(20, *SCORES[label][0])]
        changes = {"cell": cell.resolved, "digest": cell.digest, "recipe": "as-published"}
        made.append(toy_record(label, 0, evaluations=scored, **changes))
    return made


def test_own_recipes_stand_below_the_table_with_their_source(tmp_path: Path) -> None:
    protocol = with_source()
    built = build(tmp_path, protocol, published_records(protocol), mode="as-published")
    (line,) = [note for note in built.notes if note.startswith("recipe mode: as-published")]
    assert "freeze: none (a configuration)" in line
    changes = "backbone_lr 0.0002, backbone_weight_decay 0.0, rank 4, start_block 1"
    assert f"lora: {changes} (Table 9 of a paper)" in line
    assert "some rows have a start_block of their own, listed below" in render(built, "md")


def test_an_own_start_block_takes_the_place_of_the_placement() -> None:
    protocol = with_source()
    starts = {
        (label, mode): make_cell(protocol, label, seed=0, mode=mode).fields["start_block"]
        for label in ("freeze", "lora")
        for mode in ("controlled", "as-published")
    }
    assert starts.pop(("lora", "as-published")) == 1
    assert set(starts.values()) == {0}


def test_a_later_field_that_a_row_gives_up_is_listed(tmp_path: Path) -> None:
    protocol = with_source()
    recipe = protocol.recipe.model_copy(update={"backbone_weight_decay": 0.01})
    every = Mode(recipe=RecipeChanges(backbone_weight_decay=None))
    changes = {"recipe": recipe, "recipes": {"as-published": every}}
    protocol = protocol.model_copy(update=changes)
    built = build(tmp_path, protocol, published_records(protocol), mode="as-published")
    assert any("freeze: backbone_weight_decay None" in note for note in built.notes)
