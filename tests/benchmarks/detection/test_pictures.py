"""The contact sheet of predictions."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_detections import detected, truth

from benchmarks.data.pictures import LINE
from benchmarks.detection.pictures import COLOURS, Sample, contact_sheet
from benchmarks.errors import UserError

CLASSES = ["bus", "bike", "car", "motor", "person", "rider", "truck"]
GREY = 90


def sample(detections: tuple = (), objects: tuple = (), height: int = 60) -> Sample:
    image = np.full((height, 100, 3), GREY, dtype=np.uint8)
    return Sample("some image", image, truth(*objects), detected(*detections))


def drawn(path: Path, samples: list[Sample], **options: object) -> np.ndarray:
    contact_sheet(path, "a title", samples, CLASSES, **{"width": 100, **options})
    return cv2.imread(str(path))[:, :, ::-1]


def colour_at(sheet: np.ndarray, label: int) -> set[tuple[int, int]]:
    return {tuple(place) for place in np.argwhere((sheet == COLOURS[label]).all(-1)).tolist()}


def test_truth_is_left_and_prediction_right(tmp_path: Path) -> None:
    objects, rows = ((2, 10, 25, 40, 50),), ((4, 0.9, 50, 30, 80, 55), (6, 0.3, 5, 30, 40, 50))
    plain = drawn(tmp_path / "plain.png", [sample()])
    sheet = drawn(tmp_path / "sheet.png", [sample(rows, objects)])
    top = plain.shape[0] - 60 - 6  # the picture stands above a gap of 6
    assert (plain[top : top + 60, :100] == GREY).all()
    changed = np.argwhere((sheet != plain).any(-1)) - [top, 0]
    left, right = changed[changed[:, 1] < 100], changed[changed[:, 1] >= 100] - [0, 102]
    assert left[:, 0].max() <= 50
    assert right[:, 0].max() <= 55
    assert (top + 49, 30) in colour_at(sheet, 2)  # last row of the box: y2 is not in it
    assert (top + 54, 102 + 60) in colour_at(sheet, 4)
    at_all = colour_at(sheet, 6) - colour_at(plain, 6)
    assert not at_all  # below the least score
    shown = drawn(tmp_path / "all.png", [sample(rows, objects)], min_score=0.2)
    assert (top + 49, 102 + 20) in colour_at(shown, 6)


def test_small_images_are_enlarged_with_their_boxes(tmp_path: Path) -> None:
    objects = ((2, 10, 25, 40, 50),)
    sheet = drawn(tmp_path / "sheet.png", [sample((), objects)], width=300)
    top = sheet.shape[0] - 180 - 6
    assert (top + 149, 90) in colour_at(sheet, 2)


def test_last_pixel_of_a_box_is_inside_it(tmp_path: Path) -> None:
    """A difficult object is one pixel thin: 10, 25 to 40, 50 ends in column 39 and row 49."""
    image = np.full((60, 100, 3), GREY, dtype=np.uint8)
    objects = truth((2, 10, 25, 40, 50), difficult=[0])
    sheet = drawn(tmp_path / "sheet.png", [Sample("some image", image, objects, detected())])
    top = sheet.shape[0] - 60 - 6
    below_text = [(y - top, x) for y, x in colour_at(sheet, 2) if y - top > 40]
    assert max(below_text) == (49, 39)
    assert {x for y, x in below_text if y == 45} == {10, 39}


def test_sheet_of_many_is_a_grid(tmp_path: Path) -> None:
    samples = [sample(), sample(height=80), sample()]
    sheet = drawn(tmp_path / "sheet.png", samples)
    lines = sheet.shape[0] - 2 * (LINE + 80 + 6)
    assert lines > 0
    assert lines % LINE == 0
    assert sheet.shape[1] == 2 * (100 + 2 + 100 + 6)
    one = drawn(tmp_path / "one.png", samples[:1], columns=4)
    assert one.shape[1] == 100 + 2 + 100 + 6


def test_boxes_over_the_border_and_bytes(tmp_path: Path) -> None:
    rows = ((0, 0.9, -20, -20, 150, 90), (1, 0.8, 99, 59, 100, 60), (2, 0.7, 30, 30, 30, 30))
    drawn(tmp_path / "one.png", [sample(rows)])
    drawn(tmp_path / "two.png", [sample(rows)])
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sample"):
        contact_sheet(tmp_path / "sheet.png", "a title", [], CLASSES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="while writing"):
        contact_sheet(tmp_path / "file" / "sheet.png", "a title", [sample()], CLASSES)
