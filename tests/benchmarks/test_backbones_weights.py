"""Files of released weights, as the protocols of full size load them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import backbones as weights
from benchmarks.backbones import BACKBONE, fingerprint, load_backbone
from benchmarks.cell import fingerprints as cell_fingerprints
from benchmarks.cell import make_cell
from benchmarks.data.cards import Card
from benchmarks.errors import UserError
from benchmarks.protocol import HUB, Backbone
from benchmarks.tasks import load_protocol
from soma import merge_qkv

pytestmark = pytest.mark.usefixtures("one_thread")
DINO, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PAPER = {**SMALL, "patch_size": 16, "img_size": 512}


def released(name: str = DINO) -> dict[str, Tensor]:
    """Random weights under the names of the DINOv2 release: 14-pixel patches, 518-pixel images."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=0, **SMALL)
    state = {key: torch.randn_like(value) for key, value in vit.state_dict().items()}
    state["mask_token"] = torch.zeros(1, 24)
    if "reg_token" in state:  # released with a position for the class token
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.randn(1, 1, 24), state["pos_embed"]], dim=1)
    return state


def stored(state: object, file: Path, **fields: object) -> Backbone:
    """The spec of a file that holds `state`."""
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    given = {"name": DINO, "args": PAPER, "resize": "converter", "weights": str(file)}
    return Backbone(**{**given, "sha256": sha256, "features": (0, 1), **fields})


