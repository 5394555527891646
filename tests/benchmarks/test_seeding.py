import numpy as np
import pytest
import torch

from benchmarks.seeding import stream, torch_seed

NAMES = ["initialisation", "order", "augmentation", "loss"]


def draw(*key):
    return stream(*key).integers(2**63, size=4).tolist()


def test_a_stream_is_a_pure_function_of_its_key():
    assert draw(7, "order", 3) == draw(7, "order", 3)
    assert torch_seed(7, "loss", 3) == torch_seed(7, "loss", 3)


def test_golden_integers_do_not_change():
    # Committed records depend on these; a change here makes all of them incomparable.
    assert stream(0, "order").integers(10**9, size=3).tolist() == [294225437, 629655835, 129481639]
    assert stream(2, "augmentation", 11).integers(10**9, size=3).tolist() == [
        74923251,
        366129293,
        518388355,
    ]
    assert torch_seed(0, "initialisation") == 4441231579979009484
    assert torch_seed(1, "loss", 319) == 6361485641141372952


def test_seeds_names_and_counters_all_give_other_streams():
    keys = [
        (s, n, *c)
        for s in range(3)
        for n in NAMES
        for c in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    ]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert len({torch_seed(*key) for key in keys}) == len(keys)


def test_streams_are_uncorrelated():
    rows = np.array([stream(0, name, n).normal(size=4000) for name in NAMES for n in range(8)])
    off_diagonal = np.corrcoef(rows)[~np.eye(len(rows), dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.08  # 5 sd of the correlation of independent streams


def test_torch_takes_every_seed():
    for n in range(200):
        torch.manual_seed(torch_seed(n, "loss", n))


@pytest.mark.parametrize(
    "key", [(-1, "order"), (2**32, "order"), (0, "order", -1), (0, "order", 2**32)]
)
def test_numbers_that_would_collide_are_refused(key):
    with pytest.raises(ValueError, match="does not fit"):
        stream(*key)
