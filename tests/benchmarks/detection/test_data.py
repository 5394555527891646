from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_voc import (
    AUGMENT,
    NIGHT,
    SOURCE,
    annotation,
    box,
    tiny_detection_protocol,
    write_domain,
)

from benchmarks.data import cards
from benchmarks.data.cards import load_card
from benchmarks.data.transforms import pad_to, resized_shape
from benchmarks.detection import data, reading
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.tasks import load_protocol

SDGOD = load_card("sdgod", "boxes")


def names(pairs: list[cards.Pair]) -> list[str]:
    return [pair.name for pair in pairs]


def test_image_that_is_no_image(tmp_path: Path) -> None:
    write_domain(tmp_path, count=1)
    pair = SDGOD.pairs(tmp_path, SOURCE.split)[0]
    pair.image.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"\.jpg: cannot be decoded .*again"):
        reading.read_pair(pair, SDGOD)


def test_sizes_of_image_and_annotation_differ(tmp_path: Path) -> None:
    write_domain(tmp_path, count=1)
    pair = SDGOD.pairs(tmp_path, SOURCE.split)[0]
    pair.label.write_text(annotation(size=(64, 40)))
    with pytest.raises(UserError, match=r"is 64x40 pixels, its annotation says 40x64"):
        reading.read_pair(pair, SDGOD)


def test_holdout_limit_and_empty_images(tmp_path: Path) -> None:
    written = write_domain(tmp_path, count=8, empty=[1, 6])
    domain = SOURCE.model_copy(update={"holdout": 3, "limit": 4})

    def learnt(empty: str, **changes: object) -> list[str]:
        changed = domain.model_copy(update=changes)
        return names(reading.training_pairs(changed, tmp_path, "keep", empty))

    assert learnt("keep") == written[:4]
    assert learnt("drop") == [written[0], *written[2:4]]
    assert learnt("drop", limit=None) == [written[0], *written[2:5]]  # nothing of the held out
    everything = domain.model_copy(update={"limit": None})
    assert names(reading.evaluation_pairs(everything, tmp_path)) == written[5:]
    with pytest.raises(UserError, match="leave none to train on"):
        learnt("keep", holdout=8)


def test_excluded_images_and_halving(tmp_path: Path) -> None:
    written = write_domain(tmp_path, count=3)
    without = SOURCE.model_copy(update={"exclude": (written[1],)})
    assert names(reading.training_pairs(without, tmp_path, "keep", "keep")) == written[::2]
    assert names(reading.evaluation_pairs(without, tmp_path)) == written[::2]
    halved = SOURCE.model_copy(update={"halve": "pixels"})
    for pairs in (
        lambda: reading.training_pairs(halved, tmp_path, "keep", "keep"),
        lambda: reading.evaluation_pairs(halved, tmp_path),
    ):
        with pytest.raises(UserError, match="halve: boxes are never halved"):
            pairs()


def test_nothing_to_learn(tmp_path: Path) -> None:
    names_ = write_domain(tmp_path, count=2, empty=[0])
    label = SDGOD.path(tmp_path, SOURCE.split, "labels", name=names_[1])
    label.write_text(annotation(box("car", (1, 1, 20, 20), 1)))
    assert len(reading.training_pairs(SOURCE, tmp_path, "keep", "drop")) == 1
    with pytest.raises(UserError, match="no image has a box to train on"):
        reading.training_pairs(SOURCE, tmp_path, "drop", "drop")


def same(one: data.Batch, other: data.Batch) -> bool:
    return all(
        torch.equal(a, b)
        for key in ("image", "boxes", "labels", "size")
        for a, b in zip(one[key], other[key], strict=True)
    )


def test_batches_resume_anywhere(tmp_path: Path) -> None:
    write_domain(tmp_path, count=5)
    protocol = tiny_detection_protocol()
    whole = list(data.batches(protocol, tmp_path, seed=1))
    assert len(whole) == 6
    first = whole[0]
    assert first["image"].shape == (2, 3, 32, 32)
    assert first["size"].shape == (2, 2)
    kinds = {key: value[0].dtype for key, value in first.items()}
    assert kinds == {
        "image": torch.float32,
        "boxes": torch.float32,
        "labels": torch.int64,
        "size": torch.int64,
    }
    assert len(first["boxes"]) == len(first["labels"]) == 2
    for start in (1, 4):
        rest = list(data.batches(protocol, tmp_path, 1, start))
        assert all(same(one, other) for one, other in zip(rest, whole[start:], strict=True))
    assert not same(first, next(iter(data.batches(protocol, tmp_path, 2))))