def loaded(spec: Backbone) -> dict[str, Tensor]:
    vit = load_backbone(spec)
    merge_qkv(vit)
    return vit.state_dict()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_release_is_converted_as_by_the_official_formula(tmp_path: Path, ending: str) -> None:
    state = released()
    found = loaded(stored(state, tmp_path / f"dinov2.{ending}"))
    # The converter: plain bicubic interpolation; the class token's position stays.
    bicubic = {"mode": "bicubic", "align_corners": False}
    kernel = functional.interpolate(state["patch_embed.proj.weight"], size=(16, 16), **bicubic)
    first, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    grid = grid.reshape(1, 37, 37, 24).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(32, 32), **bicubic).permute(0, 2, 3, 1)
    assert torch.equal(found.pop("patch_embed.proj.weight"), kernel)
    assert torch.equal(found.pop("pos_embed"), torch.cat([first, grid.flatten(1, 2)], dim=1))
    assert set(found) == set(state) - {"patch_embed.proj.weight", "pos_embed", "mask_token"}
    assert all(torch.equal(value, state[key]) for key, value in found.items())


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, edges repeated, pixel centres at i + 1/2."""
    matrix, a = np.zeros((new, old)), -0.75
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - tap)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), old - 1)] += near if x <= 1 else far
    return matrix


def test_the_converter_interpolates_by_cubic_convolution(tmp_path: Path) -> None:
    state = released()
    found = loaded(stored(state, tmp_path / "dinov2.pth"))
    rows = bicubic_matrix(14, 16)
    kernel = rows @ state["patch_embed.proj.weight"].double().numpy() @ rows.T
    assert np.abs(found["patch_embed.proj.weight"].numpy() - kernel).max() < 1e-5
    rows, grid = bicubic_matrix(37, 32), state["pos_embed"][0, 1:].double().numpy()
    grid = np.einsum("ih,jw,hwc->ijc", rows, rows, grid.reshape(37, 37, 24))
    assert np.abs(found["pos_embed"][0, 1:].numpy() - grid.reshape(1024, 24)).max() < 1e-5


def test_registers_of_the_release(tmp_path: Path) -> None:
    """timm gives prefix tokens no position: that of the class token goes into the token."""
    state = released(REGISTERS)
    found = loaded(stored(state, tmp_path / "reg.pth", name=REGISTERS))
    assert torch.equal(found["reg_token"], state["register_tokens"])
    assert torch.equal(found["cls_token"], state["cls_token"] + state["pos_embed"][:, 0])
    plain = weights.converted(released(REGISTERS), timm.create_model(DINO, **PAPER))
    assert torch.equal(found["pos_embed"], plain["pos_embed"][:, 1:])


def test_timms_own_resizing(tmp_path: Path) -> None:
    state = released()
    found = loaded(stored(state, tmp_path / "dinov2.pth", resize="timm"))
    names = ("patch_embed.proj.weight", "pos_embed")
    kernel = timm.layers.resample_patch_embed(state[names[0]], (16, 16))
    grid = timm.layers.resample_abs_pos_embed(state[names[1]], (32, 32))
    assert torch.equal(found[names[0]], kernel)
    assert torch.equal(found[names[1]], grid)
    converter = loaded(stored(state, tmp_path / "dinov2.pth"))
    assert not any(torch.equal(found[name], converter[name]) for name in names)


def test_another_size_is_refused_where_the_protocol_does_not_resize(tmp_path: Path) -> None:
    state = {key: value for key, value in released().items() if key != "mask_token"}
    spec = stored(state, tmp_path / "dinov2.pth", resize=None)
    with pytest.raises(UserError, match=r"does not hold the weights .*backbone\.resize"):
        load_backbone(spec)


def test_a_classifier_is_left_out_and_anything_else_is_not(tmp_path: Path) -> None:
    state = released() | {"head.weight": torch.zeros(10, 24)}
    load_backbone(stored(state, tmp_path / "dinov2.pth"))
    with pytest.raises(UserError, match="extra"):
        load_backbone(stored(state | {"extra": torch.zeros(1)}, tmp_path / "dinov2.pth"))
    del state["blocks.1.mlp.fc2.bias"]
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc2\.bias"):
        load_backbone(stored(state, tmp_path / "dinov2.pth"))


def test_the_converter_wants_the_names_it_knows(tmp_path: Path) -> None:
    state = {f"visual.{key}": value for key, value in released().items()}
    with pytest.raises(UserError, match=r"no patch_embed.proj.weight, .*resize: timm knows"):
        load_backbone(stored(state, tmp_path / "clip.pth"))


PREFIXED = {f"backbone.{key}": value for key, value in released().items()}
NAN = {"blocks.0.mlp.fc1.weight": torch.full((96, 24), torch.nan)}
FETCH = "fetch it again"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            Path("x"),
            "holds pathlib.PosixPath beside the tensors, which is never unpickled; write a",
        ),
        (nn.Linear(1, 1), "holds torch.nn.modules.linear.Linear beside the tensors"),
        (released() | {"acc": np.float64(0.7)}, r"holds numpy.*scalar beside the tensors"),
        (7, "holds no tensors by name, so no weights"),
        ({}, "holds no tensors by name, so no weights"),
        ({"teacher": released()}, "its weights lie under the key 'teacher': write a file without"),
        (
            {"teacher": PREFIXED},
            "under the key 'teacher' and its names start with 'backbone.': wri",
        ),
        ({"state_dict": PREFIXED, "meta": {}}, r"\); its names start with 'backbone\.': write a"),
        (released() | NAN, r"blocks\.0\.mlp\.fc1\.weight is not finite .*; fetch the file again"),
        (b"<!DOCTYPE html>quota exceeded", f"a web page, no file of weights; {FETCH}"),
        (b"\n <HTML><body>log in", f"a web page, no file of weights; {FETCH}"),
        (b"", f"empty; {FETCH}"),
        (b"\x80\x02half", f"damaged, or no file of weights; {FETCH}"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_way_out_is_that_of_the_fault(tmp_path: Path, content, words, ending) -> None:
    file = tmp_path / f"other.{ending}"
    spec = stored(released(), file)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif ending == "safetensors":
        return
    else:
        torch.save(content, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=words) as caught:
        load_backbone(spec.model_copy(update={"sha256": sha256}))
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value)) < 700


DINOV3 = "vit_small_patch16_dinov3"


def dinov3(name: str, *, bias: float | None = None, mask: bool = False) -> dict[str, Tensor]:
    """Random weights under the names of the DINOv3 release."""
    torch.manual_seed(0)
    state = {}
    for key, value in timm.create_model(name, num_classes=0, **SMALL).state_dict().items():
        if not key.endswith(("q_bias", "v_bias")):
            key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            state[key.replace("reg_token", "storage_tokens")] = torch.randn_like(value)
    extra = {"mask_token": 24, "rope_embed.periods": 3, "local_cls_norm.weight": 24}
    state |= {key: torch.ones(count) for key, count in extra.items()}
    for block in range(2) if bias is not None else ():
        state[f"blocks.{block}.attn.qkv.bias"] = torch.full((72,), bias)
        if mask:
            keys = torch.cat([torch.ones(24), torch.zeros(24), torch.ones(24)])
            state[f"blocks.{block}.attn.qkv.bias_mask"] = keys
    return state


@pytest.mark.parametrize(
    ("name", "given", "dropped"),
    [
        (DINOV3, {}, False),
        (DINOV3, {"bias": 0.0}, False),  # as the small releases have it
        (DINOV3, {"bias": 0.5, "mask": True}, True),
        (f"{DINOV3}_qkvb", {"bias": 0.5, "mask": True}, False),
        (f"{DINOV3}_qkvb", {"bias": 0.5}, True),  # those of the keys
    ],
)
def test_no_bias_of_a_release_is_dropped(tmp_path: Path, name, given, dropped, capfd) -> None:
    spec = stored(dinov3(name, **given), tmp_path / "dinov3.pth", name=name, resize="timm")
    spec = spec.model_copy(update={"args": SMALL})
    if not dropped:
        vit = load_backbone(spec)
        if name != DINOV3:
            assert vit.blocks[1].attn.qkv.v.bias.eq(0.5).all()
    else:
        line = r"dinov3\.pth: blocks\.0\.attn\.qkv\.bias would be dropped: .*choose the model"
        with pytest.raises(UserError, match=line):
            load_backbone(spec)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("size", [224, 112])
@pytest.mark.parametrize(
    "name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "vit_base_patch16_clip_224"]
)
def test_other_releases_are_taken_whole(tmp_path: Path, name: str, size: int) -> None:
    vit = timm.create_model(name, num_classes=0, **SMALL)
    state = {key: value + 0.1 for key, value in vit.state_dict().items()}
    spec = stored(state, tmp_path / "weights.pth", name=name, resize="timm")
    args = {**SMALL, "img_size": size}
    got = loaded(spec.model_copy(update={"args": args}))
    assert torch.equal(got["blocks.1.mlp.fc1.bias"], state["blocks.1.mlp.fc1.bias"])


class Hub:
    """The hub's client with one file."""

    def __init__(self, file: Path) -> None:
        self.file, self.asked = file, []

    def __call__(self, repository: str, file: str, revision: str | None = None) -> str:
        self.asked.append((repository, file, revision))
        if not self.file.exists():
            raise LocalEntryNotFoundError("no network,\nnothing cached")
        return str(self.file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub.safetensors")
    monkeypatch.setattr(weights, "hf_hub_download", hub)
    return hub


def test_weights_from_the_hub(hub: Hub) -> None:
    file = stored(released(), hub.file)
    spec = file.model_copy(update={"weights": HUB})
    vit, local = load_backbone(spec), load_backbone(file)
    assert hub.asked == [("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors", None)]
    assert vit.weights_sha256 == file.sha256
    assert all(map(torch.equal, vit.parameters(), local.parameters()))
    assert fingerprint(spec) == fingerprint(file) == {}
    with pytest.raises(UserError, match="the protocol wants 0000"):
        load_backbone(spec.model_copy(update={"sha256": "0" * 64}))


def test_weights_without_a_stated_hash_have_one_in_the_record(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored(released(), hub.file)
    spec = file.model_copy(update={"weights": HUB, "sha256": None})
    assert fingerprint(spec) == {BACKBONE: file.sha256}
    assert load_backbone(spec).weights_sha256 == file.sha256
    protocol = load_protocol("mini_gtav").model_copy(update={"backbone": spec})
    monkeypatch.setattr(Card, "fingerprint", lambda *_, **__: "1")
    monkeypatch.setattr(Card, "listing", lambda *_, **__: None)
    monkeypatch.setattr(Card, "home", lambda *_, **__: Path())
    data = cell_fingerprints(protocol, Path())
    assert data["gtav"] == "1"
    assert data[BACKBONE] == file.sha256
    cell = make_cell(protocol, "freeze", seed=0, data=data)
    assert cell.record("failed").cell["data"][BACKBONE] == file.sha256


def test_images_of_one_size_only() -> None:
    """timm's BEiT and SAM know no `dynamic_img_size`, which nobody asks for here."""
    small = {**SMALL, "img_size": 32, "patch_size": 8}
    windows = {"window_size": 2, "global_attn_indexes": (1,), "neck_chans": 24}
    for name, args in (("beit_base_patch16_224", small), ("samvit_base_patch16", small | windows)):
        vit = load_backbone(Backbone(name=name, args=args, weights="random", features=(0, 1)))
        assert vit.forward_features(torch.randn(1, 3, 32, 32)).isfinite().all()
    asked = {**small, "dynamic_img_size": True}
    spec = Backbone(name="beit_base_patch16_224", args=asked, weights="random", features=(0,))
    with pytest.raises(UserError, match=r"timm cannot build it .*dynamic_img_size"):
        load_backbone(spec)


def test_no_network(hub: Hub) -> None:
    spec = Backbone(name=DINO, args=PAPER, weights=HUB, features=(0,))
    with pytest.raises(UserError, match=r"timm/vit_small_\S+ cannot be fetched .*no network, noth"):
        load_backbone(spec)


@pytest.mark.parametrize("name", ["vit_of_nowhere", f"{DINO}.of_nowhere"])
def test_names_that_the_hub_does_not_have(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: timm knows no weights of it on the hub"):
        fingerprint(Backbone(name=name, weights=HUB, features=(0,)))


def test_a_file_needs_its_hash() -> None:
    with pytest.raises(ValueError, match="sha256 is required"):
        Backbone(name=DINO, weights="vit.safetensors", features=(0,))
