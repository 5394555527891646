"""Sentences about a table: their numbers and words are those of the judgement, or there is none."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_records import toy_records, toy_table

from benchmarks.report import findings, spec
from benchmarks.report.spec import AVERAGE, SOURCE
from benchmarks.report.statistics import Difference, judge, verdict
from benchmarks.report.table import Request, build

NOISE = (-0.05, 0.0, 0.05)


def values(**means: tuple[float, float]) -> findings.Columns:
    """Row -> (source, unseen), three seeds with little noise that differs from row to row."""
    made = {}
    for place, (label, pair) in enumerate(means.items()):
        noise = NOISE[place % 3 :] + NOISE[: place % 3]
        columns = zip((SOURCE, AVERAGE), pair, strict=True)
        made[label] = {key: dict(enumerate(mean + n for n in noise)) for key, mean in columns}
    return made


def on_source(rows: findings.Columns) -> str | None:
    return findings.best_on_source(rows, every_pair(rows))


def on_unseen(rows: findings.Columns, reference: str) -> str | None:
    return findings.best_unseen(rows, every_pair(rows), reference)


def every_pair(rows: findings.Columns) -> findings.Differences:
    averages = {label: own[AVERAGE] for label, own in rows.items()}
    return judge(averages, [*permutations(rows, 2)]).differences


@pytest.mark.parametrize(
    ("full", "said"),
    [
        ((60.0, 30.0), "worse than all 2 other rows (-10.0 [-10.2, -9.8] to freeze)"),
        ((60.0, 45.0), "better than all 2 other rows"),
        ((60.0, 39.5), "worse than freeze (-0.5 [-0.7, -0.3]) and better than lora"),
        ((60.0, 39.0), "worse than freeze (-1.0 [-1.2, -0.8])"),
        ((60.05, 40.0), "better than lora"),
    ],
)
def test_the_leader_on_the_source_is_followed_to_unseen_domains(
    full: tuple[float, float], said: str
) -> None:
    rows = values(full=full, freeze=(50.0, 40.0), lora=(55.0, 39.0))
    sentence = on_source(rows)
    assert sentence == (
        f"On held-out images of the source full scores highest ({full[0]:.1f}), better than all 2 "
        f"other rows; on unseen domains it is {said}"
    )


def test_what_the_records_do_not_support_is_not_said() -> None:
    rows = values(full=(50.0, 40.0), freeze=(50.01, 40.0), lora=(50.0, 40.02))
    assert on_source(rows) is None
    assert on_unseen(rows, "freeze") is None
    one_seed = {k: {c: {0: v[c][0]} for c in v} for k, v in values(a=(9, 9), b=(1, 1)).items()}
    assert on_source(one_seed) is None
    assert on_unseen(one_seed, "b") is None
    without_source = {label: {SOURCE: {}, AVERAGE: row[AVERAGE]} for label, row in rows.items()}
    assert on_source(without_source) is None
    assert findings.against({"full": Difference(1.0, None, None, 1, True)}, "freeze") is None
    assert findings.against({}, "freeze") is None


def test_the_leader_on_unseen_domains_is_named_with_whom_it_beats() -> None:
    rows = values(full=(60.0, 30.0), freeze=(50.0, 40.0), lora=(55.0, 40.02))
    assert on_unseen(rows, "freeze") == (
        "On unseen domains lora has the highest mean (40.0): better than full; of freeze the "
        "records cannot tell"
    )
    assert on_unseen(rows, "lora") is None  # `against` says it


def test_differences_from_the_reference_follow_the_verdicts() -> None:
    ends = {"full": (-3, -1), "a": (-2, 2), "b": (-3, -2), "vpt": (-0.1, 0.1), "c": (1, 2)}
    results = {
        k: Difference((low + high) / 2, low, high, 3, True) for k, (low, high) in ends.items()
    }
    assert findings.against({**results, "freeze": None}, "freeze") == (
        "Against freeze, on unseen domains: c is better; full and b are worse; vpt is within 1 "
        "point; of a the records cannot tell"
    )


def test_long_lists_of_what_is_not_known_are_a_number() -> None:
    results = {f"row{n}": Difference(0.0, -2.0, 2.0, 3, True) for n in range(7)}
    start = "Against freeze, on unseen domains: "
    assert findings.against(results, "freeze") == start + "of the 7 rows the records cannot tell"
    results["full"] = Difference(-3.0, -4.0, -2.0, 3, True)
    assert findings.against(results, "freeze") == (
        start + "full is worse; of the other 7 rows the records cannot tell"
    )


def test_no_sentence_contradicts_the_table() -> None:
    """A row that the table tells from the reference, and that all pairs together do not."""
    others = {label: (50.0, 39.0) for label in ("full", "soma", "vpt", "dora", "pissa")}

    def judged(mean: float) -> tuple[findings.Columns, findings.Differences, findings.Differences]:
        rows = values(freeze=(50.0, 40.0), lora=(50.0, mean), **others)
        averages = {label: own[AVERAGE] for label, own in rows.items()}
        one = judge(averages, [(label, "freeze") for label in rows if label != "freeze"])
        return rows, one.differences, every_pair(rows)

    ends = [results["lora", "freeze"].high for results in judged(40.0)[1:]]
    rows, table, pairs = judged(40.0 + sum(ends) / 2)
    assert verdict(table["lora", "freeze"]) == "better"
    assert verdict(pairs["lora", "freeze"]) != "better"
    made = [
        SimpleNamespace(label=k, difference=table.get((k, "freeze")), baseline=k == "freeze")
        for k in rows
    ]
    unseen, said = findings.findings(SimpleNamespace(values=rows, rows=made))
    assert unseen.startswith("On unseen domains lora has the highest mean (40.")
    assert unseen.endswith("better than all 6 other rows")
    assert "lora is better" in said


def test_gains_are_those_of_the_table(tmp_path: Path) -> None:
    table = toy_table(tmp_path)
    protocol = table.protocol("toy")
    block = build(
        table, protocol, toy_records(), spec.published(table.published), Request()
    ).blocks[0]
    points = findings.gains(block)
    unseen = {p["method"]: p["mean"] for p in points if p["where"] == "unseen domains"}
    rows = {row.label: row for row in block.rows if row.difference}
    assert unseen == {k: pytest.approx(row.difference.mean, abs=6e-4) for k, row in rows.items()}
    assert [*unseen] == sorted(unseen, key=lambda label: -unseen[label])
    source = {p["method"]: p["mean"] for p in points if p["where"] == "held-out source"}
    base = block.values[findings.baseline(block)][SOURCE]
    whole = [label for label in source if block.values[label][SOURCE].keys() == base.keys()]
    assert len(whole) >= 2
    for label in whole:
        own = block.values[label][SOURCE]
        mean = sum(own[seed] - base[seed] for seed in base) / len(base)
        assert source[label] == pytest.approx(mean, abs=6e-4)
