"""What SALT and SVF learn, where they start, and what they refuse."""

from collections.abc import Callable

import pytest
from torch import nn

from baselines.salt import SALT
from baselines.svf import SVF
from soma import NotApplicable, adapt
from soma.initialise import singular_triplets

Build = Callable[..., nn.Module]
NORM = ("weight", "bias")


def test_fused_and_adapted_backbones_are_refused_unchanged(small_vit: Build) -> None:
    vit = small_vit(split=False)
    keys = list(vit.state_dict())
    with pytest.raises(NotApplicable, match="split_qkv"):
        adapt(SVF(), vit)
    assert list(vit.state_dict()) == keys
    vit = small_vit()
    adapt(SVF(), vit)
    with pytest.raises(ValueError, match="adapted already"):
        adapt(SALT(), vit)
    with pytest.raises(ValueError, match="33"):
        adapt(SVF(rank=33), small_vit())
    with pytest.raises(ValueError, match="29 singular components"):
        adapt(SALT(rank=30), small_vit())


@pytest.mark.parametrize("start", [0, 2])
def test_what_salt_trains_beside_its_cores(small_vit: Build, start: int) -> None:
    vit = small_vit()
    adapt(SALT(start_block=start), vit)
    learning = {n for n, p in vit.named_parameters() if p.requires_grad and "spectral" not in n}
    norms = {f"blocks.{i}.norm{j}.{t}" for i in range(start, 4) for j in (1, 2) for t in NORM}
    positions = {"pos_embed"} if start == 0 else set()
    assert learning == norms | {"norm.weight", "norm.bias"} | positions
    vit = small_vit()
    adapt(SALT(also=("biases",), targets=["fc1"], start_block=start), vit)
    learning = {n for n, p in vit.named_parameters() if p.requires_grad and "spectral" not in n}
    assert learning == {f"blocks.{i}.mlp.fc1.bias" for i in range(start, 4)}


def test_normal_start_of_salt_is_not_exact() -> None:
    linear = nn.Linear(200, 200)
    method, weight = SALT(init="normal", rank=100), linear.weight.detach()
    assert not method.exact_start
    assert SALT().exact_start
    module = method.layer(linear, singular_triplets(weight, range(200)))
    for drawn in (module.spectral_x, module.spectral_y):
        assert drawn.std().item() == pytest.approx(0.01, rel=0.05)


def test_kaiming_start_of_salt_has_the_published_bound() -> None:
    linear = nn.Linear(200, 200)
    method, weight = SALT(rank=100), linear.weight.detach()
    module = method.layer(linear, singular_triplets(weight, range(200)))
    bound = (6 / ((1 + 20) * 100)) ** 0.5  # fan in is the rank
    assert module.spectral_x.abs().max() <= bound
    assert module.spectral_x.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not module.spectral_y.any()


def test_decay_rules() -> None:
    for method in (SVF(), SALT()):
        assert method.decay("blocks.3.mlp.fc1.spectral_scale") == "none"
        assert method.decay("blocks.3.mlp.fc1.spectral_shift") == "none"
        assert method.decay("blocks.3.mlp.fc1.spectral_x") == "to_zero"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SVF, {"rank": 0}),
        (SVF, {"form": "shift"}),
        (SVF, {"targets": ("q", "value")}),
        (SVF, {"targets": ()}),
        (SALT, {"share": 1.0}),
        (SALT, {"rank": 0}),
        (SALT, {"relu": "half"}),
        (SALT, {"init": "zero"}),
        (SALT, {"also": ("norm",)}),
    ],
)
def test_fields_are_checked(kind: type, fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        kind(**fields)


def test_equal_fields_are_equal_methods() -> None:
    assert SALT(also=["norms"], targets=["q"]) == SALT(also=("norms",), targets=("q",))
    assert hash(SALT(also=["norms"]))
