"""The README shows the committed table, and the committed table is complete."""

import importlib.util
from types import ModuleType

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts/update_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_the_committed_table(script: ModuleType) -> None:
    assert script.updated() == script.README.read_text()


def test_sentence_about_the_verdicts_follows_the_records(script: ModuleType) -> None:
    rows = [("full", "worse"), ("freeze", None), ("vpt", "within 1 point"), ("a", "cannot tell")]
    rows = [{"method": method, "verdict": word} for method, word in [*rows, ("b", "worse")]]
    assert script.verdicts(rows, "freeze") == (
        "on Avg against freeze the records say: full and b are worse; vpt is within 1 point; "
        "of a they cannot tell"
    )
    assert script.verdicts(rows[1:2], "freeze").endswith("say: nothing")


def test_every_method_has_a_row(script: ModuleType) -> None:
    rows = script.table().splitlines()[4:-1]
    assert {row.split()[0] for row in rows} == {
        *("full", "freeze", "vpt", "lora", "dora", "pissa", "soma", "soma-release")
    }
