"""Recipe mode of an equal budget: recipes from trials, other seeds, and what a table says of it."""

import hashlib
import json
from pathlib import Path

import pytest
from toy_records import FINGERPRINTS, build, toy_protocol, toy_record, toy_table
from toy_task import FakeTask, take_place
from toy_task import protocol as task_protocol

from benchmarks import run, trials
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.protocol import Mode
from benchmarks.record import Record
from benchmarks.report import table as tables
from benchmarks.report.spec import Published, load_table
from benchmarks.report.table import Request
from benchmarks.trials import Trial
from benchmarks.yaml_files import validate

SEED = 100
GRID = ((1e-4, 0.0), (1e-4, 0.1), (2e-3, 0.0), (2e-3, 0.1))
BEST = {"lora": 3, "soma": 2}


def rows(method: str, best: int | None, protocol=None, grid=GRID, **changes: object) -> list[Trial]:
    protocol = protocol or toy_protocol()
    fields = {"protocol": protocol.name, "version": protocol.version, "seed": SEED}
    fields |= {"domain": "gtav_held_out", "method": method}
    return trials.choose(
        Trial(
            **(fields | changes),
            backbone_lr=rate,
            weight_decay=decay,
            score=None if best is None else 40.0 + (place == best),
        )
        for place, (rate, decay) in enumerate(grid)
    )


def tuned(path: Path, found: list[Trial], protocol=None):
    """The protocol with an equal budget from a summary at `path`."""
    path.write_text(trials.render(found, "mIoU"))
    protocol = protocol or toy_protocol()
    modes = protocol.recipes | {"equal-budget": Mode(trials=str(path))}
    return protocol.model_copy(update={"recipes": modes})


def cell_of(protocol, method: str = "lora", seed: int = 0, **more: object):
    return make_cell(protocol, method, seed=seed, mode="equal-budget", data=FINGERPRINTS, **more)


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    return tmp_path / "trials.csv"


@pytest.fixture
def protocol(summary: Path):
    return tuned(summary, [trial for method, best in BEST.items() for trial in rows(method, best)])


def test_each_method_gets_the_best_of_its_own_trials(protocol) -> None:
    for method, best in BEST.items():
        recipe = cell_of(protocol, method).protocol.recipe
        assert (recipe.backbone_lr, recipe.weight_decay) == GRID[best]
    controlled = make_cell(protocol, "lora", seed=0, data={})
    assert controlled.budget is None
    assert controlled.protocol.recipe.weight_decay == 0.05
    changed = cell_of(protocol, changes={"recipe": {"backbone_lr": 0.5}})
    assert changed.protocol.recipe.backbone_lr == 0.5


def test_the_budget_names_the_trials_and_hashes_the_lines_of_the_method(protocol, summary) -> None:
    budget = cell_of(protocol).budget
    assert budget.trials == 4
    assert (budget.backbone_lr, budget.weight_decay) == ((1e-4, 2e-3), (0.0, 0.1))
    assert budget.chosen == {"backbone_lr": 2e-3, "weight_decay": 0.1}
    lines = [line for line in summary.read_text().splitlines(True) if line.startswith("lora,")]
    assert budget.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_trials_of_another_method_change_neither_cell_nor_budget(protocol, summary) -> None:
    before = cell_of(protocol)
    after = cell_of(tuned(summary, [*rows("dora", 0), *rows("lora", 3), *rows("soma", 1)]))
    assert after.digest == before.digest
    assert after.budget == before.budget


def test_nothing_to_learn_in_the_backbone_is_no_smaller_budget(summary) -> None:
    alone = rows("freeze", 1, grid=((None, 0.0), (None, 0.1)))
    protocol = tuned(summary, [*alone, *rows("lora", 0)])
    recipe = cell_of(protocol, "freeze").protocol.recipe
    assert (recipe.backbone_lr, recipe.weight_decay) == (1e-3, 0.1)
    assert cell_of(protocol, "freeze").budget.chosen == {"weight_decay": 0.1}


