"""The file of predictions."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from toy_detections import BOX, CLASSES, ORACLE, detected, from_oracle

from benchmarks.detection import predictions
from benchmarks.detection.metrics import scores
from benchmarks.errors import UserError


def test_file_gives_the_metrics_again(tmp_path: Path) -> None:
    for seed in range(3):
        every_truth, every_detected = from_oracle(ORACLE["sets"][seed], np.float32)
        rng = np.random.default_rng(seed)
        for detections in every_detected:  # digits that the file does not keep
            detections.boxes[:] += rng.normal(0, 1, detections.boxes.shape)
            detections.scores[:] = rng.random(len(detections.scores))
        names = ORACLE["sets"][seed]["images"]
        predictions.write(tmp_path / "p.json.gz", names, every_detected)
        back = predictions.read(tmp_path / "p.json.gz", names, len(CLASSES))
        assert scores(every_truth, back, CLASSES) == scores(every_truth, every_detected, CLASSES)
        predictions.write(tmp_path / "again.json.gz", names, back)
        assert (tmp_path / "again.json.gz").read_bytes() == (tmp_path / "p.json.gz").read_bytes()
        for one, other in zip(back, every_detected, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.00501)
            np.testing.assert_allclose(one.scores, other.scores, atol=0.00000501)


def test_file_is_coco_results(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "p.json.gz"
    predictions.write(path, ["a", "b"], [detected(), detected((2, 0.123456, 1, 2, 4.5, 8.25))])
    assert json.loads(gzip.decompress(path.read_bytes())) == [
        {
            "image_id": 2,
            "file_name": "b",
            "category_id": 3,
            "bbox": [1, 2, 3.5, 6.25],
            "score": 0.12346,
        }
    ]
    assert path.read_bytes()[3:8] == bytes(5)  # neither a name nor a time of day
    assert [file.name for file in path.parent.iterdir()] == ["p.json.gz"]
    predictions.write(path, ["a", "b"], [detected(), detected()])
    assert [len(image.scores) for image in predictions.read(path, ["a", "b"], 3)] == [0, 0]


def test_file_of_another_list_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    predictions.write(path, ["a", "b"], [detected((0, 0.5, *BOX)), detected((1, 0.5, *BOX))])
    with pytest.raises(UserError, match="image 1 is 'a' here and 'b' in the list"):
        predictions.read(path, ["b", "a"], 3)
    with pytest.raises(UserError, match="image 2 is 'b' here and None in"):
        predictions.read(path, ["a"], 3)
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(tmp_path / "absent.json.gz", ["a"], 3)
    whole = path.read_bytes()
    for damaged in (whole[:-12], b"not gzip", gzip.compress(b"{"), gzip.compress(b'{"a": 1}')):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"p\.json\.gz.*run its cell again"):
            predictions.read(path, ["a", "b"], 3)


RESULT = {"image_id": 1, "file_name": "a", "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, r"category_id 4 is outside 1\.\.3"),
        ({"category_id": 0}, r"category_id 0 is outside 1\.\.3"),
        ({"category_id": 1.5}, "no whole number"),
        ({"image_id": 1.5}, "no whole number"),
        ({"score": float("nan")}, "not finite"),
        ({"bbox": [1, 2, float("inf"), 4]}, "not finite"),
        ({"bbox": [1, 2, 3]}, "no COCO results"),
        ({"bbox": [1, 2, 10**400, 4]}, "no COCO results"),
        ({"score": "high"}, "no COCO results"),
        ({"image_id": [1]}, "no COCO results"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    for result, expected in ((RESULT, None), (RESULT | change, message)):
        path.write_bytes(gzip.compress(json.dumps([result]).encode()))
        if expected is None:
            assert predictions.read(path, ["a"], 3)[0].labels.tolist() == [2]
            continue
        with pytest.raises(UserError, match=rf"p\.json\.gz: .*{expected}.*run its cell again"):
            predictions.read(path, ["a"], 3)


def test_nesting_without_end_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    path.write_bytes(gzip.compress(b"[" * 200_000))
    with pytest.raises(UserError, match=r"p\.json\.gz: no COCO results .*run its cell again"):
        predictions.read(path, ["a"], 3)
    whole = bytearray(gzip.compress(json.dumps([RESULT] * 50).encode()))
    whole[14] ^= 255
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"p\.json\.gz: .*run its cell again"):
        predictions.read(path, ["a"], 3)
