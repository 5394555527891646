"""VOC's average precision against Detectron2's evaluator itself, on drawn detections."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from toy_detections import Truth, crowded

from benchmarks.detection.metrics import voc_scores
from benchmarks.detection.predictions import Detections

pytestmark = pytest.mark.detectron2
CLASSES = ("bus", "bike", "car")
FROM_1 = np.array([1, 1, 0, 0])
ANNOTATION = "<annotation>{}</annotation>"
OBJECT = (
    "<object><name>{}</name><pose>-</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write(folder: Path, truth: Sequence[Truth], every_detected: Sequence[Detections]) -> None:
    """The files that the evaluator reads: boxes of inclusive pixels counted from 1."""
    lines = {name: [] for name in CLASSES}
    for number, (objects, detections) in enumerate(zip(truth, every_detected, strict=True)):
        pixels = objects.boxes.astype(int) + FROM_1
        labels = (CLASSES[label] for label in objects.labels)
        columns = zip(labels, objects.difficult.astype(int), *pixels.T, strict=True)
        text = "".join(OBJECT.format(*row) for row in columns)
        (folder / f"{number}.xml").write_text(ANNOTATION.format(text))
        for label, score, box in zip(
            detections.labels, detections.scores, detections.boxes + FROM_1, strict=True
        ):
            row = (number, score, *box.tolist())
            lines[CLASSES[label]].append(" ".join(str(value) for value in row))
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(rows))
    (folder / "images").write_text("\n".join(str(number) for number in range(len(truth))))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_equals_detectron2(seed: int, threshold: float, tmp_path: Path) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval

    truth, every_detected = crowded(seed, images=20)
    # No two scores are equal: Detectron2's sort is not stable.
    order = np.random.default_rng(seed).permutation(
        sum(len(image.scores) for image in every_detected)
    )
    ends = np.cumsum([len(image.scores) for image in every_detected])[:-1]
    scores = np.split((order + 1) / (len(order) + 1), ends)
    every_detected = [
        Detections(image.boxes, mark, image.labels)
        for image, mark in zip(every_detected, scores, strict=True)
    ]
    write(tmp_path, truth, every_detected)
    ours = voc_scores(truth, every_detected, len(CLASSES), threshold)
    for eleven_points, values in zip((True, False), ours, strict=True):
        for name, value in zip(CLASSES, values, strict=True):
            files = (str(tmp_path / name) for name in ("{}.txt", "{}.xml", "images"))
            _, _, expected = voc_eval(*files, name, threshold, eleven_points)
            assert value == pytest.approx(100 * expected, abs=1e-9)
