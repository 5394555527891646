"""Tables from hand-made records, against committed texts; refusals; nothing is left out silently.

After a wanted change of the layout, this writes the texts anew:
PYTHONPATH=.:tests/support python tests/benchmarks/report/test_table.py
"""

import csv
import io
import json
from pathlib import Path

import pytest
from toy_records import (
    DATA,
    build,
    evaluation,
    row,
    toy_import,
    toy_protocol,
    toy_record,
    toy_records,
)

from benchmarks.errors import UserError
from benchmarks.record import Record, load_kept
from benchmarks.report import per_class
from benchmarks.report.formats import Layout, render
from benchmarks.report.notes import notes
from benchmarks.report.records import load_records, read_imported
from benchmarks.report.spec import load_table
from benchmarks.report.table import Table, one_placement, ordered, select, with_released

GOLDEN = {form: DATA / f"toy_table.{form}" for form in ("md", "csv", "tex")}


def golden(folder: Path) -> Table:
    """The toy table beside reference records in which lora was 0.4 better and soma is missing."""
    better = {
        0: evaluation(20, 42.0, 28.9, 26.4),
        1: evaluation(20, 42.5, 29.3, 26.6),
        2: evaluation(20, 42.1, 29.0, 26.9),
    }
    against = [
        toy_record(r.label, r.seed, evaluations=[better[r.seed]]) if r.label == "lora" else r
        for r in toy_records()
        if r.label != "soma"
    ]
    return build(folder, against=against)


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_table(form: str, tmp_path: Path) -> None:
    assert render(golden(tmp_path), form) == GOLDEN[form].read_text(encoding="utf-8")


def test_average_is_taken_per_seed_before_mean_and_deviation(tmp_path: Path) -> None:
    average = row(build(tmp_path), "soma").scores["avg"]
    # per seed (26.5 + 24.3) / 2 = 25.4 and (26.1 + 25.7) / 2 = 25.9
    assert average.mean == pytest.approx(25.65)
    assert average.sd == pytest.approx(0.5 / 2**0.5)
    assert average.n == 2


def test_difference_is_paired_with_the_reference_row(tmp_path: Path) -> None:
    found = row(build(tmp_path), "lora").difference
    # Avg of lora 27.25, 27.55, 27.55 minus 25.5, 25.7, 25.6 of freeze
    assert found.mean == pytest.approx((1.75 + 1.85 + 1.95) / 3)
    assert found.paired
    assert found.excludes_zero
    assert row(build(tmp_path), "freeze").difference is None
    assert row(build(tmp_path, reference="lora"), "freeze").difference.mean == -found.mean


def test_only_resolved_differences_are_bold(tmp_path: Path) -> None:
    lines = render(build(tmp_path), "md").splitlines()
    bold = {line.split("|")[1].strip() for line in lines if "**" in line}
    assert bold == {"full", "lora"}
    assert any("] within 1 point " in line for line in lines if line.startswith("| soma"))


def test_completeness_line_counts_failed_and_missing(tmp_path: Path) -> None:
    records = [r for r in toy_records() if (r.label, r.seed) not in {("lora", 1), ("lora", 2)}]
    line = build(tmp_path, records).blocks[0].completeness
    assert line == (
        "9/12 cells, 1 failed: soma seed 2: loss not finite at step 12, 2 missing: lora seed 1, 2"
    )


def test_row_of_failed_cells_says_failed_and_not_a_number(tmp_path: Path) -> None:
    failed = [
        toy_record("soma", seed, status="failed", reason="no memory", evaluations=[])
        for seed in (0, 1, 2)
    ]
    table = build(tmp_path, [r for r in toy_records() if r.label != "soma"] + failed)
    line = next(t for t in render(table, "md").splitlines() if t.startswith("| soma"))
    assert line.count("failed") >= 5
    flat = next(r for r in json.loads(render(table, "json")) if r["method"] == "soma")
    assert (flat["n"], flat["avg_mean"], flat["trainable"]) == (0, None, None)


