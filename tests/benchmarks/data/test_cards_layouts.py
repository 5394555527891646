"""Layouts as they are distributed, unpacked or prepared by others, and the published list."""

import hashlib
import shutil
from pathlib import Path

import pytest
from tiny_worlds import write_world

from benchmarks.data import cards
from benchmarks.data.cards import load_card
from benchmarks.data.files import Pair
from benchmarks.errors import UserError


def test_cityscapes_layout(tmp_path: Path) -> None:
    card = load_card("cityscapes")
    image = card.path(tmp_path, "val", "images", name="ulm_000000_000019", city="ulm")
    label = card.path(tmp_path, "val", "labels", name="ulm_000000_000019", city="ulm")
    inside = tmp_path / "cityscapes"
    assert image == inside / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert label == inside / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"


def test_mapillary_without_version_folder(tmp_path: Path) -> None:
    card = load_card("mapillary")
    write_world(tmp_path, "mapillary", "val", count=2)
    new = tmp_path / "mapillary/validation/v1.2/labels"
    old = tmp_path / "mapillary/validation/labels"
    shutil.move(new, old)
    assert [pair.label.parent for pair in card.pairs(tmp_path, "val")] == [old, old]


def test_urbansyn_pairs_rgb_with_ss(tmp_path: Path) -> None:
    card, home = load_card("urbansyn"), tmp_path / "urbansyn"
    for file in ("rgb/rgb_0043.png", "ss/ss_0043.png"):
        (home / file).parent.mkdir(parents=True)
        (home / file).touch()
    assert card.pairs(tmp_path, "train") == [
        Pair("0043", home / "rgb/rgb_0043.png", home / "ss/ss_0043.png")
    ]
    (home / "ss/ss_0043.png").rename(home / "ss/rgb_0043.png")  # as SoMA's config wants it
    assert card.pairs(tmp_path, "train")[0].label == home / "ss/rgb_0043.png"


def test_acdc_layout(tmp_path: Path) -> None:
    card, home = load_card("acdc"), tmp_path / "acdc"
    for condition in ("fog", "night", "rain", "snow"):
        for image, label in (
            ("rgb_anon/{}/val/GOPR1/GOPR1_frame_1_rgb_anon.png", "val/GOPR1/GOPR1_frame_1"),
            ("rgb_anon/{}/val_ref/GOPR1/GOPR1_frame_1_rgb_ref_anon.png", None),
            ("rgb_anon/{}/test/GOPR2/GOPR2_frame_1_rgb_anon.png", None),
        ):
            kinds = ("labelTrainIds", "labelIds", "labelColor") if label else ()
            labels = [f"gt/{condition}/{label}_gt_{kind}.png" for kind in kinds]
            for file in (image.format(condition), *labels):
                (home / file).parent.mkdir(parents=True, exist_ok=True)
                (home / file).touch()
    pairs = card.pairs(tmp_path, "val")
    assert [pair.name for pair in pairs] == ["GOPR1_frame_1"] * 4
    assert {pair.label.name for pair in pairs} == {"GOPR1_frame_1_gt_labelTrainIds.png"}
    for condition in ("fog", "night", "rain", "snow"):
        only = card.pairs(tmp_path, f"val_{condition}")
        assert [condition in pair.image.parts for pair in only] == [True]
        assert [condition in pair.label.parts for pair in only] == [True]
    with pytest.raises(UserError, match="acdc has no split 'test'"):
        card.pairs(tmp_path, "test")


def test_folders_that_an_unpacker_left_in_the_names(tmp_path: Path) -> None:
    card = load_card("synthia")
    names = write_world(tmp_path, "synthia", count=2)
    before, home = card.fingerprint(tmp_path, "train"), tmp_path / "synthia"
    for file in [file for file in home.rglob("*.png")]:
        file.rename(home / file.relative_to(home).as_posix().replace("/", "\\"))
    shutil.rmtree(home / "RAND_CITYSCAPES")
    assert [pair.name for pair in card.pairs(tmp_path, "train")] == names
    assert card.fingerprint(tmp_path, "train") == before


def write_cityscapes_names(root: Path, names: list[str]) -> None:
    card = load_card("cityscapes")
    for name in names:
        for what in ("images", "labels"):
            file = card.path(root, "train", what, name=name, city=name.split("_")[0])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def test_published_sixteenth_of_cityscapes(tmp_path: Path) -> None:
    content = (cards.FOLDER / "cityscapes_train_1_16.txt").read_text()
    names = content.split()
    assert names == sorted(set(names))
    assert len(names) == 186
    # The first 186 of 2,975 by SHA-256 lie in the lowest sixteenth of its range, or little beyond.
    highest = max(int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names)
    assert highest / 2**256 == pytest.approx(1 / 16, abs=0.01)
    write_cityscapes_names(tmp_path, [*names, "aachen_999999_000019", "ulm_999999_000019"])
    card = load_card("cityscapes")
    assert [pair.name for pair in card.pairs(tmp_path, "train_1_16")] == names
    assert len(card.pairs(tmp_path, "train")) == 188
    card.path(tmp_path, "train", "images", name=names[3], city=names[3].split("_")[0]).unlink()
    card.path(tmp_path, "train", "labels", name=names[3], city=names[3].split("_")[0]).unlink()
    with pytest.raises(UserError, match=rf"names '{names[3]}', which is not there \(1 of 186"):
        card.pairs(tmp_path, "train_1_16")


def test_changed_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_card("cityscapes")
    write_cityscapes_names(tmp_path, ["ulm_000000_000019"])
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    (tmp_path / "cityscapes_train_1_16.txt").write_text("ulm_000000_000019\n")
    with pytest.raises(UserError, match="is not the list that its card names"):
        card.pairs(tmp_path, "train_1_16")
    (tmp_path / "cityscapes_train_1_16.txt").unlink()
    with pytest.raises(UserError, match=r"cannot be read .*restore the published list"):
        card.pairs(tmp_path, "train_1_16")


def test_other_files_are_no_images(tmp_path: Path) -> None:
    write_world(tmp_path, "gtav", count=2)
    (tmp_path / "gtav/images/Thumbs.db").touch()
    (tmp_path / "gtav/images/00001.jpg").touch()
    assert len(load_card("gtav").pairs(tmp_path, "train")) == 2


@pytest.mark.parametrize("name", ["gtav", "synthia"])
def test_labels_that_another_toolkit_converted_are_ignored(name: str, tmp_path: Path) -> None:
    written = write_world(tmp_path, name, count=2)
    for pair in load_card(name).pairs(tmp_path, "train"):
        shutil.copy(pair.label, pair.label.with_name(f"{pair.name}_labelTrainIds.png"))
    assert [pair.name for pair in load_card(name).pairs(tmp_path, "train")] == written
