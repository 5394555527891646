"""Verification of data sets with labels: every fault is named, and a sound set is described."""

import hashlib
import os
import re
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_worlds import write_world

from benchmarks import verify as verification
from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.verify import Report, verify

SIZE = (40, 64)


def check(root: Path, card: str = "gtav", split: str = "train", workers: int = 0) -> Report:
    return verify(load_card(card), root, (split,), workers, partial=True)


def test_sound_split_is_described(tmp_path: Path) -> None:
    write_world(tmp_path, count=3)
    write_world(tmp_path, count=1, size=(48, 64), seed=1)  # the first of them in another size
    home = tmp_path / "gtav"
    report = check(tmp_path)
    assert (report.faults, report.absent, report.images) == ([], {}, 3)
    found = report.splits["train"]
    assert (found.images, found.edition, found.empty) == (3, "", 0)
    assert found.sizes == {"64x48": 1, "64x40": 2}
    files = sorted(file.relative_to(home).as_posix() for file in home.rglob("*.png"))
    sizes = "\n".join(f"{file}:{len((home / file).read_bytes())}" for file in files)
    assert found.fingerprint == hashlib.sha256(sizes.encode()).hexdigest()
    digests = (hashlib.sha256((home / file).read_bytes()).hexdigest() for file in files)
    contents = "\n".join(f"{file}:{digest}" for file, digest in zip(files, digests, strict=True))
    assert found.contents == hashlib.sha256(contents.encode()).hexdigest()
    values = Counter()
    for file in home.glob("labels/*.png"):
        values.update(np.asarray(Image.open(file)).ravel().tolist())
    assert found.classes["road"] == values[7]
    assert found.classes["bicycle"] == values[33]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    """In the checksum of the pixels, which a decoder that has all of them does not read."""
    content = bytearray(file.read_bytes())
    content[content.rindex(b"IEND") - 5] ^= 1
    file.write_bytes(content)


