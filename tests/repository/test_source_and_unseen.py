"""The three questions to Table 1, on numbers whose answers are known."""

import importlib.util

import pytest
from paths import ROOT

from benchmarks.report.spec import AVERAGE, SOURCE


def test_the_best_of_the_others_and_their_mean_are_taken_per_column() -> None:
    path = ROOT / "scripts/source_and_unseen.py"
    spec = importlib.util.spec_from_file_location("questions", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    values = {
        "freeze": {SOURCE: {5: 20.0, 6: 21.0}, AVERAGE: {5: 10.0, 6: 11.0}},
        "full": {SOURCE: {5: 34.0, 6: 36.0}, AVERAGE: {5: 9.0, 6: 11.0}},
        "lora": {SOURCE: {5: 30.0, 6: 31.0}, AVERAGE: {5: 12.0, 6: 14.0}},
        "dora": {SOURCE: {5: 33.0, 6: 33.0}, AVERAGE: {5: 11.0, 6: 11.0}},
    }
    made = script.questions(values)
    assert {question: result.mean for question, result in made.items()} == {
        "held-out source: full - dora": pytest.approx(2.0),
        "unseen: full - lora": pytest.approx(-3.0),
        "unseen: mean of the others - freeze": pytest.approx(1.5),
    }