def test_method_that_does_not_apply_says_so_with_its_reason(tmp_path: Path) -> None:
    refused = [
        toy_record("soma", seed, status="not_applicable", reason="no tokens", evaluations=[])
        for seed in (0, 1, 2)
    ]
    table = build(tmp_path, [r for r in toy_records() if r.label != "soma"] + refused)
    assert "3 not applicable: soma: no tokens" in table.blocks[0].completeness
    assert "| n/a" in render(table, "md")


def test_missing_row_is_a_dash_in_words_and_empty_in_csv(tmp_path: Path) -> None:
    table = build(tmp_path, [r for r in toy_records() if r.label != "soma"])
    line = next(t for t in render(table, "md").splitlines() if t.startswith("| soma"))
    assert line.count(" - ") >= 5
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    soma = next(r for r in rows if r["method"] == "soma")
    assert (soma["n"], soma["avg_mean"], soma["avg_sd"], soma["s_per_step"]) == ("0", "", "", "")


def test_csv_and_json_have_the_agreed_names_and_full_precision(tmp_path: Path) -> None:
    table = build(tmp_path)
    rows = json.loads(render(table, "json"))
    assert list(rows[0]) == [
        *("placement", "method", "n", "trainable", "s_per_step"),
        *("cityscapes_mean", "cityscapes_sd", "cityscapes_published"),
        *("bdd100k_mean", "bdd100k_sd", "bdd100k_published"),
        *("avg_mean", "avg_sd", "avg_published", "source_mean", "source_sd", "source_published"),
        *("difference", "difference_low", "difference_high", "verdict"),
        *("paired_low", "paired_high", "seeds", "digests", "records"),
    ]
    text = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert list(text[0]) == list(rows[0])
    lora = next(r for r in rows if r["method"] == "lora")
    assert lora["avg_mean"] == pytest.approx((27.25 + 27.55 + 27.55) / 3, abs=1e-12)
    assert (lora["cityscapes_published"], lora["avg_published"]) == (65.2, None)
    in_csv = next(r for r in text if r["method"] == "lora")
    assert in_csv["seeds"] == "0 1 2"
    assert in_csv["records"].split() == lora["records"]


def test_every_recorded_placement_gets_a_block(tmp_path: Path) -> None:
    late = toy_record("lora", 0, placement="last-two-thirds")
    records = [*toy_records(), late]
    assert [b.placement for b in build(tmp_path, records).blocks] == ["all", "last-two-thirds"]
    only = build(tmp_path, records, placements=("last-two-thirds",))
    assert [b.placement for b in only.blocks] == ["last-two-thirds"]
    with pytest.raises(UserError, match="no placement 'al'; did you mean 'all'"):
        build(tmp_path, records, placements=("al",))


def test_method_outside_the_table_gets_a_row_below(tmp_path: Path) -> None:
    table = build(tmp_path, [*toy_records(), toy_record("my_method.Mine", 0)])
    assert [r.label for r in table.blocks[0].rows][-1] == "my_method.Mine"
    assert table.blocks[0].completeness.startswith("12/15 cells")


def test_records_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    table = build(tmp_path, seeds=(0, 1), methods=("full", "lora"))
    assert table.blocks[0].completeness == "4/4 cells"
    assert any(note.startswith("8 other records") for note in table.notes)


def test_a_further_seed_counts_once_every_row_has_it(tmp_path: Path) -> None:
    more = [
        toy_record(label, 7, evaluations=[evaluation(20, 42.0, 28.9, 26.4)])
        for label in dict.fromkeys(r.label for r in toy_records())
    ]
    table = build(tmp_path, [*toy_records(), *more])
    assert table.seeds == (0, 1, 2, 7)
    assert row(table, "full").scores["avg"].n == 4
    of_one_row = build(tmp_path, [*toy_records(), *more[:-1]])
    assert of_one_row.seeds == (0, 1, 2)
    assert any(note.startswith("3 other records") for note in of_one_row.notes)
    # A second placement with the protocol's seeds alone keeps both blocks to them.
    late = toy_record("lora", 0, placement="last-two-thirds")
    assert build(tmp_path, [*toy_records(), *more, late]).seeds == (0, 1, 2)


