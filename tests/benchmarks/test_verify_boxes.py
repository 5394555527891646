"""Verification of data sets with boxes: what is in them is counted, what is wrong is named."""

import hashlib
from pathlib import Path

import pytest
from tiny_voc import annotation, box, write_domain

from benchmarks.data.cards import load_card
from benchmarks.verify import Report, verify

MAIN = "diverseWeather/daytime_clear/VOC2007"


def check(root: Path, *splits: str) -> Report:
    return verify(load_card("sdgod"), root, splits, 0, partial=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four images of the test list of daytime_clear; annotations are written by the tests."""
    write_domain(tmp_path, "daytime_clear_test")
    for index in range(4):
        write(tmp_path / MAIN, index, box("car", (1, 1, 10, 10)))
    return tmp_path / MAIN


def write(home: Path, index: int, *objects: str, size: tuple[int, int] = (40, 64)) -> Path:
    file = home / f"Annotations/daytime_clear_test-{index:04d}.xml"
    file.write_text(annotation(*objects, size=size))
    return file


def test_objects_and_what_was_repaired_are_counted(home: Path, tmp_path: Path) -> None:
    good = (5, 5, 20, 20)
    write(home, 0, box("bus", good), box("bike", (-1, 5, 20, 20)), box("car", (5, 5, 80, 20)))
    write(home, 1, box("car", (5.5, 5, 20, 20)), box("truck", (30, 5, 20, 20)))
    write(home, 2, box("person", (70, 5, 90, 20)))  # beside the image: nothing is left
    report = check(tmp_path, "daytime_clear_test", "daytime_clear_test_with_boxes")
    assert report.faults == []
    assert report.images == 4  # both splits are the same files
    found, with_boxes = report.splits.values()
    counts = {"bus": 1, "bike": 1, "car": 3, "motor": 0, "person": 0, "rider": 0, "truck": 0}
    assert found.classes == with_boxes.classes == counts
    assert found.repaired == {"clamped": 2, "fractional": 1, "dropped": 2}
    assert (found.images, found.empty) == (4, 1)
    assert (with_boxes.images, with_boxes.empty) == (3, 1)
    digest = hashlib.sha256((home / "ImageSets/Main/test.txt").read_bytes()).hexdigest()
    assert found.listing == f"daytime_clear/VOC2007/ImageSets/Main/test.txt sha256:{digest}"
    assert found.fingerprint != with_boxes.fingerprint
    assert found.contents != found.fingerprint


def test_contents_tell_files_of_equal_size_apart(home: Path, tmp_path: Path) -> None:
    before = check(tmp_path, "daytime_clear_test").splits["daytime_clear_test"]
    write(home, 0, box("bus", (1, 1, 10, 10)))
    after = check(tmp_path, "daytime_clear_test").splits["daytime_clear_test"]
    assert after.fingerprint == before.fingerprint
    assert after.contents != before.contents


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (annotation(box("tram", (1, 1, 9, 9))), "object of unknown class 'tram'"),
        (annotation(size=(50, 64)), "is 64x40 pixels, its annotation says 64x50"),
        ("<annotation><size>", "is not XML"),
        ("", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares a document type"),
        (annotation(box("car", (1, 1, 9, "nan"))), "bndbox/ymax is 'nan', no number"),
    ],
)
def test_fault_of_an_annotation(content: str, expected: str, home: Path, tmp_path: Path) -> None:
    file = write(home, 2)
    file.write_text(content)
    (line,) = check(tmp_path, "daytime_clear_test").faults
    assert expected in line
    assert str(file) in line


def test_listed_names_without_files(home: Path, tmp_path: Path) -> None:
    (home / "JPEGImages/daytime_clear_test-0000.jpg").unlink()
    for index in (1, 3):
        (home / f"Annotations/daytime_clear_test-{index:04d}.xml").unlink()
    report = check(tmp_path, "daytime_clear_test")
    lists = home / "ImageSets/Main/test.txt"
    assert report.faults == [
        f"{lists}: 'daytime_clear_test-0000' has no image; unpack it again",
        f"{lists}: 'daytime_clear_test-0001' has no annotation; unpack it again",
        f"{lists}: 'daytime_clear_test-0003' has no annotation; unpack it again",
    ]
    assert report.images == 1


def test_domains_that_are_not_there(home: Path, tmp_path: Path) -> None:
    report = check(tmp_path, "daytime_clear_test", "night_clear", "daytime_clear_train")
    assert report.faults == []
    assert "Night-Sunny: no such folder" in report.absent["night_clear"]
    assert "the list of images cannot be read" in report.absent["daytime_clear_train"]
    (home / "ImageSets/Main/train.txt").write_text("")
    assert "names no image" in check(tmp_path, "daytime_clear_train").faults[0]
