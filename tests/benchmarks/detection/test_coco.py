"""COCO's figures against pycocotools called directly, on files; the file of predictions."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_detections import BOX, CLASSES, FAR, ORACLE, Truth, crowded, found, from_oracle, truth

from benchmarks.detection import predictions
from benchmarks.detection.metrics import Detections, scores
from benchmarks.errors import UserError


def directly(
    folder: Path, every_truth: list[Truth], file: Path, classes: Sequence[str]
) -> np.ndarray:
    """COCOeval's first six figures: ground truth as a file of COCO's, results from `file`."""
    annotations = []
    for image, each in enumerate(every_truth):
        for place in range(len(each.labels)):
            x1, y1, x2, y2 = (float(value) for value in each.boxes[place])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(each.labels[place]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 1 if each.difficult[place] else 0,
                }
            )
    whole = {
        "images": [{"id": number + 1} for number in range(len(every_truth))],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(classes)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "results.json").write_bytes(gzip.decompress(file.read_bytes()))
    ground = COCO(str(folder / "truth.json"))
    evaluator = COCOeval(ground, ground.loadRes(str(folder / "results.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats[:6]


COCO_NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]


def of_oracle(place: int) -> tuple[list[Truth], list[Detections]]:
    return from_oracle(ORACLE["sets"][place], np.float32)


def packed(seed: int) -> tuple[list[Truth], list[Detections]]:
    """More detections of a class in an image than COCO looks at."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (30, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 120, (30, 2))]).astype(np.float32)
    rows = boxes[rng.integers(0, 30, 300)] + rng.normal(0, 2, (300, 4)).astype(np.float32)
    kinds = rng.integers(0, 2, 30)
    labels, marks = rng.integers(0, 2, 300), rng.random(300).astype(np.float32)
    return [Truth(boxes, kinds, rng.random(30) < 0.2)], [Detections(rows, marks, labels)]


def between(place: int) -> tuple[list[Truth], list[Detections]]:
    """The surer detection overlaps two objects equally; the other one has only one to take."""
    ends = [(0, 0, 10, 10), (4, 0, 14, 10)]
    objects = [truth((0, *ends[0]), (0, *ends[1]))]
    return objects, [found((0, 0.9, 2, 0, 12, 10), (0, 0.8, *ends[place]))]


@pytest.mark.parametrize(
    "case",
    [
        *[(of_oracle, place) for place in range(3)],
        *[(crowded, seed) for seed in range(12)],
        *[(between, place) for place in range(2)],
        (packed, 0),
    ],
    ids=lambda each: f"{each[0].__name__}{each[1]}",
)
def test_coco_equals_pycocotools(case: tuple, tmp_path: Path) -> None:
    make, seed = case
    every_truth, every_found = make(seed)
    names = [f"image{number}" for number in range(len(every_truth))]
    predictions.write(tmp_path / "p.json.gz", names, every_found)
    expected = directly(tmp_path, every_truth, tmp_path / "p.json.gz", CLASSES)
    result = scores(every_truth, every_found, CLASSES)
    ours = [result[name] for name in COCO_NAMES]
    assert ours == [None if value == -1 else 100 * value for value in expected]  # to the bit
    assert result["AP50"] > 0


def test_file_gives_the_metrics_again(tmp_path: Path) -> None:
    for seed in range(3):
        every_truth, every_found = of_oracle(seed)
        rng = np.random.default_rng(seed)
        for each in every_found:  # digits that the file does not keep
            each.boxes[:] += rng.normal(0, 1, each.boxes.shape)
            each.scores[:] = rng.random(len(each.scores))
        names = ORACLE["sets"][seed]["images"]
        predictions.write(tmp_path / "p.json.gz", names, every_found)
        back = predictions.read(tmp_path / "p.json.gz", names)
        assert scores(every_truth, back, CLASSES) == scores(every_truth, every_found, CLASSES)
        predictions.write(tmp_path / "again.json.gz", names, back)
        assert (tmp_path / "again.json.gz").read_bytes() == (tmp_path / "p.json.gz").read_bytes()
        for one, other in zip(back, every_found, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.00501)
            np.testing.assert_allclose(one.scores, other.scores, atol=0.00000501)


def test_metrics_are_of_the_rounded_numbers() -> None:
    """Scores that differ by less than the file keeps are ties, which keep their order."""
    rows = found((0, 0.123448, *FAR), (0, 0.123452, *BOX))
    result = scores([truth((0, *BOX))], [rows], ["a"])
    assert result["AP50_area"] == 50
    assert result["AP50"] == pytest.approx(50)


def test_file_is_coco_results(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "p.json.gz"
    predictions.write(path, ["a", "b"], [found(), found((2, 0.123456, 1, 2, 4.5, 8.25))])
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
    assert [each.name for each in path.parent.iterdir()] == ["p.json.gz"]
    predictions.write(path, ["a", "b"], [found(), found()])
    assert [len(each.scores) for each in predictions.read(path, ["a", "b"])] == [0, 0]


def test_file_of_another_list_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    predictions.write(path, ["a", "b"], [found((0, 0.5, *BOX)), found((1, 0.5, *BOX))])
    with pytest.raises(UserError, match="image 1 is 'a' here and 'b' in the list"):
        predictions.read(path, ["b", "a"])
    with pytest.raises(UserError, match="image 2 is 'b' here and None in"):
        predictions.read(path, ["a"])
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(tmp_path / "absent.json.gz", ["a"])
    whole = path.read_bytes()
    for damaged in (whole[:-12], b"not gzip", gzip.compress(b"{"), gzip.compress(b'{"a": 1}')):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"p\.json\.gz.*run its cell again"):
            predictions.read(path, ["a", "b"])