def test_notes_list_what_differs_between_rows(tmp_path: Path) -> None:
    cell = toy_record("lora", 0).cell
    note = next(n for n in build(tmp_path).notes if n.startswith("recipe mode: controlled"))
    assert cell["recipe"]["backbone_lr"] == 0.003
    assert note.endswith("differences between rows: lora: backbone_lr 0.003, rank 2")


def test_notes_name_halved_domains(tmp_path: Path) -> None:
    protocol = toy_protocol()
    city, bdd = protocol.targets
    halved = [city.model_copy(update={"halve": "jpeg"}), bdd.model_copy(update={"halve": "pixels"})]
    changed = protocol.model_copy(update={"targets": tuple(halved)})
    lines = notes(changed, load_table("table1"), "controlled", ("last",), [], 0)
    size = next(line for line in lines if line.startswith("test size"))
    assert size.endswith(
        "cityscapes 96x160 (halved first, as JPEG), bdd100k 90x160 (stretched) (halved first)"
    )


def test_selection_rules_are_pure_functions_of_the_evaluations() -> None:
    evaluations = [
        evaluation(30, 40.0, 20.0, 20.0),
        evaluation(10, 41.0, 26.0, 24.0),
        evaluation(20, 43.0, 21.0, 23.0),
        evaluation(25, 43.0, 26.0, 24.0),
    ]
    chosen = {r: select(evaluations, r, "mIoU") for r in ("last", "source-val", "target-oracle")}
    assert {rule: found.iteration for rule, found in chosen.items()} == {
        "last": 30,
        "source-val": 20,  # the earliest of equals
        "target-oracle": 10,
    }
    assert select([], "last", "mIoU") is None
    with pytest.raises(UserError, match="no selection rule 'lst'; did you mean 'last'"):
        select(evaluations, "lst", "mIoU")


def test_target_oracle_is_never_shown_alone(tmp_path: Path) -> None:
    table = build(tmp_path, selections=("target-oracle",))
    assert [block.selection for block in table.blocks] == ["last", "target-oracle"]
    assert row(table, "lora", block=1).scores["avg"].mean == pytest.approx(28.0)  # iteration 10
    assert any("an upper bound, not a result" in note for note in table.notes)
    assert {r["selection"] for r in json.loads(render(table, "json"))} == {"last", "target-oracle"}


def test_latex_escapes_what_latex_reads_as_commands(tmp_path: Path) -> None:
    failed = toy_record("lora", 1, status="failed", reason="50% of a_b & c", evaluations=[])
    text = render(build(tmp_path, [failed]), "tex")
    assert r"50\% of a\_b \& c" in text


if __name__ == "__main__":
    import tempfile

    for form, path in GOLDEN.items():
        path.write_text(render(golden(Path(tempfile.mkdtemp())), form), encoding="utf-8")


def test_a_row_with_a_set_field_is_noted_with_its_own_value(tmp_path: Path) -> None:
    plain = toy_record("lora", 0)
    fields = {"name": "lora", "fields": {"rank": 4, "start_block": 0}}
    changed = toy_record("lora", 0, cell=plain.cell | {"method": fields})
    changed = changed.model_copy(update={"label": "lora+12ab"})
    (note,) = [n for n in build(tmp_path, [plain, changed]).notes if n.startswith("recipe mode")]
    assert "lora+12ab: backbone_lr 0.003, rank 4" in note
    assert "lora: backbone_lr 0.003, rank 2" in note


