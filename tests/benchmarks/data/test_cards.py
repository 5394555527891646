import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_worlds import parts, write_world

from benchmarks.cell import fingerprints
from benchmarks.data import cards
from benchmarks.data.cards import IGNORE, OUTSIDE, load_card
from benchmarks.errors import UserError
from benchmarks.tasks import load_protocol

CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
    *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle"),
)

# Typed from the sources named in the cards: label id of each trainId, in order.
CITYSCAPES = dict(
    zip(
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
        range(19),
        strict=True,
    )
)
MAPILLARY = {
    0: {7, 8, 10, 13, 14, 23, 24},
    1: {2, 9, 11, 15},
    2: {17},
    3: {6},
    4: {3},
    5: {44, 45, 47},
    6: {48},
    7: {46, 49, 50},
    8: {30},
    9: {29},
    10: {27},
    11: {19},
    12: {20, 21, 22},
    13: {55},
    14: {61},
    15: {54},
    16: {58},
    17: {57},
    18: {52},
}
SYNTHIA = dict(
    zip(
        [3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11],
        range(19),
        strict=True,
    )
)
TRAIN_IDS = {value: value for value in range(19)}
EXPECTED = {
    "acdc": (TRAIN_IDS, [*range(19), 255]),
    "synthia": (SYNTHIA, range(23)),
    "urbansyn": (TRAIN_IDS, [*range(20), 255]),  # 19 is void
    "cityscapes": (CITYSCAPES, range(34)),
    "gtav": (CITYSCAPES, range(35)),
    "bdd100k": (TRAIN_IDS, [*range(19), 255]),
    "mapillary": (
        {value: train_id for train_id, values in MAPILLARY.items() for value in values},
        range(66),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_label_value(name: str) -> None:
    to_train_id, encoding = EXPECTED[name]
    table = load_card(name).label_table()
    for value in range(256):
        wanted = to_train_id.get(value, IGNORE) if value in encoding else OUTSIDE
        assert table[value] == wanted, value


@pytest.mark.parametrize("name", EXPECTED)
def test_classes_and_native_ids(name: str) -> None:
    card = load_card(name)
    assert card.classes == CLASSES
    table = card.label_table()
    for train_id in (*range(19), IGNORE):
        assert table[card.native_id(train_id)] == train_id


def test_names_lists_every_card_file() -> None:
    boxes = ["cityscapes_boxes", "foggy_cityscapes", "sdgod"]
    assert cards.names() == sorted([*EXPECTED, *boxes])


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("gtav", "train", 24966),
        ("cityscapes", "val", 500),
        ("bdd100k", "val", 1000),
        ("mapillary", "val", 2000),
        ("cityscapes", "train_1_16", 186),
        ("synthia", "train", 9400),
        ("urbansyn", "train", 7539),
        ("acdc", "train", 1600),
        ("acdc", "val", 406),
    ],
)
def test_official_counts(name: str, split: str, count: int) -> None:
    assert load_card(name).splits[split].count == count


def test_known_editions_differ_in_number() -> None:
    """Typed from the issues named in the card."""
    counts = {name: each.count for name, each in load_card("gtav").variants.items()}
    assert counts == {"official_train": 12403, "robustnet": 12388, "iast": 24941, "crst": 19984}
    assert load_card("synthia").variants["without_corrupted"].count == 9400 - 7


def scored_split(name: str) -> str:
    return "train" if name in ("gtav", "synthia", "urbansyn") else "val"


@pytest.mark.parametrize("name", EXPECTED)
def test_pairs_of_a_written_world(name: str, tmp_path: Path) -> None:
    card = load_card(name)
    split = scored_split(name)
    written = write_world(tmp_path, name, split, count=3)
    found = card.pairs(tmp_path, split)
    assert [pair.name for pair in found] == written
    assert found[0].image == card.path(tmp_path, split, "images", name=written[0], **parts(card))
    assert found[0].label == card.path(tmp_path, split, "labels", name=written[0], **parts(card))


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gtav: no such folder.*datasets.sh --dataset gtav"):
        load_card("gtav").pairs(tmp_path, "train")
    with pytest.raises(UserError, match=r"gtav: no such folder"):
        load_card("gtav").pairs(Path("x" * 300), "train")


