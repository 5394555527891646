"""Segmentation from files to samples: every encoding, bad files, halving, order, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_worlds import parts, tiny_protocol, write_label, write_rgb16, write_world

from benchmarks.cell import fingerprints
from benchmarks.data import loading
from benchmarks.data.cards import load_card
from benchmarks.data.files import Pair
from benchmarks.data.loading import Kept
from benchmarks.data.transforms import resize_to
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.segmentation import data

GTAV = Domain(domain="gtav", card="gtav", split="train")


def test_holdout_and_limit(tmp_path: Path) -> None:
    names = write_world(tmp_path, count=6)
    domain = GTAV.model_copy(update={"holdout": 2})

    def shown(pairs: list) -> list[str]:
        return [pair.name for pair in pairs]

    assert shown(data.training_pairs(domain, tmp_path)) == names[:4]
    assert shown(data.evaluation_pairs(domain, tmp_path)) == names[4:]
    assert shown(data.evaluation_pairs(GTAV, tmp_path)) == names
    limited = domain.model_copy(update={"limit": 1})
    assert shown(data.training_pairs(limited, tmp_path)) == names[:1]
    assert shown(data.evaluation_pairs(limited, tmp_path)) == names[4:5]


def test_excluded_pairs_are_left_out_before_holdout_and_limit(tmp_path: Path) -> None:
    names = write_world(tmp_path, count=6)
    domain = GTAV.model_copy(update={"holdout": 2, "exclude": (names[0], names[5])})
    assert [pair.name for pair in data.training_pairs(domain, tmp_path)] == names[1:3]
    assert [pair.name for pair in data.evaluation_pairs(domain, tmp_path)] == names[3:5]
    unknown = GTAV.model_copy(update={"exclude": ("zurich",)})
    for pairs in (data.training_pairs, data.evaluation_pairs):
        with pytest.raises(UserError, match=r"exclude: no image .* of gtav is called 'zurich'"):
            pairs(unknown, tmp_path)


def test_image_that_is_trained_on_and_scored_is_refused(tmp_path: Path) -> None:
    names = write_world(tmp_path, count=4)
    write_world(tmp_path, "bdd100k", "val", count=1)
    held_out = GTAV.model_copy(update={"domain": "gtav_held_out", "holdout": 1})
    protocol = tiny_protocol(source=(GTAV,), validation=(held_out,))
    with pytest.raises(UserError, match=r"gtav_held_out: 1 of its 1 images are trained on in gtav"):
        data.check_data(protocol, tmp_path)
    with pytest.raises(UserError, match=names[3]):
        data.check_data(protocol, tmp_path)
    source = GTAV.model_copy(update={"holdout": 1})
    data.check_data(tiny_protocol(source=(source,), validation=(held_out,)), tmp_path)


def test_halved_domain_in_training_and_evaluation(tmp_path: Path) -> None:
    write_world(tmp_path, count=2)
    domain = GTAV.model_copy(update={"halve": "pixels"})
    protocol = tiny_protocol(source=(domain,), targets=(domain,))
    sample = next(iter(data.evaluation_samples(protocol, tmp_path, domain)))
    assert sample["label"].shape == sample["image"].shape[1:] == (20, 32)
    whole = next(iter(data.batches(tiny_protocol(source=(GTAV,)), tmp_path, 0)))
    assert not same(whole, next(iter(data.batches(protocol, tmp_path, 0))))


def test_everything_held_out(tmp_path: Path) -> None:
    write_world(tmp_path, count=2)
    with pytest.raises(UserError, match="leave none to train on"):
        data.training_pairs(GTAV.model_copy(update={"holdout": 2}), tmp_path)
    with pytest.raises(UserError, match="fewer than the 3 held out"):
        data.evaluation_pairs(GTAV.model_copy(update={"holdout": 3}), tmp_path)


@pytest.mark.parametrize(
    ("shape", "how", "expected"),
    [
        ((40, 64), {}, (40, 64)),
        ((40, 64), {"size": (20, 64)}, (20, 32)),
        ((720, 1280), {"size": (1024, 2048)}, (1024, 1820)),
        ((100, 50), {"size": (64, 128)}, (64, 32)),
        ((100, 50), {"size": (64, 128), "turn": True}, (128, 64)),
        ((50, 100), {"size": (64, 128), "turn": True}, (64, 128)),
        ((40, 64), {"size": (20, 20), "keep_ratio": False}, (20, 20)),
    ],
)
def test_fit(shape: tuple[int, int], how: dict, expected: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    domain = Domain(domain="a", card="b", split="c", **how)
    assert resize_to(image, domain).shape[:2] == expected


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("image", "label"))


def test_batches_resume_anywhere(tmp_path: Path) -> None:
    write_world(tmp_path, count=4)
    protocol = tiny_protocol()
    whole = list(data.batches(protocol, tmp_path, seed=1, first=0))
    assert len(whole) == 6
    assert whole[0]["image"].shape == (2, 3, 32, 32)
    assert whole[0]["image"].dtype == torch.float32
    assert whole[0]["label"].dtype == torch.int64
    for first in (1, 4):
        rest = list(data.batches(protocol, tmp_path, seed=1, first=first))
        assert len(rest) == 6 - first
        assert all(same(one, other) for one, other in zip(rest, whole[first:], strict=True))
    assert not same(whole[0], next(iter(data.batches(protocol, tmp_path, seed=2, first=0))))


def test_batches_leave_the_global_generator_alone(tmp_path: Path) -> None:
    write_world(tmp_path, count=4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    next(iter(data.batches(tiny_protocol(), tmp_path, seed=1, first=0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    write_world(tmp_path, count=4)
    here, there = tiny_protocol(), tiny_protocol()
    there.recipe.loader_workers = 1
    for one, other in zip(
        data.batches(here, tmp_path, 1, 0), data.batches(there, tmp_path, 1, 0), strict=True
    ):
        assert same(one, other)


def test_epochs_are_permutations_of_all_sources(tmp_path: Path) -> None:
    write_world(tmp_path, count=3)
    write_world(tmp_path, "bdd100k", "train", count=2)
    sources = (GTAV, Domain(domain="bdd100k", card="bdd100k", split="train"))
    protocol = tiny_protocol(source=sources)
    samples = data.TrainingSamples(sources, tmp_path, protocol.augment, protocol.input, seed=0)
    epochs = [[samples.index(n) for n in range(start, start + 5)] for start in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert sum(pair.image.suffix == ".jpg" for pair, *_ in samples.pairs) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_file_is_one_line(workers: int, tmp_path: Path) -> None:
    write_world(tmp_path, count=3)
    for pair in data.training_pairs(GTAV, tmp_path):
        pair.image.write_bytes(b"")
    protocol = tiny_protocol()
    protocol.recipe.loader_workers = workers
    with pytest.raises(UserError, match=r"\.png: cannot be decoded") as caught:
        next(iter(data.batches(protocol, tmp_path, 0, 0)))
    assert "Traceback" not in str(caught.value)


def test_missing_data_root_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        data.batches(tiny_protocol(), tmp_path / "nowhere", 0, 0)


def test_evaluation_sample_keeps_the_ground_truth_size(tmp_path: Path) -> None:
    write_world(tmp_path, "bdd100k", "val", count=2, size=(40, 64))
    protocol = tiny_protocol()
    sample = next(iter(data.evaluation_samples(protocol, tmp_path, protocol.targets[0])))
    assert sample["image"].shape == (3, 30, 48)
    assert sample["label"].shape == (40, 64)
    assert sample["domain"] == "bdd100k"


def test_domain_names_and_fingerprints(tmp_path: Path) -> None:
    write_world(tmp_path, count=3)
    write_world(tmp_path, "bdd100k", "val", count=2)
    protocol = tiny_protocol()
    names = [domain.domain for domain in protocol.scored_domains]
    assert names == ["gtav_held_out", "bdd100k"]
    prints = fingerprints(protocol, tmp_path)
    assert set(prints) == {"gtav", *names}
    assert prints["gtav"] == prints["gtav_held_out"] != prints["bdd100k"]
    assert all(len(value) == 64 for value in prints.values())


def only_pair(root: Path, domain: Domain = GTAV) -> Pair:
    return data.evaluation_pairs(domain, root)[0]


@pytest.mark.parametrize(
    "name", ["acdc", "bdd100k", "cityscapes", "gtav", "mapillary", "synthia", "urbansyn"]
)
def test_reading_undoes_each_encoding(name: str, tmp_path: Path) -> None:
    card = load_card(name)
    split = "val" if "val" in card.splits else "train"
    written = write_world(tmp_path, name, split, count=1, size=(16, 24))[0]
    label = np.random.default_rng(3).choice([*range(19), 255], (16, 24)).astype(np.uint8)
    write_label(card, card.path(tmp_path, split, "labels", name=written, **parts(card)), label)
    image, read = data.read_pair(card.pairs(tmp_path, split)[0], card)
    np.testing.assert_array_equal(read, label)
    assert image.shape == (16, 24, 3)
    assert image.dtype == read.dtype == np.uint8


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.new("RGB", (64, 40), (250, 10, 20)).save(pair.image)
    image, _ = data.read_pair(pair, load_card("gtav"))
    assert image[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize("kind", ["image", "label"])
def test_truncated_png(kind: str, tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    file = getattr(only_pair(tmp_path), kind)
    content = file.read_bytes()
    for length in (len(content) // 2, 20, 0):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{file.name}: cannot be decoded .*again"):
            data.read_pair(only_pair(tmp_path), load_card("gtav"))


def synthia_pair(root: Path, red: np.ndarray) -> Pair:
    """A pair whose red channel is given and whose other two hold other numbers."""
    write_world(root, "synthia", count=1)
    pair = only_pair(root, Domain(domain="synthia", card="synthia", split="train"))
    Image.new("RGB", red.shape[::-1]).save(pair.image)
    write_rgb16(pair.label, np.stack([red, red * 0 + 8, red * 0 + 4], axis=2))
    return pair


def test_red_of_sixteen_bits_is_the_class(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 4, 21], [22, 0, 11]]))
    _, label = data.read_pair(pair, load_card("synthia"))
    assert label.tolist() == [[0, 1, 3], [255, 255, 18]]


def test_wide_label_value_is_outside_the_encoding(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 256 + 3], [65535, 255]]))
    with pytest.raises(UserError, match=r"label values \[255, 259, 65535\] are not in the enc"):
        data.read_pair(pair, load_card("synthia"))


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_sixteen_bit_label_of_another_kind(mode: str, tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.array([[3, 4]]))
    Image.new(mode, (2, 1)).save(pair.label)
    with pytest.raises(UserError, match="is no 16-bit PNG of several channels"):
        data.read_pair(pair, load_card("synthia"))


def test_cut_off_sixteen_bit_label_is_named(tmp_path: Path) -> None:
    pair = synthia_pair(tmp_path, np.random.default_rng(0).integers(0, 23, (40, 64)))
    content = pair.label.read_bytes()
    for length in (len(content) // 2, 20, 0):
        pair.label.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"{pair.label.name}: cannot be decoded"):
            data.read_pair(pair, load_card("synthia"))


@pytest.mark.parametrize("void", [19, 255])
def test_urbansyn_void_raw_or_converted(void: int, tmp_path: Path) -> None:
    write_world(tmp_path, "urbansyn", count=1)
    pair = only_pair(tmp_path, Domain(domain="urbansyn", card="urbansyn", split="train"))
    Image.new("RGB", (2, 1)).save(pair.image)
    Image.fromarray(np.array([[18, void]], np.uint8)).save(pair.label)
    assert data.read_pair(pair, load_card("urbansyn"))[1].tolist() == [[18, 255]]


def test_label_value_outside_the_encoding(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.fromarray(np.full((40, 64), 77, np.uint8)).save(pair.label)
    with pytest.raises(UserError, match=r"label values \[77\] are not in the encoding"):
        data.read_pair(pair, load_card("gtav"))


def test_label_with_colours(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(pair.label)
    with pytest.raises(UserError, match=r"holds colours .*mode RGB"):
        data.read_pair(pair, load_card("gtav"))


def test_sizes_differ(tmp_path: Path) -> None:
    write_world(tmp_path, count=1)
    pair = only_pair(tmp_path)
    Image.new("RGB", (32, 40)).save(pair.image)
    with pytest.raises(UserError, match=r"is 32x40 pixels, its label 64x40"):
        data.read_pair(pair, load_card("gtav"))


def test_halved_pair(tmp_path: Path) -> None:
    """Sides are rounded down; label pixels are those under the centres, image pixels a mean."""
    card, (height, width) = load_card("mapillary"), (41, 67)
    name = write_world(tmp_path, "mapillary", "val", count=1, size=(height, width))[0]
    label = np.random.default_rng(3).choice([*range(19), 255], (height, width)).astype(np.uint8)
    write_label(card, card.path(tmp_path, "val", "labels", name=name), label)
    pair = card.pairs(tmp_path, "val")[0]
    full, _ = data.read_pair(pair, card)
    image, read = data.read_pair(pair, card, "pixels")
    assert image.shape == (20, 33, 3)
    rows = ((np.arange(20) + 0.5) * height / 20).astype(int)
    columns = ((np.arange(33) + 0.5) * width / 33).astype(int)
    np.testing.assert_array_equal(read, label[rows][:, columns])
    tensor = torch.from_numpy(full.astype(np.float32)).permute(2, 0, 1)[None]
    bicubic = torch.nn.functional.interpolate(tensor, (20, 33), mode="bicubic", antialias=True)
    expected = bicubic[0].permute(1, 2, 0).clamp(0, 255).numpy()
    np.testing.assert_allclose(image, expected, atol=1.01)  # uint8 rounds after each axis
    through_jpeg, same_label = data.read_pair(pair, card, "jpeg")
    Image.fromarray(image).save(tmp_path / "halved.jpg")
    np.testing.assert_array_equal(through_jpeg, np.asarray(Image.open(tmp_path / "halved.jpg")))
    np.testing.assert_array_equal(same_label, read)


def test_pairs_are_decoded_once_and_exactly_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_world(tmp_path, count=3)
    protocol, decoded = tiny_protocol(), []

    def counting(*arguments: Path, **options: str) -> Image.Image:
        decoded.append(arguments)
        return loading.decoded(*arguments, **options)

    monkeypatch.setattr(data, "_KEPT", Kept())
    monkeypatch.setattr(data, "decoded", counting)
    batches = [list(data.batches(protocol, tmp_path, 0)) for _ in range(2)]
    assert len(decoded) == 2 * 2  # image and label of two pairs, in 24 samples
    monkeypatch.setattr(data, "_KEPT", Kept(limit=0))
    batches.append(list(data.batches(protocol, tmp_path, 0)))
    assert len(decoded) == 4 + 2 * 12
    for first, *others in zip(*batches, strict=True):
        for other in others:
            for key, value in first.items():
                assert torch.equal(value, other[key])
