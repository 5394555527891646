"""Table 2: two averages, the engine's name, and a refusal to mix engines."""

import re

import pytest
import toy_compare

from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.commands import arguments
from benchmarks.conformance import check
from benchmarks.conformance.check import Finding
from benchmarks.detection import engines
from benchmarks.errors import UserError
from benchmarks.record import Evaluation, Score
from benchmarks.report import spec as table_spec
from benchmarks.report import table as tables
from benchmarks.report.compare import _check_settings, with_engine_of
from benchmarks.report.formats import render
from benchmarks.report.records import load_records
from benchmarks.tasks import load_protocol

FIRST, SECOND = load_protocol("mini_sdgod").seeds[:2]
UNSEEN = ("night_clear", "dusk_rainy", "night_rainy", "daytime_foggy")
# Percent: held-out source, source test, then the unseen domains in order.
SCORES = {
    ("freeze", FIRST): (50, 48, 20, 30, 10, 40),
    ("freeze", SECOND): (52, 50, 22, 32, 12, 42),
    ("lora", FIRST): (55, 53, 30, 35, 15, 44),
    ("lora", SECOND): (57, 55, 32, 37, 17, 46),
}


@pytest.fixture(autouse=True)
def _without_detectron2(monkeypatch):
    monkeypatch.setattr(engines, "_is_here", lambda: False)


def evaluation(values):
    roles = ["validation", "source", *["target"] * 4]
    names = ["daytime_clear_held_out", "daytime_clear", *UNSEEN]
    scores = {
        name: Score(role=role, metrics={"AP50_voc07": float(value), "AP": 1.0}, images=160)
        for name, role, value in zip(names, roles, values, strict=True)
    }
    return Evaluation(iteration=load_protocol("mini_sdgod").recipe.iterations, domains=scores)


def records(engine="torchvision", keys=tuple(SCORES)):
    protocol = load_protocol("mini_sdgod").model_copy(update={"engine": "torchvision"})
    made = []
    for label, seed in keys:
        cell = make_cell(protocol, label, seed=seed, data={"night_clear": "f00d"})
        cell.resolved["engine"] = engine
        made.append(cell.record("done", evaluations=[evaluation(SCORES[label, seed])]))
    return made


def table(found, against=None):
    spec = table_spec.load_table("table2")
    protocol = spec.protocol("mini")
    published = table_spec.published(spec.published)
    return tables.build(spec, protocol, found, published, tables.Request(), against)


def row(built, label):
    return next(each for each in built.blocks[0].rows if each.label == label)


def test_the_average_is_over_unseen_domains_and_the_one_over_all_stands_apart():
    lora = row(table(records()), "lora")
    assert lora.scores["daytime_clear"].mean == 54
    assert lora.scores["avg"].mean == (31 + 32 + 33) / 3  # (30+35+15+44)/4 = 31, next seed 33
    assert lora.scores["avg_all"].mean == pytest.approx((177 / 5 + 187 / 5) / 2)
    assert lora.scores["source"].mean == 56
    assert lora.difference.mean == pytest.approx(31 - 25)


def test_columns_stand_in_the_order_of_the_paper():
    built = table(records())
    assert list(built.headings) == ["daytime_clear", *UNSEEN, "avg", "avg_all", "source"]
    assert built.headings["avg_all"] == "Avg of 5"
    header = render(built, "csv").splitlines()[0].split(",")
    assert [name for name in header if name.endswith("_mean")] == [
        f"{key}_mean" for key in built.headings
    ]


def test_a_seed_that_lacks_a_domain_counts_in_no_average():
    found = records()
    cut = found[3].evaluations[0].domains.copy()
    del cut["daytime_clear"]
    lacking = Evaluation(iteration=300, domains=cut)
    found[3] = found[3].model_copy(update={"evaluations": [lacking]})
    lora = row(table(found), "lora")
    assert (lora.scores["avg"].n, lora.scores["avg_all"].n) == (2, 1)


def test_every_table_names_its_engine_and_what_the_averages_are():
    text = render(table(records()), "md")
    assert "- engine of the detector: torchvision" in text
    assert "AP50_voc07 in percent" in text
    assert "Avg is over the 4 unseen domains; the average that includes Daytime-Clear" in text
    assert re.search(r"test size .*daytime_clear \d+x\d+, night_clear", text)
    assert "69.4" in text  # published, with its detector
    assert "Co-DETR" in text


