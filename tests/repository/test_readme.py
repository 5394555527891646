"""The README shows the committed table, its picture and what it says; the table is complete."""

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


def test_picture_is_that_of_the_committed_records(script: ModuleType) -> None:
    assert script.picture() == script.PICTURE.read_text()
    assert script.PICTURE.stat().st_size < 60_000


def test_what_stands_above_where_to_go_next_is_short(script: ModuleType) -> None:
    assert len(script.README.read_text().split("## Where to go next")[0].split()) <= 500


def test_every_method_has_a_row(script: ModuleType) -> None:
    rows = script.table().splitlines()[4:-1]
    assert {row.split()[0] for row in rows} == {
        *("full", "freeze", "vpt", "lora", "dora", "pissa", "soma", "soma-release")
    }