def test_a_difference_of_fewer_pairs_than_seeds_says_so(tmp_path: Path) -> None:
    without = [r for r in toy_records() if (r.label, r.seed) != ("freeze", 2)]
    text = render(build(tmp_path, without), "md")
    (line,) = [line for line in text.splitlines() if line.startswith("| lora ")]
    assert "better (2 pairs)" in line


def test_agreement_without_equal_seeds_is_welch_and_is_not_called_paired(tmp_path: Path) -> None:
    mine = [toy_record("freeze", seed) for seed in (0, 1)]
    moved = [toy_record("freeze", 2), toy_record("freeze", 3, evaluations=mine[0].evaluations)]
    text = render(build(tmp_path, mine, moved), "md")
    assert "(Welch)" in text
    (note,) = [line for line in text.splitlines() if line.startswith("- agreement")]
    assert "paired by seed" not in note


def test_table_counts_its_words_and_says_what_they_rest_on(tmp_path: Path) -> None:
    text = render(build(tmp_path), "md")
    assert "Avg - freeze: 1 better, 1 worse, 1 within 1 point; the 95 % intervals of 3" in text
    assert "noise of 4 rows with 5 degrees of freedom" in text
    single = render(build(tmp_path, seeds=(0,)), "md")
    assert "Avg - freeze: 3 without two seeds in common" in single
    assert "+1.8 one seed" in single


def test_rows_keep_their_difference_where_the_reference_row_is_not_shown(tmp_path: Path) -> None:
    whole = row(build(tmp_path), "lora")
    assert whole.difference is not None
    table = build(tmp_path, methods=("lora", "soma", "lora"))
    assert [shown.label for shown in table.blocks[0].rows] == ["lora", "soma"]
    narrower = row(table, "lora").difference  # two comparisons instead of three
    assert narrower.mean == whole.difference.mean
    assert whole.difference.low < narrower.low < narrower.high < whole.difference.high


