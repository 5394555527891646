import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_worlds import BACKBONE

from benchmarks.backbones import load_backbone
from benchmarks.errors import UserError
from benchmarks.protocol import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def stored(tmp_path: Path) -> tuple[torch.nn.Module, Backbone]:
    """A timm model, and the spec of the file that holds its weights."""
    torch.manual_seed(0)
    vit = timm.create_model(
        BACKBONE.name, pretrained=False, num_classes=0, dynamic_img_size=True, **BACKBONE.args
    ).eval()
    file = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return vit, BACKBONE.model_copy(update={"weights": str(file), "sha256": sha256})


def test_weights_are_in_and_qkv_is_split(stored: tuple[torch.nn.Module, Backbone]) -> None:
    plain, spec = stored
    vit = load_backbone(spec).eval()
    assert vit.weights_sha256 == spec.sha256
    assert {"blocks.0.attn.qkv.q.weight", "blocks.3.attn.qkv.v.bias"} <= set(vit.state_dict())
    for size in ((32, 32), (24, 40)):  # other sizes: position embeddings are interpolated
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(vit(images), plain(images), rtol=1e-5, atol=1e-6)


def test_random_weights_follow_the_global_generator() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        vit = load_backbone(BACKBONE)
        states.append(vit.blocks[0].mlp.fc1.weight.detach())
    assert vit.weights_sha256 == "random"
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_other_hash(stored: tuple[torch.nn.Module, Backbone]) -> None:
    _, spec = stored
    with pytest.raises(UserError, match=r"SHA-256 is .*the protocol wants 0000.*restore"):
        load_backbone(spec.model_copy(update={"sha256": "0" * 64}))


def test_missing_file() -> None:
    spec = BACKBONE.model_copy(update={"weights": "mini/absent.safetensors", "sha256": "0" * 64})
    with pytest.raises(UserError, match=r"benchmarks/mini/absent.safetensors: .*cannot be read"):
        load_backbone(spec)


@pytest.mark.parametrize("args", [{"depth": 3}, {"embed_dim": 64}])
def test_keys_and_shapes_are_strict(args: dict, stored: tuple[torch.nn.Module, Backbone]) -> None:
    _, spec = stored
    with pytest.raises(UserError, match="does not hold the weights of"):
        load_backbone(spec.model_copy(update={"args": {**spec.args, **args}}))


def test_damaged_file_with_the_right_hash(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    file.write_bytes(b"not safetensors")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="damaged, or no file of weights; fetch it again"):
        load_backbone(BACKBONE.model_copy(update={"weights": str(file), "sha256": sha256}))


@pytest.mark.parametrize("change", [{"name": "vit_of_nowhere"}, {"args": {"colour": 1}}])
def test_timm_cannot_build_it(change: dict) -> None:
    with pytest.raises(UserError, match="timm cannot build it"):
        load_backbone(BACKBONE.model_copy(update=change))
