"""Predictions beside a record: several sizes in one file, wide ones thinned, faults refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import UserError
from benchmarks.segmentation import predictions
from benchmarks.segmentation.predictions import WIDEST, Prediction, thinned


def test_images_of_several_sizes_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = (4, 7), (6, 3), (1, 9)
    images = [
        Prediction(f"street/{n}", rng.integers(0, 19, shape).astype(np.uint8))
        for n, shape in enumerate(shapes)
    ]
    file = tmp_path / "seed0.night.png"
    predictions.write(file, images)
    again = predictions.read(file)
    assert [one.name for one in again] == ["street/0", "street/1", "street/2"]
    for before, after in zip(images, again, strict=True):
        assert np.array_equal(before.classes, after.classes)
    before = file.read_bytes()
    predictions.write(file, images)
    assert file.read_bytes() == before


def test_a_photograph_is_thinned_and_a_small_picture_is_not() -> None:
    wide = np.arange(4 * (2 * WIDEST + 2)).reshape(4, -1) % 19
    assert np.array_equal(thinned(wide), wide[::3, ::3])
    assert np.array_equal(thinned(wide[:, :WIDEST]), wide[:, :WIDEST])


@pytest.mark.parametrize("spoil", ["missing", "cut", "no text"])
def test_a_spoilt_file_is_one_line(tmp_path: Path, spoil: str) -> None:
    file = tmp_path / "seed0.night.png"
    predictions.write(file, [Prediction("a", np.zeros((90, 90), np.uint8))])
    if spoil == "missing":
        file.unlink()
    elif spoil == "cut":
        file.write_bytes(file.read_bytes()[:-60])
    else:
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(file)
    with pytest.raises(UserError, match=r"seed0.night.png: .*run (the|its) cell"):
        predictions.read(file)