@pytest.mark.parametrize("asked", [{"methods": ("somma",)}, {"reference": "somma"}])
def test_a_row_that_nobody_knows_is_refused(asked: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row 'somma'; did you mean 'soma'"):
        build(tmp_path, **asked)


def test_packages_that_differ_between_records_are_named(tmp_path: Path) -> None:
    records = toy_records()
    packages = records[0].environment.packages | {"torch": "2.13.0"}
    environment = records[0].environment.model_copy(update={"packages": packages})
    records[0] = records[0].model_copy(update={"environment": environment})
    (line,) = [line for line in build(tmp_path, records).notes if "packages differ" in line]
    assert "torch 2.13.0 (1) and none (10)" in line
    assert not [line for line in build(tmp_path).notes if "packages differ" in line]


def test_instruction_sets_that_differ_between_records_of_cpus_are_named(tmp_path: Path) -> None:
    records = [
        record.model_copy(
            update={"environment": record.environment.model_copy(update={"gpu": None} | made)}
        )
        for record, made in zip(
            toy_records(),
            [
                {"instruction_set": {"torch": "AVX2", "MKL_CBWR": "AVX2"}},
                {"instruction_set": {"torch": "AVX512"}, "gpu": "a GPU"},
                *[{}] * (len(toy_records()) - 2),
            ],
            strict=True,
        )
    ]
    (line,) = [line for line in build(tmp_path, records).notes if "instruction sets" in line]
    assert line.endswith("between records: torch AVX2, MKL_CBWR AVX2 (1) and not recorded (9)")
    assert not [line for line in build(tmp_path).notes if "instruction sets" in line]


def test_pairs_say_who_differs_from_whom(tmp_path: Path) -> None:
    table = build(tmp_path, pairs=True)
    lines = [line for line in render(table, "md").splitlines() if line.startswith("| lora ")]
    assert [cell.strip() for cell in lines[1].strip("|").split("|")] == [
        *("lora", "full, freeze, soma", "-", "-", "-")
    ]
    assert "Avg, all pairs of rows: " in render(table, "md")
    assert "better than" in render(table, "tex")
    pairs = json.loads(render(table, "json"))
    assert len(pairs) == 6
    (found,) = [p for p in pairs if (p["method"], p["other"]) == ("freeze", "lora")]
    assert found["verdict"] == "worse"
    assert found["difference_high"] < 0
    assert len(list(csv.DictReader(io.StringIO(render(table, "csv"))))) == 6


def test_machine_readable_rows_carry_the_word(tmp_path: Path) -> None:
    table = build(tmp_path)
    rows = {each["method"]: each for each in json.loads(render(table, "json"))}
    assert rows["freeze"]["verdict"] is None
    assert rows["lora"]["verdict"] == "better"
    assert rows["lora"]["difference_low"] == row(table, "lora").difference.low
    assert rows["lora"]["paired_low"] == row(table, "lora").paired.low
    assert "agreement" not in rows["lora"]


def test_released_weights_are_a_row_of_their_own_outside_of_all_differences(tmp_path: Path) -> None:
    plain, record = golden(tmp_path), toy_import()
    made = with_released(plain, [record], ())
    assert made.blocks[:-1] == plain.blocks
    (row,) = made.blocks[-1].rows
    assert (row.label, row.scores["avg"].mean, row.difference) == ("soma_best", 85.0, None)
    assert [block.released for block in one_placement(made).blocks] == [False, True]
    for form in ("text", "md", "csv", "tex", "html", "json"):
        text = render(ordered(made, "avg"), form)
        assert "soma_best" in text or "soma\\_best" in text, form
        assert "chosen by the authors on the targets" in text, form
    (block,) = per_class.blocks(made, "cityscapes")  # what has no scores per class is left out
    assert block[0] == made.blocks[0]
    assert with_released(plain, [record], ("lora",)) == plain
    alone = with_released(plain, [record], ("soma_best",), alone=True)
    assert alone.blocks == made.blocks[-1:]
    rows = json.loads(render(made, "json"))
    assert [row["records"] for row in rows if row["method"] == "soma_best"] == [[str(record.path)]]
    assert f"soma_best  {record.path}" in render(made, "text", Layout(paths=True))
    for form in ("text", "md", "tex"):  # nothing of runs, seeds and differences
        shown = render(alone, form)
        assert not {"freeze", "verdict", "n"} & {*shown.partition("toy profile")[0].split()}, form
        assert "Bold" not in shown, form
    twice = with_released(plain, [record, toy_import(sha256="6" * 64)], ()).blocks[-1].rows
    assert [row.label for row in twice] == ["soma_best 55555555", "soma_best 66666666"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol_version": 2}, "made under toy version 2"),
        ({"cell": {"protocol": {"name": "toy"}}}, "made under other settings of toy"),
        ({"data": {"bdd100k": "other"}}, r"other data than the records of the table \(bdd100k\)"),
    ],
)
def test_released_weights_of_another_protocol_or_data_are_refused(
    changes: dict, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        with_released(golden(tmp_path), [toy_import(**changes)], ())


def test_imported_records_are_read_apart_and_edits_of_them_refused(tmp_path: Path) -> None:
    record = toy_import()
    path = tmp_path / record.path
    assert str(record.path) == "toy/imported/soma_best/5555555555555555.json"
    record.check()
    record.write(path)
    assert read_imported([tmp_path, tmp_path], "toy") == {path: record}
    assert load_records(tmp_path, "toy", "controlled") == []
    assert load_kept(path) == record
    with pytest.raises(UserError, match="scores of released weights, no run of this suite"):
        Record.load(path)
    toy_import(rank=8).write(path)
    with pytest.raises(UserError, match="rank is 8, its cell says 16; delete it and import the"):
        read_imported([tmp_path], "toy")
    record.write(path.with_stem("0" * 16))
    with pytest.raises(UserError, match="belongs at"):
        read_imported([tmp_path], "toy")
