import copy
import pickle

import pytest
import torch
from torch import nn

from soma import LowRank, LowRankLinear, SoMA
from soma.initialise import svd_factors


def layer(*, bias: bool = True, core: bool = False, **options: object) -> LowRankLinear:
    torch.manual_seed(0)
    linear = nn.Linear(24, 16, bias=bias)
    a, b = svd_factors(linear.weight, 4, "principal", 2.0)
    core = torch.randn(4, 4) if core else None
    return LowRankLinear(linear, a, b, scale=2.0, core=core, **options)


def dense(module: LowRankLinear) -> torch.Tensor:
    core = torch.eye(4) if module.lora_core is None else module.lora_core
    return module.weight + module.scale * module.lora_b @ core @ module.lora_a


def move(module: LowRankLinear) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_formula(bias: bool, core: bool) -> None:
    module = layer(bias=bias, core=core)
    move(module)
    x = torch.randn(5, 3, 24)
    expected = x @ dense(module).T + (module.bias if bias else 0)
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_residual_starts_exactly_and_keeps_its_start() -> None:
    torch.manual_seed(0)
    weight = nn.Linear(24, 16).weight.detach()
    module = layer(subtract=True)
    assert torch.allclose(dense(module), weight, atol=1e-6)
    start = module.lora_a0.clone()
    move(module)
    assert torch.equal(module.lora_a0, start)
    assert {"weight", "bias", "lora_a", "lora_b", "lora_a0", "lora_b0"} == set(module.state_dict())
    assert not layer().lora_a0 is not None


def test_residual_of_a_core_is_exact_too() -> None:
    weight = layer().weight
    module = layer(subtract=True, core=True)
    assert torch.allclose(dense(module), weight, atol=1e-5)
    assert torch.allclose(module.lora_b0, module.lora_b @ module.lora_core, atol=1e-6)


def test_transposed_factors_are_stored_row_after_row() -> None:
    linear = nn.Linear(24, 16)
    a, b, core = torch.randn(24, 4).T, torch.randn(4, 16).T, torch.randn(4, 4).T
    for options in ({}, {"subtract": True}, {"frozen": {"a", "b", "core"}}):
        module = LowRankLinear(linear, a, b, scale=1.0, core=core, **options)
        assert all(value.is_contiguous() for value in module.state_dict().values())
        assert torch.equal(module.lora_a, a)


def test_frozen_factors_are_buffers_that_are_saved() -> None:
    module = layer(core=True, frozen={"a", "core"})
    assert set(dict(module.named_parameters())) == {"weight", "bias", "lora_b"}
    assert {"lora_a", "lora_b", "lora_core"} <= set(module.state_dict())


@pytest.mark.parametrize("core", [True, False])
def test_magnitude_sets_the_length_of_each_row_and_spares_the_bias(core: bool) -> None:
    module = layer(magnitude=True, core=core)
    move(module)
    rows = dense(module)
    weight = module.lora_magnitude[:, None] * rows / rows.norm(dim=1, keepdim=True)
    x = torch.randn(5, 24)
    assert torch.allclose(module(x), x @ weight.T + module.bias, atol=1e-5)


def test_zero_rows_stay_finite() -> None:
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight[1] = 0
    expected = linear(torch.ones(2, 6))
    module = LowRankLinear(linear, torch.randn(2, 6), torch.zeros(4, 2), scale=1.0, magnitude=True)
    y = module(torch.ones(2, 6))
    y.square().sum().backward()
    assert torch.allclose(y, expected, atol=1e-6)
    for parameter in module.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("magnitude", [True, False])
def test_folded_equals_unfolded(magnitude: bool, core: bool) -> None:
    module = layer(subtract=True, magnitude=magnitude, core=core)
    move(module)
    module.weight.requires_grad_(False)
    linear = module.folded()
    assert type(linear) is nn.Linear
    assert not linear.weight.requires_grad
    assert set(linear.state_dict()) == {"weight", "bias"}
    x = torch.randn(5, 24)
    error = (linear(x) - module(x)).abs().max().item()
    print(f"fold, magnitude {magnitude}: {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize("magnitude", [True, False])
def test_autocast_keeps_norms_in_float32(magnitude: bool) -> None:
    module = layer(magnitude=magnitude)
    x = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert module._row_norms().dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), module(x), atol=0.05)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        LowRankLinear(nn.Linear(4, 4).bfloat16(), torch.ones(1, 4), torch.ones(4, 1), scale=1.0)


def test_copies_are_independent() -> None:
    module = layer(subtract=True, magnitude=True)
    x = torch.randn(2, 24)
    before = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), before)
        move(twin)
        assert torch.equal(module(x), before)


def test_no_draw_is_lost_on_replaced_tensors() -> None:
    linear = nn.Linear(4, 4)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    LowRankLinear(linear, torch.ones(1, 4), torch.ones(4, 1), scale=1.0).folded()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"alpha": 0},
        {"targets": ("q", "value")},
        {"targets": ()},
        {"adapter_decay": "sometimes"},
        {"start_block": -1},
        {"start_block": 1.5},
        {"start_block": True},
    ],
)
def test_fields_are_checked(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SoMA(**fields)


def test_equal_fields_are_equal_methods() -> None:
    assert SoMA(targets=["q", "v"], alpha=8) == SoMA(targets=("q", "v"), alpha=8.0)
    assert hash(SoMA(targets=["q", "v"]))


def test_decay_rules() -> None:
    assert SoMA().decay("blocks.3.mlp.fc1.lora_a") == "to_zero"
    assert SoMA(adapter_decay="to_init").decay("blocks.3.mlp.fc1.lora_b") == "to_init"
    assert SoMA(adapter_decay="to_init").decay("blocks.3.mlp.fc1.bias") == "to_zero"
    assert LowRank().decay("blocks.3.mlp.fc1.lora_magnitude") == "none"
