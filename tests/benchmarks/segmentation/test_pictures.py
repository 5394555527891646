"""Strips of segmentation: image, truth and the kept predictions of several records."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_worlds import write_world
from toy_records import toy_record

from benchmarks.data.cards import IGNORE, load_card
from benchmarks.data.pictures import GAP, LINE, PALETTE
from benchmarks.errors import UserError
from benchmarks.record import Record
from benchmarks.segmentation import predictions
from benchmarks.segmentation.pictures import domains_of, streets, write_strips
from benchmarks.segmentation.predictions import Prediction


@pytest.fixture
def made(tmp_path: Path) -> dict[Path, Record]:
    """Two records of a toy protocol on two tiny worlds, with predictions of one class each."""
    for name in ("cityscapes", "bdd100k"):
        write_world(tmp_path / "data", name, "val", count=5, size=(16, 32))
    write_world(tmp_path / "data", count=4, size=(16, 32))
    records = {}
    for number, label in enumerate(("soma", "full")):
        record = toy_record(label, 0)
        path = tmp_path / f"{label}.json"
        data = {}
        for domain in domains_of(record, path):
            card = load_card(domain.card, "label")
            data[domain.domain] = card.fingerprint(tmp_path / "data", domain.split)
            names = [pair.name for pair in card.pairs(tmp_path / "data", domain.split)]
            names = names[-2:] if domain.holdout else names
            kept = [Prediction(name, np.full((16, 32), number, np.uint8)) for name in names[:2]]
            predictions.write(path.with_suffix(f".{domain.domain}.png"), kept)
        records[path] = record.model_copy(update={"data": data})
    return records


def test_a_strip_holds_image_truth_and_every_record(
    made: dict[Path, Record], tmp_path: Path
) -> None:
    files = list(write_strips(made, tmp_path / "data", tmp_path / "out", 4))
    assert [file.stem for file in files] == [
        "pictures_gtav_held_out",
        "pictures_cityscapes",
        "pictures_bdd100k",
    ]
    sheet = cv2.imread(str(files[1]))[:, :, ::-1]
    wide, high = 320, 160
    assert sheet.shape[1] == 4 * (wide + GAP)
    top = sheet.shape[0] - GAP - high  # of the last street
    columns = [sheet[top : top + high, n * (wide + GAP) :][:, :wide] for n in range(4)]
    path, record = next(iter(made.items()))
    names = [one.name for one in predictions.read(tmp_path / "soma.cityscapes.png")]
    *_, last = streets(domains_of(record, path)[1], tmp_path / "data", names)
    enlarged = cv2.resize(last.classes, (wide, high), interpolation=cv2.INTER_NEAREST)
    known = enlarged != IGNORE
    assert (columns[1][known] == PALETTE[enlarged[known]]).all()
    assert (columns[2] == PALETTE[0]).all()
    assert (columns[3] == PALETTE[1]).all()
    assert (sheet[top - LINE : top] != 30).any()  # its line of names


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("data", "is not the one that .* was scored on"),
        ("kept", "kept no predictions; run its cell again"),
        ("other", "keeps other images of cityscapes"),
    ],
)
def test_records_that_cannot_be_drawn_are_one_line(
    made: dict[Path, Record], tmp_path: Path, spoil: str, words: str
) -> None:
    kept = tmp_path / "full.cityscapes.png"
    if spoil == "data":
        card = load_card("cityscapes", "label")
        card.pairs(tmp_path / "data", "val")[0].image.write_bytes(b"shorter")
    elif spoil == "kept":
        kept.unlink()
    else:
        predictions.write(kept, [Prediction("another", np.zeros((16, 32), np.uint8))])
    with pytest.raises(UserError, match=words):
        list(write_strips(made, tmp_path / "data", tmp_path / "out", 4))