@pytest.mark.parametrize(
    ("found", "method", "seed", "words"),
    [
        (
            rows("lora", 0),
            "soma",
            0,
            r"no soma; other trials: python -m benchmarks tune toy --meth",
        ),
        (rows("lora", None), "lora", 0, "none of the 4 trials of lora gave a score"),
        (
            rows("lora", 0, version=2),
            "lora",
            0,
            "tuned under toy version 2, not under toy version 3",
        ),
        (rows("lora", 0), "lora", SEED, "seed 100 is one of its trials'"),
        (
            [*rows("lora", 0), *rows("soma", 0, grid=GRID[:2])],
            *("lora", 0, r"different grids or seeds \(4 and 2 runs\)"),
        ),
        ([*rows("lora", 0), *rows("soma", 0, seed=101)], "soma", 0, "different grids or seeds"),
    ],
)
def test_what_is_no_equal_budget_is_refused(found, method, seed, words, summary) -> None:
    with pytest.raises(UserError, match=words):
        cell_of(tuned(summary, found), method, seed)


def test_a_summary_that_is_none_is_refused(protocol, summary) -> None:
    text = summary.read_text()
    for broken, words in (
        (text.replace("miou", "ap50_voc07"), "line 2: no trial by mIoU: unknown key ap50_voc07"),
        (text.replace("40.0", "many", 1), "line 2: no trial by mIoU: score: "),
        (text.replace(",100", "", 1), "line 2: no trial by mIoU: seed: "),
        (
            text.replace(",100", ",100,7", 1),
            r"line 2: no trial by mIoU: unknown key \(value without a",
        ),
        ("", "trials cannot be read"),
        (text + "x" * 200_000, "trials cannot be read: field larger than field limit"),
    ):
        summary.write_text(broken)
        with pytest.raises(UserError, match=words):
            cell_of(protocol)
    summary.unlink()
    with pytest.raises(UserError, match="no trials to choose the recipe of lora from; make them"):
        cell_of(protocol)


def test_trials_leave_no_room_for_other_changes_of_the_mode() -> None:
    with pytest.raises(UserError, match="trials decide the recipe of this mode"):
        validate(Mode, {"trials": "a.csv", "recipe": {"lr": 1e-3}}, "mode")


def test_a_run_keeps_its_budget_and_another_record_has_no_word_of_it(
    summary, tmp_path, monkeypatch, one_thread
) -> None:
    task = FakeTask("fake_task")
    take_place(task, monkeypatch)
    plain = task_protocol()
    protocol = tuned(summary, rows("lora", 3, plain), plain)
    cell = cell_of(protocol)
    record = run.run_cell(cell, tmp_path, tmp_path)
    loaded = Record.load(tmp_path / cell.path)
    assert loaded.budget == record.budget == cell.budget
    assert loaded.recipe == "equal-budget"
    assert loaded.cell["recipe"]["backbone_lr"] == 2e-3
    controlled = make_cell(protocol, "lora", seed=0, data={})
    run.run_cell(controlled, tmp_path, tmp_path)
    assert "budget" not in json.loads((tmp_path / controlled.path).read_text())


def test_a_table_says_how_many_trials_there_were(protocol, tmp_path) -> None:
    found = []
    for method in BEST:
        cell = cell_of(protocol, method)
        found.append(
            toy_record(method, 0, cell=cell.resolved, recipe=cell.mode, budget=cell.budget)
        )
    request = Request(mode="equal-budget")
    table = tables.build(toy_table(tmp_path), protocol, found, Published({}, {}), request)
    notes = [note for note in table.notes if note.startswith("recipe chosen from")]
    assert notes == [
        "recipe chosen from 4 trials per method (backbone_lr 0.0001, 0.002 x weight_decay 0, 0.1) "
        "by mIoU on gtav_held_out, seed 100: lora, soma"
    ]
    assert not [note for note in build(tmp_path).notes if note.startswith("recipe chosen from")]


@pytest.mark.parametrize(("table", "profile"), [("table1", "mini"), ("table2", "mini")])
def test_the_committed_trials_chose_the_rates_of_the_controlled_recipe(table, profile) -> None:
    spec = load_table(table)
    shipped = spec.protocol(profile)
    for method in spec.methods:
        chosen = make_cell(shipped, method, seed=0, mode="equal-budget", data={})
        controlled = make_cell(shipped, method, seed=0, data={})
        if chosen.budget.backbone_lr:
            assert chosen.protocol.recipe.backbone_lr == controlled.protocol.recipe.backbone_lr
        assert chosen.budget.domain.endswith("held_out")
