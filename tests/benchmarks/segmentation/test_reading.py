"""From a pair of files to an image and trainIds: every encoding, bad files, halving."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_worlds import parts, write_label, write_rgb16, write_world

from benchmarks.data.cards import load_card
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.segmentation import reading

GTAV = Domain(domain="gtav", card="gtav", split="train")


def only_pair(root: Path, domain: Domain = GTAV) -> reading.Pair:
    return reading.evaluation_pairs(domain, root)[0]


@pytest.mark.parametrize(
    "name", ["acdc", "bdd100k", "cityscapes", "gtav", "mapillary", "synthia", "urbansyn"]
)
def test_reading_undoes_each_encoding(name: str, tmp_path: Path) -> None:
    card = load_card(name)
    split = "val" if "val" in card.splits else "train"
    written = write_world(tmp_path, name, split, count=1, size=(16, 24))[0]
    label = np.random.default_rng(3).choice([*range(19), 255], (16, 24)).astype(np.uint8)
    write_label(card, card.path(tmp_path, split, "labels", name=written, **parts(card)), label)
    image, read = reading.read_pair(card.pairs(tmp_path, split)[0], card)
    np.testing.assert_array_equal(read, label)
    assert image.shape == (16, 24, 3)
    assert image.dtype == read.dtype == np.uint8


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.new("RGB", (64, 40), (250, 10, 20)).save(pair.image)
    image, _ = reading.read_pair(pair, load_card("gtav"))
    assert image[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize("kind", ["image", "label"])
def test_truncated_png(kind: str, tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    file = getattr(only_pair(tmp_path), kind)
    content = file.read_bytes()
    for length in (len(content) // 2, 20, 0):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{file.name}: cannot be decoded .*again"):
            reading.read_pair(only_pair(tmp_path), load_card("gtav"))


def synthia_pair(root: Path, red: np.ndarray) -> reading.Pair:
    """A pair whose red channel is given and whose other two hold other numbers."""
    write_world(root, "synthia", count=1)
    pair = only_pair(root, Domain(domain="synthia", card="synthia", split="train"))
    Image.new("RGB", red.shape[::-1]).save(pair.image)
    write_rgb16(pair.label, np.stack([red, red * 0 + 8, red * 0 + 4], axis=2))
    return pair


def test_red_of_sixteen_bits_is_the_class(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 4, 21], [22, 0, 11]]))
    _, label = reading.read_pair(pair, load_card("synthia"))
    assert label.tolist() == [[0, 1, 3], [255, 255, 18]]


def test_wide_label_value_is_outside_the_encoding(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 256 + 3], [65535, 255]]))
    with pytest.raises(UserError, match=r"label values \[255, 259, 65535\] are not in the enc"):
        reading.read_pair(pair, load_card("synthia"))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_sixteen_bit_label_of_another_kind(mode: str, tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 4]]))
    Image.new(mode, (2, 1)).save(pair.label)
    with pytest.raises(UserError, match="is no 16-bit PNG of several channels"):
        reading.read_pair(pair, load_card("synthia"))


def test_cut_off_sixteen_bit_label_is_named(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.random.default_rng(0).integers(0, 23, (40, 64)))
    content = pair.label.read_bytes()
    for length in (len(content) // 2, 20, 0):
        pair.label.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{pair.label.name}: cannot be decoded"):
            reading.read_pair(pair, load_card("synthia"))


@pytest.mark.parametrize("void", [19, 255])
def test_urbansyn_void_raw_or_converted(void: int, tmp_path: Path) -> None:
    write_world(tmp_path, "urbansyn", count=1)
    pair = only_pair(tmp_path, Domain(domain="urbansyn", card="urbansyn", split="train"))
    Image.new("RGB", (2, 1)).save(pair.image)
    Image.fromarray(np.array([[18, void]], np.uint8)).save(pair.label)
    assert reading.read_pair(pair, load_card("urbansyn"))[1].tolist() == [[18, 255]]


def test_label_value_outside_the_encoding(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.fromarray(np.full((40, 64), 77, np.uint8)).save(pair.label)
    with pytest.raises(UserError, match=r"label values \[77\] are not in the encoding"):
        reading.read_pair(pair, load_card("gtav"))


def test_label_with_colours(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(pair.label)
    with pytest.raises(UserError, match=r"holds colours .*mode RGB"):
        reading.read_pair(pair, load_card("gtav"))


def test_sizes_differ(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.new("RGB", (32, 40)).save(pair.image)
    with pytest.raises(UserError, match=r"is 32x40 pixels, its label 64x40"):
        reading.read_pair(pair, load_card("gtav"))


def test_halved_pair(tmp_path: Path) -> None:
    """Sides are rounded down; label pixels are those under the centres, image pixels a mean."""
    card, (height, width) = load_card("mapillary"), (41, 67)
    name = write_world(tmp_path, "mapillary", "val", count=1, size=(height, width))[0]
    label = np.random.default_rng(3).choice([*range(19), 255], (height, width)).astype(np.uint8)
    write_label(card, card.path(tmp_path, "val", "labels", name=name), label)
    pair = card.pairs(tmp_path, "val")[0]
    full, _ = reading.read_pair(pair, card)
    image, read = reading.read_pair(pair, card, "pixels")
    assert image.shape == (20, 33, 3)
    rows = ((np.arange(20) + 0.5) * height / 20).astype(int)
    columns = ((np.arange(33) + 0.5) * width / 33).astype(int)
    np.testing.assert_array_equal(read, label[rows][:, columns])
    tensor = torch.from_numpy(full.astype(np.float32)).permute(2, 0, 1)[None]
    bicubic = torch.nn.functional.interpolate(tensor, (20, 33), mode="bicubic", antialias=True)
    expected = bicubic[0].permute(1, 2, 0).clamp(0, 255).numpy()
    np.testing.assert_allclose(image, expected, atol=1.01)  # uint8 rounds after each axis
    through_jpeg, same_label = reading.read_pair(pair, card, "jpeg")
    Image.fromarray(image).save(tmp_path / "halved.jpg")
    np.testing.assert_array_equal(through_jpeg, np.asarray(Image.open(tmp_path / "halved.jpg")))
    np.testing.assert_array_equal(same_label, read)