def test_a_folder_of_the_mini_worlds_that_is_missing_names_what_renders_it(tmp_path: Path) -> None:
    for name, way in (
        ("mini_gtav", f"python -m benchmarks mini render --root {tmp_path}"),
        ("paper_gtav", f"scripts/download_datasets.sh --dataset gtav --root {tmp_path}"),
    ):
        with pytest.raises(UserError, match=re.escape(way)):
            fingerprints(load_protocol(name), tmp_path)


def test_a_split_that_the_mini_worlds_lack_names_what_renders_it(tmp_path: Path) -> None:
    for name, split in (("gtav", "train"), ("cityscapes", "val")):
        write_world(tmp_path, name, split, count=3)
    with pytest.raises(UserError) as caught:
        fingerprints(load_protocol("mini_c2bm"), tmp_path)
    way = f"lack cityscapes_train; python -m benchmarks mini render --root {tmp_path} adds it"
    assert str(caught.value) == f"{tmp_path}: the mini worlds there {way}"
    with pytest.raises(UserError, match="unpack Cityscapes"):
        fingerprints(load_protocol("paper_c2bm"), tmp_path)


def test_empty_root(tmp_path: Path) -> None:
    (tmp_path / "gtav").mkdir()
    with pytest.raises(UserError, match=r"no image matches images/\{name\}.png; unpack GTAV"):
        load_card("gtav").pairs(tmp_path, "train")


def test_image_without_label(tmp_path: Path) -> None:
    names = write_world(tmp_path, "gtav", count=3)
    load_card("gtav").path(tmp_path, "train", "labels", name=names[1]).unlink()
    with pytest.raises(UserError, match=rf"{names[1]}.png: has no label \(1 of 3 files"):
        load_card("gtav").pairs(tmp_path, "train")


def test_label_without_image(tmp_path: Path) -> None:
    names = write_world(tmp_path, "gtav", count=3)
    load_card("gtav").path(tmp_path, "train", "images", name=names[2]).unlink()
    with pytest.raises(UserError, match=r"has no image"):
        load_card("gtav").pairs(tmp_path, "train")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'gtav'"):
        load_card("gta")
    with pytest.raises(UserError, match="no split 'valid'"):
        load_card("bdd100k").split("valid")


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    card = load_card("gtav")
    names = write_world(tmp_path / "a", "gtav", count=2)
    write_world(tmp_path / "b", "gtav", count=2)
    before = card.fingerprint(tmp_path / "a", "train")
    assert before == card.fingerprint(tmp_path / "b", "train")  # the root is no part of it
    with card.path(tmp_path / "a", "train", "labels", name=names[0]).open("ab") as file:
        file.write(b"x")
    changed = card.fingerprint(tmp_path / "a", "train")
    write_world(tmp_path / "b", "gtav", count=3)
    assert len({before, changed, card.fingerprint(tmp_path / "b", "train")}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key colour"),
        ({"splits": {"train": {"images": "a", "labels": "b"}}}, "splits.train.count"),
        (
            {"label": {"encoding": "gray_png", "classes": {"road": [1, 2]}, "void": [2]}},
            "must be distinct",
        ),
        (
            {"variants": {"half": {"split": "trian", "count": 3, "source": "a"}}},
            "variants.half: no split 'trian'",
        ),
        (
            {"variants": {"all": {"split": "train", "count": 24966, "source": "a"}}},
            "variants.all: has the count of its split",
        ),
    ],
)
def test_bad_card(
    change: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load((cards.FOLDER / "gtav.yaml").read_text())
    (tmp_path / "gtav_test.yaml").write_text(yaml.safe_dump({**data, "name": "gtav_test"} | change))
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=message):
        load_card("gtav_test")


@given(st.text("abcz019_-.", min_size=1, max_size=12).filter(lambda name: name.strip(".")))
def test_any_name_expands_both_ways(name: str) -> None:
    card = load_card("cityscapes")
    path = card.path(Path("/r"), "val", "images", name=name, city="ulm")
    pattern = card.split("val").images
    regex = pattern.replace("{city}", "ulm").replace("{name}", name)
    assert path == Path("/r/cityscapes") / regex


def test_label_tables_are_uint8() -> None:
    for name in EXPECTED:
        table = load_card(name).label_table()
        assert table.dtype == np.uint8
        assert table.shape == (256,)
