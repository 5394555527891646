import threading
from collections.abc import Iterator

import pytest
import torch

from soma.initialise import singular_triplets
from soma.threads import side_by_side


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_as_many_at_a_time_as_torch_has_threads_in_order(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=20)

    def meet(item: int) -> tuple[int, int]:
        meeting.wait()  # returns once `threads` calls run at the same time
        return item, torch.get_num_threads()

    assert side_by_side(meet, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == threads


def test_threads_are_as_before_after_an_error(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda item: 1 // item, [1, 0, 2])
    assert torch.get_num_threads() == threads


def test_splits_have_the_same_bits_whatever_the_number(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMA_CACHE", "")
    torch.manual_seed(0)
    weights = [torch.randn(*shape) for shape in [(128, 128), (512, 128), (128, 512)] * 4]

    def split(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return singular_triplets(weight, range(112, 128))

    found = side_by_side(split, weights)
    torch.set_num_threads(1)
    for triplets, weight in zip(found, weights, strict=True):
        assert all(map(torch.equal, triplets, split(weight)))
