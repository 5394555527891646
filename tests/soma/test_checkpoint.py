import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from soma import SoMA, adapt, load_adapter, save_adapter
from soma import initialise as soma_initialise

Build = Callable[..., nn.Module]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trained(small_vit: Build) -> tuple[SoMA, nn.Module]:
    vit = small_vit()
    method = adapt(SoMA(rank=2, alpha=3), vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method, vit


def test_loads_onto_the_pretrained_weights_without_an_svd(
    trained, small_vit: Build, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, vit = trained
    save_adapter(vit, tmp_path / "a" / "adapter.safetensors", method)
    monkeypatch.setattr(soma_initialise, "singular_triplets", None)
    fresh = small_vit()
    placed = load_adapter(SoMA(rank=2, alpha=3), fresh, tmp_path / "a" / "adapter.safetensors")
    assert placed == method
    for (name, expected), (_, got) in zip(
        vit.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert torch.equal(got, expected), name
    learn = [parameter.requires_grad for parameter in vit.parameters()]
    assert [parameter.requires_grad for parameter in fresh.parameters()] == learn
    assert torch.equal(fresh(images), vit(images))


def test_file_holds_only_what_differs(trained, tmp_path: Path) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method, extra={"head.weight": torch.ones(2)})
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
    assert names == {"head.weight"} | {
        f"{name}.{tensor}"
        for name, module in vit.named_modules()
        if hasattr(module, "lora_a0")
        for tensor in ("bias", "lora_a", "lora_b", "lora_a0", "lora_b0")
    }
    assert os.listdir(tmp_path) == ["adapter.safetensors"]


def test_extra_tensors_are_left_to_the_caller(trained, small_vit: Build, tmp_path: Path) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method, extra={"head.weight": torch.ones(2)})
    load_adapter(method, small_vit(), path)
    with pytest.raises(ValueError, match="is a tensor of the adapter"):
        save_adapter(vit, path, method, extra={"blocks.3.attn.proj.bias": torch.ones(2)})


@pytest.mark.parametrize("described", [True, False])
def test_another_method_is_refused(trained, small_vit: Build, tmp_path: Path, described) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method if described else None)
    for other in (SoMA(rank=3, alpha=3), SoMA(rank=2, alpha=3, start_block=2)):
        with pytest.raises(ValueError, match=r"adapter\.safetensors"):
            load_adapter(other, small_vit(), path)


def test_another_backbone_is_refused(trained, small_vit: Build, tmp_path: Path) -> None:
    method, vit = trained
    vit.weights_sha256 = "aa"
    save_adapter(vit, tmp_path / "adapter.safetensors", method)
    fresh = small_vit()
    fresh.weights_sha256 = "bb"
    with pytest.raises(ValueError, match="backbone aa, not bb"):
        load_adapter(method, fresh, tmp_path / "adapter.safetensors")


def test_other_files_are_refused(trained, small_vit: Build, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not written by save_adapter"):
        load_adapter(trained[0], small_vit(), tmp_path / "other.safetensors")


def test_a_failed_write_leaves_the_old_file(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("soma.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(vit, path, method)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["adapter.safetensors"]
