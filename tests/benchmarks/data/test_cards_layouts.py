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


def test_excluded_names_are_passed_over_before_pairing(tmp_path: Path) -> None:
    card, written = load_card("bdd100k"), write_world(tmp_path, "bdd100k", "val", count=4)
    card.path(tmp_path, "val", "labels", name=written[0]).unlink()
    card.path(tmp_path, "val", "images", name=written[2]).unlink()
    with pytest.raises(UserError, match=r"has no label .*exclude them"):
        card.pairs(tmp_path, "val")
    exclude = (written[0], written[2])
    pairs = card.pairs(tmp_path, "val", exclude=exclude)
    assert [pair.name for pair in pairs] == [written[1], written[3]]
    both = card.fingerprint(tmp_path, "val", exclude=exclude)
    assert card.fingerprint(tmp_path, "val", exclude=(*exclude, written[1])) != both
    for name in exclude:
        for kind in ("images", "labels"):
            card.path(tmp_path, "val", kind, name=name).unlink(missing_ok=True)
    assert card.fingerprint(tmp_path, "val") == both
    with pytest.raises(UserError, match=f"exclude: no image .*'{written[0]}' .val.; correct"):
        card.pairs(tmp_path, "val", exclude=exclude)


def test_excluded_names_of_one_level_of_fog(tmp_path: Path) -> None:
    card = load_card("foggy_cityscapes")
    for beta in ("0.005", "0.01", "0.02"):
        for kind in ("images", "labels"):
            file = card.path(tmp_path, "val_all", kind, name="ulm_1", city="ulm", beta=beta)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    pairs = card.pairs(tmp_path, "val_all", exclude=("ulm_1_beta_0.01",))
    assert [pair.name for pair in pairs] == ["ulm_1_beta_0.005", "ulm_1_beta_0.02"]


def test_what_macos_leaves_beside_files_is_no_file_of_the_data_set(tmp_path: Path) -> None:
    card, written = load_card("gtav"), write_world(tmp_path, "gtav", count=2)
    before = card.fingerprint(tmp_path, "train")
    for kind in ("images", "labels"):
        (tmp_path / f"gtav/{kind}/._{written[0]}.png").write_bytes(b"Mac OS X")
    (tmp_path / "gtav/images/._other.png").touch()
    assert [pair.name for pair in card.pairs(tmp_path, "train")] == written
    assert card.fingerprint(tmp_path, "train") == before


def test_capitals_in_an_ending_make_no_difference(tmp_path: Path) -> None:
    card, written = load_card("gtav"), write_world(tmp_path, "gtav", count=2)
    before, image = card.fingerprint(tmp_path, "train"), tmp_path / f"gtav/images/{written[0]}.png"
    image.rename(image.with_suffix(".PNG"))
    assert [pair.name for pair in card.pairs(tmp_path, "train")] == written
    assert card.fingerprint(tmp_path, "train") == before
    image.write_bytes(b"another")
    with pytest.raises(UserError, match=r"is there too; remove one of them"):
        card.pairs(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "split", "there", "do"),
    [
        ("gtav", "train", "gta/images", "ln -s gta gtav"),
        ("synthia", "train", "synthia/RGB", "in synthia: ln -s . RAND_CITYSCAPES"),
        ("mapillary", "val", "mapillary/half/val_img", "unpack validation/ and training/"),
    ],
)
def test_folders_as_other_toolkits_prepare_them_are_named(
    name: str, split: str, there: str, do: str, tmp_path: Path
) -> None:
    (tmp_path / there).mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        load_card(name).pairs(tmp_path, split)
    assert "is there: " in str(caught.value)
    assert do in str(caught.value)


@pytest.mark.parametrize("name", ["gtav", "synthia"])
def test_the_links_that_are_named_make_them_readable(name: str, tmp_path: Path) -> None:
    card, written = load_card(name), write_world(tmp_path, name, count=2)
    before = card.fingerprint(tmp_path, "train")
    if name == "gtav":
        (tmp_path / "gtav").rename(tmp_path / "gta")
        (tmp_path / "gtav").symlink_to("gta")
    else:
        for part in ("RGB", "GT"):
            (tmp_path / f"synthia/RAND_CITYSCAPES/{part}").rename(tmp_path / f"synthia/{part}")
        (tmp_path / "synthia/RAND_CITYSCAPES").rmdir()
        (tmp_path / "synthia/RAND_CITYSCAPES").symlink_to(".")
    assert [pair.name for pair in card.pairs(tmp_path, "train")] == written
    assert card.fingerprint(tmp_path, "train") == before
