from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

VITS = {
    "class token": {},
    "registers and layer scale": {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True},
}


def build_vit(kind: str, *, split: bool = True) -> nn.Module:
    """A random ViT of 4 blocks, width 32, 16 patches; no tensor of it is constant."""
    from soma.backbone import split_qkv

    torch.manual_seed(7)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=0,
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        **VITS[kind],
    )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if split:
        split_qkv(vit)
    return vit.eval()


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
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
