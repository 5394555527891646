"""Table files: strict keys, and published numbers that are found exactly once."""

from pathlib import Path

import pytest
from toy_records import build, row, toy_table

from benchmarks.errors import UserError
from benchmarks.report import spec as table_spec


def test_published_numbers_carry_their_source(tmp_path: Path) -> None:
    table = build(tmp_path)
    assert row(table, "full").published == {"cityscapes": ("63.7", "a"), "bdd100k": ("57.4", "a")}
    assert row(table, "soma").published == {}
    assert table.footnotes["a"].startswith("Rein (arXiv 2312.04265v1) Table 3: mIoU-19 on the real")


def test_published_row_that_is_not_in_the_file_is_one_line(tmp_path: Path) -> None:
    spec = toy_table(tmp_path).published
    wrong = spec.model_copy(update={"methods": {"full": ({"method": "Full FTT"},)}})
    with pytest.raises(UserError, match=r"published.csv: no row for full: .*Full FTT"):
        table_spec.published(wrong)


def test_published_selection_of_two_rows_is_refused(tmp_path: Path) -> None:
    spec = toy_table(tmp_path).published
    where = {key: value for key, value in spec.where.items() if key not in ("source", "head")}
    wrong = spec.model_copy(update={"where": where, "methods": {"full": ({"method": "Full FT"},)}})
    with pytest.raises(UserError, match="two rows for full"):
        table_spec.published(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("methods: []", "methods: "),
        ("referense: lora", "unknown key referense; did you mean 'reference'?"),
    ],
)
def test_wrong_table_file_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    toy_table(tmp_path)
    file = tmp_path / "toy_table.yaml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("methods:")]
    file.write_text("\n".join([*kept, text]))
    with pytest.raises(UserError) as caught:
        table_spec.load_table(file)
    assert str(caught.value).startswith(f"{file}: {expected}")


def test_shipped_tables_load_with_their_protocols_and_published_numbers() -> None:
    for path in table_spec.FOLDER.glob("*.yaml"):
        spec = table_spec.load_table(path.stem)
        assert spec.reference in (*spec.methods, *(() if spec.methods else [spec.reference]))
        for profile in spec.protocols:
            assert spec.protocol(profile).profile == profile
        table_spec.published(spec.published)
