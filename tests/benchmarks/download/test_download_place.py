"""Moving unpacked files into place: selection, no overwriting, knowing later what is there."""

from pathlib import Path

import pytest

from benchmarks.data.download_source import Archive
from benchmarks.download.unpack import is_placed, place
from benchmarks.errors import UserError


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def placed(tmp_path: Path, files: dict[str, bytes], **fields: object) -> dict[str, bytes]:
    """Put files into an empty or existing home; what lies there then."""
    home, unpacked = tmp_path / "home", tmp_path / "unpacked"
    for name, content in files.items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(content)
    home.mkdir(exist_ok=True)
    place(unpacked, home, Archive(name="a.zip", **fields), tmp_path / "note")
    assert is_placed(home, tmp_path / "note")
    return tree(home)


def test_a_leading_folder_is_left_out_where_it_is(tmp_path: Path) -> None:
    files = {"RAND/RGB/1": b"1", "GT/1": b"2"}
    assert placed(tmp_path, files, strip="RAND") == {"RGB/1": b"1", "GT/1": b"2"}


def test_only_what_belongs_to_the_data_set_is_placed(tmp_path: Path) -> None:
    files = {"gtFine/val/zurich/1": b"1", "README": b"2"}
    expected = {"labels/gtFine/val/zurich/1": b"1"}
    assert placed(tmp_path, files, only=("gtFine/*",), into="labels") == expected


def test_what_macos_adds_to_an_archive_stays_out(tmp_path: Path) -> None:
    files = {"a": b"1", "._a": b"2", "__MACOSX/._a": b"3"}
    assert placed(tmp_path, files) == {"a": b"1"}


def test_an_archive_without_what_is_wanted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.zip: holds no gtFine/\*"):
        placed(tmp_path, {"README": b"2"}, only=("gtFine/*",))


def test_the_same_file_stays_and_another_one_is_never_overwritten(tmp_path: Path) -> None:
    placed(tmp_path, {"a": b"1"})
    assert placed(tmp_path, {"a": b"1", "b": b"1"}) == {"a": b"1", "b": b"1"}
    with pytest.raises(UserError, match=r"a: is there with other content.*nothing was overwritten"):
        placed(tmp_path, {"a": b"2", "0": b"1"})
    assert tree(tmp_path / "home") == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize("content", [None, b"22"])
def test_what_is_gone_or_cut_off_is_not_in_place(tmp_path: Path, content: bytes | None) -> None:
    placed(tmp_path, {"a": b"1"})
    (tmp_path / "home" / "a").unlink()
    if content:
        (tmp_path / "home" / "a").write_bytes(content)
    assert not is_placed(tmp_path / "home", tmp_path / "note")
