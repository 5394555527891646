import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from published_methods import VeRA
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from soma import AdapterError, Method, SoMA, adapt, load_adapter, save_adapter
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


def test_a_frozen_tensor_that_layers_share_is_saved_once_and_shared_again(
    small_vit: Build, images: torch.Tensor, tmp_path: Path
) -> None:
    vit, fresh = small_vit(), small_vit()
    method = adapt(VeRA(rank=4), vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    save_adapter(vit, tmp_path / "adapter.safetensors", method)
    with safe_open(str(tmp_path / "adapter.safetensors"), framework="pt") as file:
        assert sum(name.endswith(".vera_a") for name in file.keys()) == 1  # noqa: SIM118
    load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh(images), vit(images))
    assert fresh.blocks[0].mlp.fc1.vera_a is fresh.blocks[3].mlp.fc2.vera_a


def test_extra_tensors_are_left_to_the_caller(trained, small_vit: Build, tmp_path: Path) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method, extra={"head.weight": torch.ones(2)})
    load_adapter(method, small_vit(), path)
    with pytest.raises(ValueError, match="is a tensor of the adapter"):
        save_adapter(vit, path, method, extra={"blocks.3.attn.proj.bias": torch.ones(2)})


def unchanged(vit: nn.Module, plain: nn.Module) -> bool:
    """Bit-equal tensors under the same names, nothing noted, hooked or learning that was not."""
    state, expected = vit.state_dict(), plain.state_dict()
    return (
        list(state) == list(expected)
        and all(torch.equal(state[name], value) for name, value in expected.items())
        and [p.requires_grad for p in vit.parameters()]
        == [p.requires_grad for p in plain.parameters()]
        and [type(m) for m in vit.modules()] == [type(m) for m in plain.modules()]
        and not hasattr(vit, "adaptation")
        and not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())
    )


class Elsewhere:
    @dataclass(frozen=True, kw_only=True)
    class SoMA(SoMA):
        pass


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("other", "line"),
    [
        (SoMA(rank=3, alpha=3), "with rank 2, not soma.soma.SoMA with rank 3"),
        (SoMA(rank=2, alpha=5), r"with alpha 3\.0, not soma.soma.SoMA with alpha 5\.0"),
        (SoMA(rank=2, alpha=3, start_block=2), "with start_block 1, not .* start_block 2"),
        (Elsewhere.SoMA(rank=2, alpha=3), r"soma\.soma\.SoMA with the same .*Elsewhere\.SoMA"),
    ],
)
def test_another_method_is_refused(trained, small_vit: Build, tmp_path, given, other, line) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, method if given else None)
    fresh = small_vit()
    with pytest.raises(AdapterError, match=rf"adapter\.safetensors: saved with .*{line}"):
        load_adapter(other, fresh, path)
    assert unchanged(fresh, small_vit())
    with pytest.raises(ValueError, match=line):
        save_adapter(vit, path, other)


