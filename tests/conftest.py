from collections.abc import Callable

import benchmarks  # noqa: F401 - before torch: it sets the instruction set

# isort: split
import pytest
import torch
from small_vits import VITS, build_vit
from torch import nn

from benchmarks.detection import engines


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("detectron2") and engines.resolve("auto") != "detectron2":
        pytest.skip("Detectron2 is not installed; README.md says how to get it")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Splits of singular values made by tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOMA_CACHE", str(tmp_path_factory.mktemp("soma-cache")))
        yield


@pytest.fixture
def one_thread() -> None:
    """Reductions in one order, for tests that compare bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=VITS)
def small_vit(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    """Builder of a small ViT, the same weights on every call, for each layout of tokens."""
    return lambda **options: build_vit(request.param, **options)


@pytest.fixture
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions on a GPU in float32; torch rounds their factors to TF32 unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
