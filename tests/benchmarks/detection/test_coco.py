"""COCO's figures against pycocotools called directly, on files."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_detections import BOX, CLASSES, FAR, ORACLE, Truth, crowded, detected, from_oracle, truth

from benchmarks.detection import predictions
from benchmarks.detection.metrics import COCO_NAMES, Detections, scores


def directly(
    folder: Path, every_truth: list[Truth], file: Path, classes: Sequence[str]
) -> np.ndarray:
    """COCOeval's first six figures: ground truth as a file of COCO's, results from `file`."""
    annotations = []
    for image, objects in enumerate(every_truth):
        for place in range(len(objects.labels)):
            x1, y1, x2, y2 = (float(value) for value in objects.boxes[place])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(objects.labels[place]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 1 if objects.difficult[place] else 0,
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
    return objects, [detected((0, 0.9, 2, 0, 12, 10), (0, 0.8, *ends[place]))]


@pytest.mark.parametrize(
    "case",
    [
        *[(of_oracle, place) for place in range(3)],
        *[(crowded, seed) for seed in range(12)],
        *[(between, place) for place in range(2)],
        (packed, 0),
    ],
    ids=lambda case: f"{case[0].__name__}{case[1]}",
)
def test_coco_equals_pycocotools(case: tuple, tmp_path: Path) -> None:
    make, seed = case
    every_truth, every_detected = make(seed)
    names = [f"image{number}" for number in range(len(every_truth))]
    predictions.write(tmp_path / "p.json.gz", names, every_detected)
    expected = directly(tmp_path, every_truth, tmp_path / "p.json.gz", CLASSES)
    result = scores(every_truth, every_detected, CLASSES)
    ours = [result[name] for name in COCO_NAMES]
    assert ours == [None if value == -1 else 100 * value for value in expected]  # to the bit
    assert result["AP50"] > 0


def test_metrics_are_of_the_rounded_numbers() -> None:
    """Scores that differ by less than the file keeps are ties, which keep their order."""
    rows = detected((0, 0.123448, *FAR), (0, 0.123452, *BOX))
    result = scores([truth((0, *BOX))], [rows], ["a"])
    assert result["AP50_area"] == 50
    assert result["AP50"] == pytest.approx(50)