def huge(file: Path) -> None:
    """A PNG of some bytes that says it has 10^10 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def label_of(value: int, size: tuple[int, int] = SIZE) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        array = np.full(size, 7, np.uint8)
        array[-1, -1] = value
        Image.fromarray(array).save(file)

    return write


IMAGE_FAULTS = {
    "cut off": (truncate, "Truncated"),
    "no byte": (lambda file: file.write_bytes(b""), "cannot identify image file"),
    "text": (lambda file: file.write_text("404 not found"), "cannot identify image file"),
    "one bit": (flip_a_bit, "checksum"),
    "bomb": (huge, "exceeds limit"),
    "broken link": (replaced(lambda file: file.symlink_to("nowhere.png")), "is a broken link"),
    "link to itself": (replaced(lambda file: file.symlink_to(file.name)), "is a broken link"),
    "folder": (replaced(Path.mkdir), "no regular file"),
    "pipe": (replaced(os.mkfifo), "no regular file"),
    "other size": (label_of(0, (48, 64)), r"is 64x48 pixels, its label 64x40"),
    "missing": (Path.unlink, "000001_000019.png: has no image"),
}
LABEL_FAULTS = {
    "cut off": (truncate, "Truncated"),
    "no byte": (lambda file: file.write_bytes(b""), "cannot identify image file"),
    "one bit": (flip_a_bit, "checksum"),
    "unknown value": (label_of(57), r"label values \[57\] are not in the encoding"),
    "colours": (lambda file: Image.new("RGB", (64, 40)).save(file), "holds colours"),
    "pipe": (replaced(os.mkfifo), "no regular file"),
    "missing": (Path.unlink, "000001_000019.png: has no label"),
}


@pytest.mark.parametrize(
    ("folder", "fault"),
    [("images", name) for name in IMAGE_FAULTS] + [("labels", name) for name in LABEL_FAULTS],
)
def test_fault_is_one_line_that_names_the_file(folder: str, fault: str, tmp_path: Path) -> None:
    name = write_world(tmp_path, count=3)[1]
    change, expected = (IMAGE_FAULTS if folder == "images" else LABEL_FAULTS)[fault]
    change(tmp_path / "gtav" / folder / f"{name}.png")
    report = check(tmp_path)
    assert len(report.faults) == 1
    line = report.faults[0]
    assert re.search(expected, line)
    assert f"{name}.png" in line
    assert "\n" not in line
    assert report.images == 3 - (fault == "missing")
    assert report.splits == {}


def test_cut_off_jpeg(tmp_path: Path) -> None:
    name = write_world(tmp_path, "bdd100k", "val")[2]
    truncate(tmp_path / f"bdd100k/images/10k/val/{name}.jpg")
    (line,) = check(tmp_path, "bdd100k", "val").faults
    assert f"{name}.jpg: cannot be decoded (image file is truncated" in line


def test_name_that_is_not_utf_8(tmp_path: Path) -> None:
    write_world(tmp_path, count=2)
    for folder in ("images", "labels"):
        file = next((tmp_path / "gtav" / folder).iterdir())
        file.rename(os.fsdecode(os.fsencode(file.parent) + b"/\xff\xfe.png"))
    faults = check(tmp_path).faults
    assert [line for line in faults if "its name is not UTF-8" in line]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    name = write_world(tmp_path, count=2)[0]
    (tmp_path / f"gtav/images/{name}.png").chmod(0)
    (line,) = check(tmp_path).faults
    assert "Permission denied" in line


def test_unexpected_error_of_a_decoder_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_world(tmp_path, count=2)

    def breaks(*_: object) -> None:
        raise struct.error("unpack requires\n4 bytes")

    monkeypatch.setattr(verification.segmentation, "read_pair", breaks)
    faults = check(tmp_path).faults
    assert len(faults) == 2
    assert f"{names[0]}.png: it or " in faults[0]
    assert "unpack requires" in faults[0]


def test_processes_find_the_same(tmp_path: Path) -> None:
    write_world(tmp_path, count=5)
    alone, shared = check(tmp_path), check(tmp_path, workers=2)
    assert shared.splits == alone.splits
    for name in ("images", "labels"):
        truncate(sorted((tmp_path / "gtav" / name).iterdir())[3 if name == "images" else 1])
    assert check(tmp_path).faults == check(tmp_path, workers=2).faults
    assert len(check(tmp_path).faults) == 2


def test_killed_process_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path)
    monkeypatch.setattr(verification, "_finding", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(UserError, match="take fewer --workers"):
        check(tmp_path, workers=1)


@pytest.mark.parametrize(("count", "expected"), [(4, "complete"), (3, "without_one"), (2, None)])
def test_edition_is_told_by_the_number_of_images(
    count: int, expected: str | None, tmp_path: Path
) -> None:
    gtav = load_card("gtav")
    splits = {"train": gtav.splits["train"].model_copy(update={"count": 4})}
    variant = gtav.variants["iast"].model_copy(update={"count": 3})
    card = gtav.model_copy(update={"splits": splits, "variants": {"without_one": variant}})
    write_world(tmp_path, count=count)
    report = verify(card, tmp_path, ("train",), 0, partial=False)
    if expected:
        assert (report.faults, report.splits["train"].edition) == ([], expected)
        return
    (line,) = report.faults
    assert "train has 2 images, known are 4 (complete), 3 (without_one)" in line
    assert verify(card, tmp_path, ("train",), 0, partial=True).faults == []


def test_rendered_worlds_may_hold_any_number(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val")
    (tmp_path / "manifest.json").write_text("{}")
    report = verify(load_card("bdd100k"), tmp_path, ("train", "val"), 0, partial=False)
    assert report.faults == []
    assert report.splits["val"].edition == "rendered mini world"
    assert list(report.absent) == ["train"]


def test_missing_split_is_a_fault_unless_partial(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val")
    card = load_card("bdd100k")
    report = verify(card, tmp_path, ("train", "val"), 0, partial=False)
    assert "no image matches images/10k/train/{name}.jpg" in report.faults[0]
    assert verify(card, tmp_path, ("train", "val"), 0, partial=True).faults == []
    with pytest.raises(UserError, match="no image matches images/10k/train"):
        verify(card, tmp_path, ("train",), 0, partial=True)


def test_split_without_any_label_is_not_there(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_world(tmp_path, "bdd100k", split, count=2)
    shutil.rmtree(tmp_path / "bdd100k/labels/sem_seg/masks/train")
    report = verify(load_card("bdd100k"), tmp_path, ("train", "val"), 0, partial=True)
    assert report.faults == []
    assert "no label matches labels/sem_seg/masks/train/{name}.png" in report.absent["train"]


def test_published_list_of_which_nothing_is_there(tmp_path: Path) -> None:
    names = write_world(tmp_path, "cityscapes", "train", count=2)
    report = verify(load_card("cityscapes"), tmp_path, ("train", "train_1_16"), 0, partial=True)
    assert (report.faults, report.splits["train"].images) == ([], 2)
    assert "cityscapes_train_1_16.txt: names " in report.absent["train_1_16"]
    assert not any(name in report.absent["train_1_16"] for name in names)


def test_folder_of_another_data_set(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val")
    (tmp_path / "bdd100k").rename(tmp_path / "gtav")
    with pytest.raises(UserError, match=r"gtav: no image matches images/\{name\}.png; unpack GTAV"):
        check(tmp_path)