def test_a_table_never_mixes_engines_and_says_what_to_run():
    keys = list(SCORES)
    mixed = [*records(keys=keys[:3]), *records("detectron2", keys[3:])]
    with pytest.raises(UserError) as caught:
        table(mixed)
    assert str(caught.value) == (
        "mini_sdgod: 3 records were made with engine torchvision, 1 with detectron2; tables never "
        "mix engines: say --engine torchvision, and run what is missing: python -m benchmarks "
        f"sweep table2 --engine torchvision --profile mini --methods lora --seeds {SECOND}"
    )


def test_engine_picks_the_records_that_were_made_with_it(tmp_path):
    for made in (*records(keys=list(SCORES)[:3]), *records("detectron2", list(SCORES)[3:])):
        made.write(tmp_path / made.path)
    held = load_records(tmp_path, "mini_sdgod", "controlled", "torchvision")
    assert len(held) == 3
    assert {record.cell["engine"] for record in held} == {"torchvision"}


def test_baselines_of_one_engine_say_which_a_comparison_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_is_here", lambda: True)  # installed after they were made
    for made in records():
        made.write(tmp_path / made.path)
    protocol = load_protocol("mini_sdgod")
    assert protocol.engine_here == "detectron2"
    chosen = with_engine_of(tmp_path, protocol, "controlled")
    assert chosen.engine_here == "torchvision"


def test_segmentation_has_no_engine_to_choose():
    protocol = load_protocol("mini_gtav")
    with pytest.raises(UserError, match="--engine torchvision: mini_gtav has no choice of them"):
        arguments.with_engine(protocol, "torchvision")


def test_records_of_another_engine_are_no_reference():
    built = table(records(), against=records("detectron2"))
    assert row(built, "lora").agreement is None
    assert "the committed records have engine detectron2" in built.notes[-1]
    same = table(records(), against=records())
    assert row(same, "lora").agreement.mean == 0


def test_a_comparison_asks_for_the_engine_of_its_baselines(tmp_path):
    protocol = load_protocol("mini_sdgod")
    (baseline,) = records("detectron2", [("lora", FIRST)])
    with pytest.raises(UserError, match="with engine detectron2, and here it is torchvision"):
        _check_settings(baseline, protocol, tmp_path, "mend")
    _check_settings(records(keys=[("lora", FIRST)])[0], protocol, tmp_path, "mend")


def test_columns_that_are_not_the_protocols_are_refused():
    spec = table_spec.load_table("table2")
    other = spec.model_copy(update={"sources": {}})
    with pytest.raises(UserError, match="sources: differ from the sources of mini_sdgod: daytime"):
        other.protocol("mini")


def test_table_1_has_one_average_and_no_engine():
    spec = table_spec.load_table("table1")
    assert list(spec.headings)[-2:] == ["avg", "source"]
    assert "avg_all" not in spec.headings


def test_compare_says_the_engine_and_sets_the_row_beside_the_baselines_of_table_2(
    tmp_path, monkeypatch, capfd
):
    reference = tmp_path / "reference"
    for record in records():
        folder = reference / record.protocol / record.placement / record.label
        record.write(folder / f"seed{record.seed}.json")
    monkeypatch.setattr("benchmarks.detection.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: {"night_clear": "f00d"})
    monkeypatch.setattr("benchmarks.run.run_cell", toy_compare.detected)
    monkeypatch.setattr(check, "KINDS", ("class token",))
    monkeypatch.setattr(check, "check_method", lambda *_: [Finding("fits", "pass", "well")])
    command = [
        "compare",
        "soma",
        "--table",
        "table2",
        "--seeds",
        f"{FIRST},{SECOND}",
        "--workers",
        "1",
    ]
    folders = ["--data-root", tmp_path, "--out", tmp_path / "runs", "--against", reference]
    assert main([*command, *map(str, folders)]) == 0
    out, err = capfd.readouterr()
    said = err.index("engine auto: torchvision, since Detectron2 is not installed here")
    assert said < err.index(f"soma seed {FIRST} (all): done")
    table, _, verdict = out.partition("# Verdict on soma (placement all)")
    assert ", engine torchvision; placement all\n" in table
    # soma has 65 and 66 on every unseen domain, freeze 25 and 27, lora 31 and 33 on average
    assert re.search(r"\| Avg +\| \+39\.50 \[", verdict)
    assert re.search(r"\| Avg +\| \+33\.50 \[", verdict)
    assert "Against lora, the best baseline on Avg:" in verdict
