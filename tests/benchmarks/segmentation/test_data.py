from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_worlds import tiny_protocol, write_world

from benchmarks.cell import fingerprints
from benchmarks.data.transforms import resize_to
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.segmentation import data, reading

GTAV = Domain(domain="gtav", card="gtav", split="train")


def test_holdout_and_limit(tmp_path: Path) -> None:
    names = write_world(tmp_path, count=6)
    domain = GTAV.model_copy(update={"holdout": 2})

    def shown(pairs: list) -> list[str]:
        return [pair.name for pair in pairs]

    assert shown(reading.training_pairs(domain, tmp_path)) == names[:4]
    assert shown(reading.evaluation_pairs(domain, tmp_path)) == names[4:]
    assert shown(reading.evaluation_pairs(GTAV, tmp_path)) == names
    limited = domain.model_copy(update={"limit": 1})
    assert shown(reading.training_pairs(limited, tmp_path)) == names[:1]
    assert shown(reading.evaluation_pairs(limited, tmp_path)) == names[4:5]


def test_excluded_pairs_are_left_out_before_holdout_and_limit(tmp_path: Path) -> None:
    names = write_world(tmp_path, count=6)
    domain = GTAV.model_copy(update={"holdout": 2, "exclude": (names[0], names[5])})
    assert [pair.name for pair in reading.training_pairs(domain, tmp_path)] == names[1:3]
    assert [pair.name for pair in reading.evaluation_pairs(domain, tmp_path)] == names[3:5]
    unknown = GTAV.model_copy(update={"exclude": ("zurich",)})
    for pairs in (reading.training_pairs, reading.evaluation_pairs):
        with pytest.raises(UserError, match="exclude: no pair of gtav is called 'zurich'"):
            pairs(unknown, tmp_path)


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
        reading.training_pairs(GTAV.model_copy(update={"holdout": 2}), tmp_path)
    with pytest.raises(UserError, match="fewer than the 3 held out"):
        reading.evaluation_pairs(GTAV.model_copy(update={"holdout": 3}), tmp_path)


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
    for pair in reading.training_pairs(GTAV, tmp_path):
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
