"""The command `verify`: what it prints, what it writes, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_voc import annotation, write_domain
from tiny_worlds import write_world

from benchmarks.__main__ import main
from benchmarks.data.cards import load_card

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `verify` on the data below `tmp_path`: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        words = map(str, ("verify", "--root", tmp_path, "--workers", 0, *argv))
        code = main([*words])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


def test_line_per_split_and_file(command: Command, tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "train", count=2)
    write_world(tmp_path, "bdd100k", "val", count=3)
    file = tmp_path / "found" / "bdd100k.json"
    code, out, err = command("bdd100k", "--partial", "--write", file)
    assert code == 0
    lines = out.splitlines()
    prints = {
        split: load_card("bdd100k").fingerprint(tmp_path, split) for split in ("train", "val")
    }
    assert lines[0].split() == ["split", "images", "edition", "size", "fingerprint"]
    assert lines[1] == f"train           2  no known edition  64x40   {prints['train']}"
    assert lines[2] == f"val             3  no known edition  64x40   {prints['val']}"
    assert lines[-1] == str(file)
    assert err.startswith("5 images in ")
    assert err.endswith(" images/s\n")
    assert err.count("\n") == 1  # no progress bar: this is no terminal
    written = json.loads(file.read_text())
    assert written["card"] == "bdd100k"
    assert {split: part["fingerprint"] for split, part in written["splits"].items()} == prints
    assert written["splits"]["val"]["images"] == 3
    assert len(written["splits"]["val"]["contents"]) == 64


def test_ten_faults_and_their_number(command: Command, tmp_path: Path) -> None:
    for name in write_world(tmp_path, count=14)[:12]:
        (tmp_path / f"gtav/labels/{name}.png").write_bytes(b"")
    code, out, err = command("gtav", "--partial", "--write", tmp_path / "found.json")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line.startswith("fault: ") for line in lines] == [False] + [True] * 10 + [False]
    assert lines[0].startswith("14 images in ")
    assert lines[-1] == (
        "error: gtav: faults: 12, shown above: 10, --write-faults FILE lists all; fix them and "
        "verify again"
    )
    assert not (tmp_path / "found.json").exists()


def test_written_faults_are_what_exclude_takes(command: Command, tmp_path: Path) -> None:
    names = write_world(tmp_path, count=14)
    for name in names[:12]:
        (tmp_path / f"gtav/labels/{name}.png").write_bytes(b"")
    (tmp_path / f"gtav/labels/{names[12]}.png").unlink()
    faults = tmp_path / "faults.txt"
    code, _, err = command("gtav", "--partial", "--write-faults", faults)
    assert code == 2
    assert f"faults: 13, shown above: 10, {faults} has all" in err
    lines = faults.read_text().splitlines()
    assert sum(line.startswith("# ") for line in lines) == 13
    assert {line for line in lines if not line.startswith("#")} == set(names[:13])
    code, out, _ = command("gtav", "--partial", "--exclude", faults)
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["train", "1"]
    assert command("gtav", "--partial", "--exclude", names[0])[0] == 2
    code, _, err = command("gtav", "--exclude", "zurich")
    assert code == 2
    assert "is called 'zurich'" in err


def test_number_of_images_is_a_fault(command: Command, tmp_path: Path) -> None:
    write_world(tmp_path)
    code, _, err = command("gtav")
    assert code == 2
    assert "train has 4 images, known are 24,966 (complete), 12,403 (official_train)" in err
    assert "accept them with --partial" in err


def test_notes_on_what_a_split_holds(command: Command, tmp_path: Path) -> None:
    write_domain(tmp_path, "night_clear", empty=[1])
    file = tmp_path / "diverseWeather/Night-Sunny/VOC2007/Annotations/night_clear-0000.xml"
    file.write_text(annotation())
    code, out, _ = command("sdgod", "--partial")
    assert code == 0
    assert "night_clear: list Night-Sunny/VOC2007/ImageSets/Main/train.txt sha256:" in out
    assert "night_clear: 2 images without boxes of any class" in out
    assert " boxes (bus " in out
    assert "dusk_rainy: left out: " in out
    write_world(tmp_path, count=1, size=(8, 8))  # a single block, of one class or void
    _, out, _ = command("gtav", "--partial")
    assert "train: no pixel of " in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["gtaw"], "unknown data set 'gtaw'; did you mean 'gtav'?"),
        (["bdd100k", "--split", "vall"], "bdd100k has no split 'vall'; did you mean 'val'?"),
        (["gtav"], "gtav: no such folder; GTAV (Playing for Data) is expected there"),
        (["gtav", "--root", "a" * 300], "gtav: no such folder; GTAV"),
        (["gtav", "--workers", "-1"], "--workers -1: input should be"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    argv: list[str], expected: str, command: Command, tmp_path: Path
) -> None:
    write_world(tmp_path, "bdd100k", "val", count=1)
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_verify_needs_a_root(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "gtav"]) == 2
    assert (
        capfd.readouterr().err
        == "error: Missing option '--root'; see python -m benchmarks verify --help\n"
    )
