import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_voc import CLASSES, write_domain

from benchmarks.data import cards
from benchmarks.data.cards import load_card
from benchmarks.detection import reading
from benchmarks.errors import UserError
from benchmarks.protocol import Domain

SDGOD = load_card("sdgod", "boxes")
CITY = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
HOME = Path("diverseWeather")


def names(pairs: list[cards.Pair]) -> list[str]:
    return [pair.name for pair in pairs]


def test_classes() -> None:
    assert SDGOD.classes == CLASSES
    for name in ("cityscapes_boxes", "foggy_cityscapes"):
        card = load_card(name, "boxes")
        assert card.classes == CITY
        assert card.boxes.ids == (24, 25, 26, 27, 28, 31, 32, 33)


def test_lists_of_the_five_domains() -> None:
    """Typed from the author's answer: day has a test.txt, the targets are scored on train.txt."""
    lists = {name: Path(split.list_file).name for name, split in SDGOD.splits.items()}
    assert lists == {
        "daytime_clear_train": "train.txt",
        "daytime_clear_test": "test.txt",
        "daytime_clear_test_with_boxes": "test.txt",
        **dict.fromkeys(("night_clear", "dusk_rainy", "night_rainy", "daytime_foggy"), "train.txt"),
    }


@pytest.mark.parametrize("split", SDGOD.splits)
def test_pairs_of_a_written_domain(split: str, tmp_path: Path) -> None:
    written = write_domain(tmp_path, split, count=3)
    found = SDGOD.pairs(tmp_path, split)
    assert names(found) == written
    assert found[0].image == SDGOD.path(tmp_path, split, "images", name=written[0])
    assert found[0].label == SDGOD.path(tmp_path, split, "labels", name=written[0])


def test_layout(tmp_path: Path) -> None:
    inside = tmp_path / "diverseWeather/Night-Sunny/VOC2007"
    assert SDGOD.path(tmp_path, "night_clear", "images", name="a") == inside / "JPEGImages/a.jpg"
    assert SDGOD.path(tmp_path, "night_clear", "labels", name="a") == inside / "Annotations/a.xml"
    assert SDGOD.path(tmp_path, "night_clear", "list_file") == inside / "ImageSets/Main/train.txt"


@pytest.mark.parametrize("spelling", ["night_sunny", "Night-sunny", "NIGHT_SUNNY", "night-clear"])
def test_spellings_of_a_folder_make_no_difference(spelling: str, tmp_path: Path) -> None:
    write_domain(tmp_path, "night_clear")
    before = [SDGOD.fingerprint(tmp_path, "night_clear"), SDGOD.listing(tmp_path, "night_clear")]
    (tmp_path / HOME / "Night-Sunny").rename(tmp_path / HOME / spelling)
    assert {pair.image.parents[2].name for pair in SDGOD.pairs(tmp_path, "night_clear")} == {
        spelling
    }
    after = [SDGOD.fingerprint(tmp_path, "night_clear"), SDGOD.listing(tmp_path, "night_clear")]
    assert before == after


def test_two_spellings_at_once(tmp_path: Path) -> None:
    write_domain(tmp_path, "night_clear")
    home = tmp_path / HOME
    shutil.copytree(home / "Night-Sunny", home / "night_sunny")
    with pytest.raises(UserError, match=r"Night-Sunny and night_sunny, two spellings of one dom"):
        SDGOD.pairs(tmp_path, "night_clear")
    shutil.rmtree(home / "night_sunny")
    (home / "night_sunny").symlink_to("Night-Sunny")  # one folder under two names
    assert len(SDGOD.pairs(tmp_path, "night_clear")) == 4


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverseWeather: no such folder"):
        SDGOD.pairs(tmp_path, "night_clear")
    (tmp_path / HOME).mkdir()
    with pytest.raises(UserError, match=r"Night-Sunny: no such folder; unpack this domain"):
        SDGOD.pairs(tmp_path, "night_clear")


