"""`pictures`: contact sheets of a record, from its kept predictions and the data."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_voc import write_domain
from toy_detections import detected
from toy_records import ENVIRONMENT

from benchmarks.__main__ import main
from benchmarks.data.cards import load_card
from benchmarks.data.pictures import LINE
from benchmarks.detection import pictures, predictions
from benchmarks.record import Record

NAMES = {"day": "daytime_clear_train", "night": "night_clear"}
IMAGES = 7


def domain(name: str, **more: int) -> dict:
    return {"domain": name, "card": "sdgod", "split": NAMES[name], **more}


def write_record(path: Path, root: Path, **changes: object) -> Path:
    card = load_card("sdgod", "boxes")
    protocol = {
        "task": "detection",
        "validation": [domain("day", holdout=3)],
        "source_test": [],
        "targets": [domain("night", size=[20, 32])],
    }
    fields = {
        "cell": {"protocol": protocol, "engine": "torchvision"},
        "data": {name: card.fingerprint(root, split) for name, split in NAMES.items()},
        **{key: "x" for key in ("method", "placement", "recipe")},
        "digest": "0" * 64,
        **{"protocol": "tiny", "protocol_version": 4, "label": "soma", "seed": 1},
        **{"status": "done", "environment": ENVIRONMENT},
    }
    Record(**(fields | changes)).write(path)
    return path


@pytest.fixture
def setting(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """Record, data and the images of the night; one object is found in each of them."""
    root = tmp_path / "data"
    day = write_domain(root, NAMES["day"], IMAGES)
    night = write_domain(root, NAMES["night"], IMAGES, seed=1)
    record = write_record(tmp_path / "runs" / "seed1.json", root)
    boxes = [detected((place, 0.9, 5, 5, 20 + place, 30)) for place in range(IMAGES)]
    predictions.write(record.with_suffix(".day.json.gz"), sorted(day)[-3:], boxes[:3])
    predictions.write(record.with_suffix(".night.json.gz"), night, boxes)
    return record, root, night


def call(record: Path, root: Path, *more: object) -> int:
    return main(["pictures", str(record), "--data-root", str(root), *map(str, more)])


def test_each_domain_has_a_sheet_in_a_folder_beside_the_record(setting, capsys) -> None:
    record, root, _ = setting
    assert call(record, root) == 0
    files = [record.parent / "seed1" / f"predictions_{name}.png" for name in NAMES]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    # The pictures of 64 pixels are shown at 320, two of them and two samples beside each other;
    # three rows of samples take more height than two.
    shapes = [cv2.imread(str(file)).shape for file in files]
    assert shapes[0][1] == shapes[1][1] == 2 * (320 + 2 + 320 + 6)
    assert shapes[1][0] - shapes[0][0] == 2 * (200 + 6 + LINE)


def test_images_are_evenly_spaced_with_their_own_predictions(setting, monkeypatch) -> None:
    record, root, night = setting
    shown = {}
    monkeypatch.setattr(
        pictures, "contact_sheet", lambda *given, columns: shown.update({given[0]: given})
    )
    assert call(record, root, "--images", 3, "--out", root / "here") == 0
    _, title, samples, classes = shown[root / "here" / "predictions_night.png"]
    assert title == ("night: soma seed 1 (x), tiny version 4, engine torchvision, 3 of 7 images")
    assert [sample.name for sample in samples] == [night[0], night[3], night[6]]
    assert [int(sample.detections.labels[0]) for sample in samples] == [0, 3, 6]
    assert [sample.detections.boxes[0, 2] for sample in samples] == [20, 23, 26]
    assert all(len(sample.objects.boxes) for sample in samples)
    assert not np.array_equal(samples[0].image, samples[1].image)
    assert classes == load_card("sdgod", "boxes").classes
    assert call(record, root, "--images", 1, "--out", root / "here") == 0
    assert [each.name for each in shown[root / "here" / "predictions_night.png"][2]] == [night[0]]


def test_images_that_were_left_out_are_not_looked_for(setting, capsys) -> None:
    record, root, night = setting
    card = load_card("sdgod", "boxes")
    print_ = card.fingerprint(root, NAMES["night"], exclude=(night[0],))
    assert print_ != card.fingerprint(root, NAMES["night"])
    cell = Record.load(record).cell
    cell["protocol"]["targets"][0]["exclude"] = [night[0]]
    data = Record.load(record).data | {"night": print_}
    write_record(record, root, cell=cell, data=data)
    card.path(root, NAMES["night"], "labels", name=night[0]).unlink()
    boxes = [detected((place, 0.9, 5, 5, 20 + place, 30)) for place in range(1, IMAGES)]
    predictions.write(record.with_suffix(".night.json.gz"), night[1:], boxes)
    assert call(record, root) == 0
    assert str(record.parent / "seed1/predictions_night.png") in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_records_without_predictions_are_refused(setting, capsys) -> None:
    record, root, _ = setting
    other = write_record(record.with_name("seed2.json"), root, status="failed")
    assert "no predictions, its cell is failed" in refused(capsys, call(other, root))
    write_record(other, root, cell={"protocol": {"task": "depth"}})
    assert "a record of depth, not of detection" in refused(capsys, call(other, root))
    write_record(other, root)
    assert "seed2.day.json.gz: predictions cannot be read" in refused(capsys, call(other, root))


@pytest.mark.parametrize(
    "cell",
    [{}, {"protocol": None}, {"protocol": {}}, {"protocol": []}]
    + [{"protocol": {"task": "detection", "targets": wrong}} for wrong in (3, None, ["x"], [{}])],
)
def test_cells_that_do_not_say_what_was_scored_are_one_line(cell, setting, capsys) -> None:
    record, root, _ = setting
    other = write_record(record.with_name("seed2.json"), root, cell=cell)
    assert str(other) in refused(capsys, call(other, root))
    assert not other.with_suffix("").exists()


def test_other_data_are_refused(setting, tmp_path, capsys) -> None:
    record, *_ = setting
    write_domain(tmp_path / "other", NAMES["day"], IMAGES)
    write_domain(tmp_path / "other", NAMES["night"], IMAGES - 1)
    line = refused(capsys, call(record, tmp_path / "other"))
    assert "night is not the one that" in line
    assert "--data-root" in line
    assert not (record.parent / "seed1" / "predictions_night.png").exists()


def test_a_protocol_that_is_not_built_in_needs_the_folder_of_the_data(setting, capsys) -> None:
    record, _, _ = setting
    line = refused(capsys, main(["pictures", str(record)]))
    assert "no protocol 'tiny'" in line
    assert line.endswith("say where the data are with --data-root\n")
