"""`tune`: the same trials for every method on held-out source data, and what is chosen of them."""

import csv
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_tune
from paths import ROOT
from toy_records import DATA, FINGERPRINTS, toy_protocol

from benchmarks import trials, tuning
from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.detection import engines
from benchmarks.errors import UserError
from benchmarks.report import statistics
from benchmarks.tasks import load_protocol
from benchmarks.trials import Trial

RATES = (1e-4, 1e-3, 3e-3, 1e-1)
SEED = 100


def trial(method="lora", rate=1e-3, score=40.0, **changes):
    fields = {"protocol": "toy", "version": 3, "domain": "gtav_held_out", "seed": SEED}
    row = {"method": method, "backbone_lr": rate, "weight_decay": 0.05, "score": score}
    return Trial(**(fields | row | changes))


def tune(folder: Path, methods: str, *more: object) -> int:
    argv = [
        *("tune", DATA / "toy.yaml", "--methods", methods, "--rates", "1e-4,1e-3,3e-3,1e-1"),
        *("--data-root", folder, "--out", folder / "runs", "--workers", 1, "--seeds", SEED, *more),
    ]
    return main([str(argument) for argument in argv])


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for trials of the toy protocol, none of which may know of a target."""

    def fingerprints(protocol, data_root):
        assert list(protocol.scored["target"]) == []
        return FINGERPRINTS

    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", fingerprints)
    monkeypatch.setattr("benchmarks.run.run_cell", toy_tune.trained)
    monkeypatch.setattr("benchmarks.protocol.TRIALS", str(tmp_path / "trials"))
    return tmp_path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials" / "toy.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_trial_is_run_once_and_the_rows_of_other_methods_stay(toy, capsys) -> None:
    assert tune(toy, "lora,freeze") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[:2]] == [
        ["lora", "backbone_lr", "0.001", "weight_decay", "0.05", "mIoU", "42.50"],
        ["freeze", "backbone_lr", "-", "weight_decay", "0.05", "mIoU", "42.50"],
    ]
    assert out[2] == str(toy / "trials" / "toy.csv")
    beside = [line.split() for line in out[6:]]
    assert beside == [
        ["lora", "0.0001", "0.05", "30.00", "-12.50", "one", "seed"],
        ["lora", "0.001", "0.05", "42.50", "chosen"],
        ["lora", "0.003", "0.05", "42.50", "+0.00", "one", "seed"],
        ["lora", "0.1", "0.05", "-", "-", "-"],
        ["freeze", "-", "0.05", "42.50", "chosen"],
    ]
    first = rows(toy)
    of_lora = [row for row in first if row["method"] == "lora"]
    assert [row["miou"] for row in of_lora] == ["30.0", "42.5", "42.5", ""]
    assert [row["chosen"] for row in of_lora] == ["0", "1", "0", "0"]  # the first of equals
    assert [row["backbone_lr"] for row in first if row["method"] == "freeze"] == [""]
    assert len((toy / "log").read_text().splitlines()) == 4 + 1  # nothing of freeze has a rate
    assert tune(toy, "soma,lora") == 0
    log = (toy / "log").read_text().splitlines()
    assert len(log) == 5 + 4
    assert {re.split("[+ ]", line)[0] for line in log[5:]} == {"soma"}
    methods = [row["method"] for row in rows(toy)]
    assert methods == ["freeze", *["soma"] * 4, *["lora"] * 4]
    assert [row for row in rows(toy) if row["method"] == "lora"] == of_lora


def test_two_runs_that_end_together_keep_the_rows_of_both(toy, monkeypatch) -> None:
    read, path = trials.read, toy / "trials" / "toy.csv"
    assert tune(toy, "lora,soma,freeze") == 0
    path.unlink()

    def slow(*arguments):
        held = read(*arguments)
        time.sleep(0.3)
        return held

    monkeypatch.setattr(trials, "read", slow)
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda method: tuning.update(
                    path,
                    toy_protocol(),
                    [replace(cell, data=FINGERPRINTS) for cell in cells(method)],
                    toy / "runs",
                ),
                ("freeze", "lora", "soma"),
            )
        )
    assert {row["method"] for row in rows(toy)} == {"freeze", "lora", "soma"}


def test_a_method_whose_trials_all_fail_is_said_and_not_chosen(toy, capsys) -> None:
    assert tune(toy, "lora", "--rates", "1e-1,2e-1") == 1
    err = capsys.readouterr().err
    assert "lora: none of its trials gave a score: loss not finite at step 3" in err
    assert [row["chosen"] for row in rows(toy)] == ["0", "0"]


def test_other_trials_are_judged_beside_the_chosen_one_in_the_words_of_tables() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 3, 4))
    rates = {1e-4: -5.0, 1e-3: 0.0, 3e-3: 0.1}
    given = [
        trial(method, rate, 40 + change + noise[m, r, s], seed=100 + s)
        for m, method in enumerate(("lora", "soma"))
        for r, (rate, change) in enumerate(rates.items())
        for s in range(4)
    ]
    chosen = [one.model_copy(update={"chosen": one.backbone_lr == 1e-3}) for one in given]
    lines = [line.split(maxsplit=3) for line in tuning.judged(chosen, "mIoU").splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        [method, f"{rate:g}"] for method in ("lora", "soma") for rate in rates
    ]
    for worse, best, close in (lines[:3], lines[3:]):
        assert re.fullmatch(r"3[45]\.\d\d +-[45]\.\d\d \[-.*, -.*\] +worse", worse[3])
        assert best[3].split()[1:] == ["chosen"]
        assert close[3].endswith("within 1 point")
    # All pairs of a method's trials hold together, for the scores themselves chose the best.
    wide = float(re.search(r"\[(-[\d.]+),", lines[0][3])[1])
    values: dict = {}
    for one in given:
        values.setdefault((one.method, one.backbone_lr), {})[one.seed] = one.score
    alone = statistics.judge(values, [(("lora", 1e-4), ("lora", 1e-3))])
    (single,) = alone.differences.values()
    assert wide < single.low - 0.05


def test_equals_failures_and_methods() -> None:
    given = [
        *(trial("a", 1e-4, None), trial("a", 1e-3, 2.0), trial("a", 3e-3, 2.0)),
        *(trial("b", 1e-4, 3.0), trial("b", 1e-3, 2.0, chosen=True)),
        trial("c", 1e-4, None),
    ]
    assert [each.chosen for each in trials.choose(given)] == [
        False,
        True,
        False,
        True,
        *[False] * 2,
    ]


def test_of_trials_within_a_point_of_the_best_the_smallest_rate_is_chosen() -> None:
    given = [
        *(trial(rate=1e-2, score=42.5), trial(rate=1e-4, score=40.9)),
        *(trial(rate=3e-3, score=41.8), trial(rate=1e-3, score=41.6)),
    ]
    assert [run.backbone_lr for run in trials.choose(given) if run.chosen] == [1e-3]


def test_a_trial_is_as_good_as_its_mean_over_the_seeds() -> None:
    given = [
        *(trial(rate=1e-4, score=44.0), trial(rate=1e-4, score=38.0, seed=101)),
        *(trial(rate=1e-3, score=43.0), trial(rate=1e-3, score=42.0, seed=101)),
        *(trial(rate=3e-3, score=60.0), trial(rate=3e-3, score=None, seed=101)),
    ]
    assert [run.chosen for run in trials.choose(given)] == [False] * 2 + [True] * 2 + [False] * 2


def test_both_seeds_of_a_trial_are_run_and_printed(toy, capsys) -> None:
    assert tune(toy, "freeze", "--seeds", "100,101") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("mIoU 42.50 (42.50, 42.50)")
    assert [(row["seed"], row["chosen"]) for row in rows(toy)] == [("100", "1"), ("101", "1")]


def cells(method: str = "soma", rates: tuple = RATES, decays: tuple = ()) -> list:
    return tuning.cells(tuning.source_only(toy_protocol()), method, rates, decays, (SEED,))


def test_weight_decay_of_the_protocol_is_the_same_trial_given_or_not() -> None:
    grid = cells(decays=(0.0, 0.05))
    assert len(grid) == 2 * len(RATES)
    assert {cell.protocol.recipe.weight_decay for cell in grid} == {0.0, 0.05}
    named = [cell for cell in grid if cell.protocol.recipe.weight_decay == 0.05]
    assert named == cells()


def test_every_method_has_the_same_grid() -> None:
    grids = [
        [
            (cell.protocol.recipe.backbone_lr, cell.protocol.recipe.weight_decay)
            for cell in cells(method, decays=(0.0, 0.1))
        ]
        for method in ("soma", "lora", "full")
    ]
    assert grids[0] == grids[1] == grids[2]
    of_freeze = cells("freeze", decays=(0.0, 0.1))
    assert [cell.protocol.recipe.weight_decay for cell in of_freeze] == [0.0, 0.1]


@pytest.mark.parametrize("name", ["mini_gtav", "mini_sdgod"])
def test_trials_of_the_written_source_protocols_stay_theirs(name, monkeypatch) -> None:
    monkeypatch.setattr(engines, "_is_here", lambda: False)
    (derived,) = tuning.cells(tuning.source_only(load_protocol(name)), "soma", (3e-3,), (), (SEED,))
    changes = {"recipe": {"backbone_lr": 3e-3}}
    written = make_cell(
        load_protocol(f"{name}_source"), "soma", seed=SEED, changes=changes, data={}
    )
    derived = replace(derived, data={})
    assert (derived.digest, derived.path) == (written.digest, written.path)


def test_images_left_out_of_a_source_are_left_out_of_its_trials(toy, monkeypatch) -> None:
    read = []

    def fingerprints(protocol, data_root):
        read.extend((*protocol.source, *protocol.scored_domains))
        return FINGERPRINTS

    monkeypatch.setattr("benchmarks.cell.fingerprints", fingerprints)
    assert tune(toy, "lora", "--set", "data.gtav.exclude=[a, b]") == 0
    assert {domain.domain: domain.exclude for domain in read} == dict.fromkeys(
        ("gtav", "gtav_held_out"), ("a", "b")
    )


def test_set_of_tune_is_of_the_data_alone(toy, capsys) -> None:
    assert tune(toy, "lora", "--set", "recipe.lr=1") == 2
    assert "--set of tune takes data.DOMAIN.exclude=NAMES" in capsys.readouterr().err


def test_refuses_what_would_not_be_a_choice(toy, capsys) -> None:
    blind = toy_protocol().model_copy(update={"validation": ()})
    with pytest.raises(UserError, match="toy: no validation domain to choose on"):
        tuning.source_only(blind)
    for more, words in (
        (("--seeds", 2), "--seeds 2: a seed of the tables"),
        (("--rates", "fast"), "--rates fast: expected numbers"),
        (("--rates", "-1"), "backbone_lr"),
        (("--rates", ""), "no trials: give --methods, --rates and --seeds"),
    ):
        assert tune(toy, "soma", *more) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not (toy / "log").exists()


def test_the_committed_summary_of_the_mini_profile_is_one() -> None:
    path = ROOT / "results" / "trials" / "mini_gtav.csv"
    found, _ = trials.read(path, "mIoU")
    assert trials.choose(found) == found
    protocol = load_protocol("mini_gtav")
    for each in (each for each in found if each.chosen and each.backbone_lr is not None):
        recipe = protocol.recipe_for(each.method, "controlled")
        assert (recipe.backbone_lr, recipe.weight_decay) == (each.backbone_lr, each.weight_decay)