def test_a_class_that_adds_other_tensors_than_it_did_is_refused(
    small_vit: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, path = small_vit(), tmp_path / "adapter.safetensors"
    method = adapt(SoMA(rank=2), vit)
    save_adapter(vit, path)

    def attach(self: SoMA, vit: nn.Module) -> None:
        vit.blocks[0].attn.proj.weight.data.zero_()
        vit.blocks[0].register_forward_hook(lambda *_: None)
        vit.extra = nn.Linear(2, 2)

    monkeypatch.setattr(SoMA, "attach_empty", attach)
    fresh = small_vit()
    with pytest.raises(AdapterError, match="does not fit the method: they differ in"):
        load_adapter(method, fresh, path)
    assert unchanged(fresh, small_vit())


def test_a_backbone_that_differs_in_one_number_is_refused(
    trained, small_vit: Build, tmp_path: Path
) -> None:
    method, vit = trained
    save_adapter(vit, tmp_path / "adapter.safetensors")

    def other() -> nn.Module:
        fresh = small_vit()
        fresh.blocks[2].mlp.fc1.weight.data[3, 4] += 1e-3
        return fresh

    fresh = other()
    with pytest.raises(AdapterError, match=r"made on pretrained weights .* this backbone holds"):
        load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    assert unchanged(fresh, other())


def test_a_backbone_that_is_adapted_or_not_is_refused(
    trained, small_vit: Build, tmp_path: Path
) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path)
    with pytest.raises(AdapterError, match=r"adapter\.safetensors: .* adapted already, by .*SoMA"):
        load_adapter(method, vit, path)
    with pytest.raises(AdapterError, match="not adapted"):
        save_adapter(small_vit(), path)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda content: flipped(content, -9), "damaged, its tensors are not those"),
        (lambda content: flipped(content, 20), ""),
        (lambda content: content[:-10], "damaged, or no safetensors file"),
        (lambda content: b"", "damaged, or no safetensors file"),
        (lambda content: b"<html>log in</html>", "damaged, or no safetensors file"),
        (lambda content: None, "cannot be read|No such file"),
        (lambda content: save({"x": torch.ones(1)}), "not written by save_adapter"),
        (lambda content: save({}, {"adapter": "[1]"}), "not written by save_adapter"),
    ],
)
def test_other_and_damaged_files_are_refused(
    trained, small_vit: Build, tmp_path: Path, damage, line
) -> None:
    method, vit = trained
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, extra={"head": torch.ones(9)})
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    fresh = small_vit()
    with pytest.raises(AdapterError, match=rf"adapter\.safetensors: .*({line})"):
        load_adapter(method, fresh, path)
    assert unchanged(fresh, small_vit())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_that_is_not_finite_is_refused(trained, small_vit, tmp_path, value) -> None:
    method, vit = trained
    vit.blocks[2].attn.proj.lora_b.data[1, 1] = value
    save_adapter(vit, tmp_path / "adapter.safetensors")
    fresh = small_vit()
    with pytest.raises(AdapterError, match=r"blocks\.2\.attn\.proj\.lora_b is not finite"):
        load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    assert unchanged(fresh, small_vit())


def test_what_the_user_let_learn_besides_is_saved_and_loaded(
    trained, small_vit: Build, tmp_path: Path
) -> None:
    method, vit = trained
    vit.norm.weight.requires_grad_(True).data += 1
    save_adapter(vit, tmp_path / "adapter.safetensors")
    fresh = small_vit()
    load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh.norm.weight, vit.norm.weight)


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


def test_equal_content_is_equal_in_bytes_and_readable_by_all(
    trained, small_vit: Build, tmp_path: Path
) -> None:
    method, vit = trained
    again = small_vit()
    save_adapter(vit, tmp_path / "0.safetensors", extra={"b": torch.ones(2), "a": torch.ones(3)})
    load_adapter(method, again, tmp_path / "0.safetensors")
    for number in range(1, 9):
        other = {"a": torch.ones(3), "b": torch.ones(2)}
        save_adapter(again, tmp_path / f"{number}.safetensors", extra=other)
    files = list(tmp_path.iterdir())
    assert len(files) == 9
    assert len({path.read_bytes() for path in files}) == 1
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


class Shares(nn.Module):
    def __init__(self, bank: torch.Tensor, part: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("part", part)
        self.gain = nn.Parameter(torch.zeros(()))

    def add(self, block: nn.Module, args: tuple, y: torch.Tensor) -> torch.Tensor:
        return y + self.gain * (self.bank.sum() + self.part.sum())


@dataclass(frozen=True, kw_only=True)
class Bank(Method):
    """Frozen tensors that all blocks share, and a view into one of them."""

    source: ClassVar[str] = "test"

    def attach(self, vit: nn.Module) -> None:
        bank = torch.randn(6, 4)
        for block in vit.blocks:
            block.shares = Shares(bank, bank[:3]).train(block.training)
            block.register_forward_hook(block.shares.add)


def test_frozen_tensors_that_layers_share_can_be_saved(
    small_vit: Build, images, tmp_path: Path
) -> None:
    vit, fresh = small_vit(), small_vit()
    for backbone in (vit, fresh):  # pretrained weights that are tied are no part of an adapter
        backbone.blocks[1].norm1.weight = backbone.blocks[0].norm1.weight
    torch.manual_seed(1)
    method = adapt(Bank(), vit)
    for block in vit.blocks:
        block.shares.gain.data += 0.3
    save_adapter(vit, tmp_path / "adapter.safetensors")
    with safe_open(str(tmp_path / "adapter.safetensors"), framework="pt") as file:
        assert not [name for name in file.keys() if "norm" in name]  # noqa: SIM118
    torch.manual_seed(2)
    load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh(images), vit(images))