def listed(root: Path, text: str | bytes) -> list[cards.Pair]:
    file = SDGOD.path(root, "night_clear", "list_file")
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return SDGOD.pairs(root, "night_clear")


def test_lists_decide_what_belongs_to_a_split(tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear")
    pairs = listed(tmp_path, f"{written[2]}\r\n\r\n  {written[0]}\n{written[2]}\n")
    assert names(pairs) == [written[0], written[2]]


@pytest.mark.parametrize(
    "text",
    ["{0}  1\n{2} -1\n", "\ufeff{0}\n{2}\n", "{0}.jpg\n{2}.JPG\n", "{0}.xml 1\n{2}.xml 0\n"],
)
def test_lists_of_other_makers_are_read(text: str, tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear")
    assert names(listed(tmp_path, text.format(*written))) == [written[0], written[2]]


def test_name_that_ends_like_a_label_stays_a_name(tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear", count=2)
    for kind in ("images", "labels"):
        file = SDGOD.path(tmp_path, "night_clear", kind, name=written[1])
        file.rename(file.with_name(file.name.replace(written[1], f"{written[0]} 1")))
    assert names(listed(tmp_path, f"{written[0]} 1\n")) == [f"{written[0]} 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lost\n{0}\nstray", r"train\.txt: 2 of 3 names have no image, the first is 'lost'"),
        ("../JPEGImages/{0}", "1 of 1 names have no image"),
        ("", r"train\.txt: names no image"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_bad_lists(text: str | bytes, message: str, tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear")
    with pytest.raises(UserError, match=message):
        listed(tmp_path, text.format(*written) if isinstance(text, str) else text)


def test_missing_list_and_missing_annotation(tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear")
    SDGOD.path(tmp_path, "night_clear", "labels", name=written[1]).unlink()
    with pytest.raises(UserError, match=rf"1 of 4 names have no annotation.*'{written[1]}'"):
        SDGOD.pairs(tmp_path, "night_clear")
    SDGOD.path(tmp_path, "night_clear", "list_file").unlink()
    with pytest.raises(UserError, match=r"train\.txt: the list of images cannot be read"):
        SDGOD.pairs(tmp_path, "night_clear")


def test_listing_names_the_list_with_its_hash(tmp_path: Path) -> None:
    write_domain(tmp_path, "daytime_clear_test")
    file = SDGOD.path(tmp_path, "daytime_clear_test", "list_file")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    inside = "daytime_clear/VOC2007/ImageSets/Main/test.txt"
    assert SDGOD.listing(tmp_path, "daytime_clear_test") == f"{inside} sha256:{digest}"


def test_fingerprint_follows_files_list_and_rule(tmp_path: Path) -> None:
    written = write_domain(tmp_path, "daytime_clear_test")
    prints = {SDGOD.fingerprint(tmp_path, "daytime_clear_test")}
    prints.add(SDGOD.fingerprint(tmp_path, "daytime_clear_test_with_boxes"))
    file = SDGOD.path(tmp_path, "daytime_clear_test", "list_file")
    file.write_text("\n".join(reversed(written)))
    prints.add(SDGOD.fingerprint(tmp_path, "daytime_clear_test"))
    with SDGOD.path(tmp_path, "daytime_clear_test", "labels", name=written[0]).open("a") as label:
        label.write(" ")
    prints.add(SDGOD.fingerprint(tmp_path, "daytime_clear_test"))
    assert len(prints) == 4
    shutil.copytree(tmp_path / HOME, tmp_path / "moved" / HOME)
    assert SDGOD.fingerprint(tmp_path / "moved", "daytime_clear_test") in prints


def test_cards_of_the_other_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"sdgod\.yaml: describes no label"):
        load_card("sdgod", "label")
    with pytest.raises(UserError, match=r"gtav\.yaml: describes no boxes"):
        load_card("gtav", "boxes")
    with pytest.raises(UserError, match="did you mean 'sdgod'"):
        load_card("sdgo", "boxes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["car", "car"]}, "listed twice"),
        ({"ids": [3]}, "needs 0 ids for 7 classes"),
        ({"encoding": "cityscapes_instances"}, "needs 7 ids for 7 classes"),
        ({"encoding": "coco"}, "boxes.encoding"),
    ],
)
def test_bad_card(
    change: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((cards.FOLDER / "sdgod.yaml").read_text())
    content |= {"name": "bad_boxes", "boxes": content["boxes"] | change}
    (tmp_path / "bad_boxes.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(cards, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=message):
        load_card("bad_boxes", "boxes")


def write_city(root: Path, pattern: str, count: int = 2, **parts: str) -> None:
    """Images of one city; the last has no instance."""
    for index in range(count):
        image = root / "cityscapes" / pattern.format(city="ulm", name=f"ulm_{index}", **parts)
        label = root / f"cityscapes/gtFine/val/ulm/ulm_{index}_gtFine_instanceIds.png"
        ids = np.full((20, 30), 7, np.uint16)
        if index < count - 1:
            ids[2:6, 3:9] = 26000 + index
        for file, array in ((image, np.zeros((20, 30, 3), np.uint8)), (label, ids)):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)


def test_cityscapes_boxes(tmp_path: Path) -> None:
    write_city(tmp_path, "leftImg8bit/val/{city}/{name}_leftImg8bit.png")
    card = load_card("cityscapes_boxes", "boxes")
    first = card.pairs(tmp_path, "val")[0]
    image, found = reading.read_pair(first, card)
    assert image.shape == (20, 30, 3)
    assert found.boxes.tolist() == [[3, 2, 9, 6]]
    assert found.labels.tolist() == [2]
    domain = Domain(domain="city", card="cityscapes_boxes", split="val_with_boxes")
    assert names(reading.evaluation_pairs(domain, tmp_path)) == ["ulm_0"]
    assert card.listing(tmp_path, "val") is None


@pytest.mark.parametrize("number", [1, 999])
def test_every_label_id_as_an_instance(number: int, tmp_path: Path) -> None:
    """Typed from cityscapesScripts: of the ids 0..33 these eight are instances that are scored."""
    expected = {24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}
    file, card = tmp_path / "a_gtFine_instanceIds.png", load_card("cityscapes_boxes", "boxes")
    for label_id in range(34):
        for value in (label_id, 1000 * label_id + number):  # alone it is a group, or no thing
            Image.fromarray(np.full((4, 6), value, np.uint16)).save(file)
            found = reading.read_objects(cards.Pair("a", file, file), card).labels.tolist()
            thing = label_id in expected and value >= 1000
            assert found == ([expected[label_id]] if thing else []), value


def test_density_of_fog_and_empty_images_are_named(tmp_path: Path) -> None:
    card, pattern = load_card("foggy_cityscapes", "boxes"), "leftImg8bit_foggy/val/{city}/"
    pattern += "{name}_leftImg8bit_foggy_beta_{beta}.png"
    for beta in ("0.005", "0.01", "0.02"):
        write_city(tmp_path, pattern, beta=beta)
    counts = {split: 0 for split in card.splits if split.startswith("val")}
    for split in counts:
        domain = Domain(domain="fog", card="foggy_cityscapes", split=split)
        counts[split] = len(reading.evaluation_pairs(domain, tmp_path))
    assert counts == {
        "val_0.02": 2,
        "val_0.02_with_boxes": 1,
        "val_all": 6,
        "val_all_with_boxes": 3,
    }
    found = names(card.pairs(tmp_path, "val_all"))
    assert found[:3] == ["ulm_0_beta_0.005", "ulm_0_beta_0.01", "ulm_0_beta_0.02"]
    assert len({card.fingerprint(tmp_path, split) for split in counts}) == 4
    next((tmp_path / "cityscapes").glob("leftImg8bit_foggy/val/ulm/*_0.01.png")).unlink()
    assert len(card.pairs(tmp_path, "val_0.02")) == 2
    with pytest.raises(UserError, match=r"has no image \(1 of 2 files lack theirs\)"):
        card.pairs(tmp_path, "val_all")