def test_batches_leave_the_global_generator_alone(tmp_path: Path) -> None:
    write_domain(tmp_path)
    state = torch.get_rng_state()
    next(iter(data.batches(tiny_detection_protocol(), tmp_path, 1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    write_domain(tmp_path)
    there = tiny_detection_protocol(recipe=SimpleNamespace(iterations=6, batch=2, loader_workers=1))
    for one, other in zip(
        data.batches(tiny_detection_protocol(), tmp_path, 1),
        data.batches(there, tmp_path, 1),
        strict=True,
    ):
        assert same(one, other)


@pytest.mark.parametrize(("rule", "seen"), [("keep", {0, 2}), ("drop", {2})])
def test_difficult_boxes(rule: str, seen: set[int], tmp_path: Path) -> None:
    written = write_domain(tmp_path, count=1)
    label = SDGOD.path(tmp_path, SOURCE.split, "labels", name=written[0])
    label.write_text(annotation(box("car", (1, 1, 64, 40)), box("bus", (1, 1, 64, 40), 1)))
    augment = AUGMENT.model_copy(update={"difficult": rule})
    first_batch = next(iter(data.batches(tiny_detection_protocol(augment=augment), tmp_path, 0)))
    assert set(first_batch["labels"][0].tolist()) == seen


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_training_file_is_one_line(workers: int, tmp_path: Path) -> None:
    write_domain(tmp_path, count=2)
    for pair in SDGOD.pairs(tmp_path, SOURCE.split):
        pair.label.write_text(annotation(box("tram", (1, 1, 2, 2))))
    recipe = SimpleNamespace(iterations=6, batch=2, loader_workers=workers)
    with pytest.raises(UserError, match=r"\.xml: object of unknown class 'tram'") as caught:
        next(iter(data.batches(tiny_detection_protocol(recipe=recipe), tmp_path, 0)))
    assert "Traceback" not in str(caught.value)


def test_missing_data_root_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        data.batches(tiny_detection_protocol(), tmp_path / "nowhere", 0)


def test_evaluation_sample_keeps_boxes_in_file_pixels(tmp_path: Path) -> None:
    written = write_domain(tmp_path, "night_clear", count=3, empty=[1])
    protocol = tiny_detection_protocol()
    samples = list(data.evaluation_samples(protocol, tmp_path, protocol.targets[0]))
    assert [sample["name"] for sample in samples] == written
    assert samples[0]["image"].shape == (3, 20, 32)
    assert samples[0]["scale"] == (0.5, 0.5)
    stored = reading.read_objects(SDGOD.pairs(tmp_path, NIGHT.split)[0], SDGOD)
    np.testing.assert_array_equal(samples[0]["objects"].boxes, stored.boxes)
    assert len(samples[1]["objects"]) == 0
    stretched = NIGHT.model_copy(update={"size": (20, 64), "keep_ratio": False})
    sample = next(iter(data.evaluation_samples(protocol, tmp_path, stretched)))
    assert sample["scale"] == (0.5, 1.0)


def test_padding_follows_the_resize_and_the_normalisation(tmp_path: Path) -> None:
    write_domain(tmp_path, "night_clear", count=2)
    protocol = tiny_detection_protocol()
    plain = protocol.targets[0]
    padded = plain.model_copy(update={"pad": (48, 64)})
    both = (data.evaluation_samples(protocol, tmp_path, domain) for domain in (plain, padded))
    for one, other in zip(*both, strict=True):
        assert other["image"].shape == (3, 48, 64)
        assert torch.equal(other["image"][:, :20, :32], one["image"])
        assert not other["image"][:, 20:].any()
        assert not other["image"][..., 32:].any()
        assert one["size"] == other["size"] == (20, 32)
        assert one["scale"] == other["scale"]


@pytest.mark.parametrize("name", ["soma_sdgod", "paper_sdgod"])
def test_patches_of_a_test_image_keep_their_position_embeddings(name: str) -> None:
    """Images of 720x1280: what reaches the ViT has the size of the training crops."""
    protocol = load_protocol(name)
    for domain in protocol.scored_domains:
        assert resized_shape((720, 1280), domain) == (576, 1024)
        image = np.zeros((3, *resized_shape((720, 1280), domain)), np.float32)
        assert pad_to(image, domain.pad).shape == (3, protocol.augment.crop, protocol.augment.crop)


def test_padding_that_cannot_be_is_refused() -> None:
    fields = {"domain": "a", "card": "sdgod", "split": "night_clear", "pad": (40, 64)}
    for wrong, message in (
        ({}, "pad needs a size"),
        ({"size": (48, 64)}, r"pad \[40, 64\] has no room for images of \[48, 64\]"),
        ({"size": (40, 64), "turn": True}, "has no room"),
    ):
        with pytest.raises(ValidationError, match=message):
            Domain(**fields, **wrong)


def test_bad_evaluation_file_is_one_line(tmp_path: Path) -> None:
    write_domain(tmp_path, "night_clear", count=1)
    SDGOD.pairs(tmp_path, "night_clear")[0].image.write_bytes(b"")
    protocol = tiny_detection_protocol()
    with pytest.raises(UserError, match="cannot be decoded"):
        next(iter(data.evaluation_samples(protocol, tmp_path, protocol.targets[0])))
