"""Starts of the low-rank methods against factors worked out by hand, and what is theirs alone."""

import copy

import pytest
import torch
from torch import nn

from baselines import METHODS
from soma import LowRankLinear, adapt, initialise, load_adapter, save_adapter

# Singular values 3, 2, 1 with left vectors e0, e2, e1 and right ones e1, e2, e0.
WEIGHT = torch.tensor([[0.0, 3, 0], [1, 0, 0], [0, 0, 2]])


def adapted(name: str, **fields: object) -> LowRankLinear:
    linear = nn.Linear(3, 3)
    with torch.no_grad():
        linear.weight.copy_(WEIGHT)
    return METHODS[name](**fields).layer(linear)


def check(found: torch.Tensor, expected: list) -> None:
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32), atol=1e-6)


def test_milora_starts_from_the_smallest_components() -> None:
    layer = adapted("milora", rank=1, alpha=4)  # s = 4: the 1 is shared out as 4 x 1/2 x 1/2
    check(layer.lora_a, [[0.5, 0, 0]])
    check(layer.lora_b, [[0], [0.5], [0]])
    check(layer.weight, [[0, 3, 0], [0, 0, 0], [0, 0, 2]])


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, 2),
        ({"component_start": 1}, 2),
        ({"component_start": 0}, 3),
        ({"component_start": 0.0}, 3),
        ({"component_start": 1.0}, 1),
    ],
)
def test_lora_middle_starts_from_the_run_that_is_asked_for(fields: dict, kept: int) -> None:
    layer = adapted("lora-middle", rank=1, alpha=2, **fields)
    assert (layer.scale * layer.lora_b @ layer.lora_a).max().item() == pytest.approx(kept)
    check(layer.weight, torch.where(kept == WEIGHT, 0.0, WEIGHT).tolist())


def test_lora_middle_is_the_middle_of_many() -> None:
    method = METHODS["lora-middle"](rank=3, alpha=3)
    weight = torch.diag(torch.arange(10, 0, -1.0))  # the run (10 - 3) // 2 = 3 holds 7, 6, 5
    a, b = method.factors(weight)
    check((b @ a).diag(), [0, 0, 0, 7, 6, 5, 0, 0, 0, 0])


@pytest.mark.parametrize("start", [-1, -0.5, 1.5])
def test_lora_middle_checks_its_start(start: float) -> None:
    with pytest.raises(ValueError, match="component_start"):
        METHODS["lora-middle"](component_start=start)


def test_mica_freezes_the_trailing_left_vectors() -> None:
    layer = adapted("mica", rank=2)
    check(layer.lora_b, [[0, 0], [0, 1], [1, 0]])
    assert not layer.lora_a.any()
    assert torch.equal(layer.weight, WEIGHT)
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "lora_a"}
    layer(torch.ones(1, 3)).square().sum().backward()
    assert layer.lora_a.grad.abs().sum(dim=1).all()  # no dead pair


def test_dude_takes_principal_components_and_the_lengths_of_the_rows() -> None:
    layer = adapted("dude", rank=1, alpha=3)  # s = 3
    check(layer.lora_a, [[0, 1, 0]])
    check(layer.lora_b, [[1], [0], [0]])
    check(layer.weight, [[0, 0, 0], [1, 0, 0], [0, 0, 2]])
    check(layer.lora_magnitude, [3, 1, 2])


def test_edora_puts_a_core_between_frozen_vectors() -> None:
    torch.manual_seed(0)
    layer = adapted("edora", rank=2, sigma=0.0)
    check(layer.lora_b, [[1, 0], [0, 0], [0, 1]])
    check(layer.lora_a, [[0, 3, 0], [0, 0, 2]])
    assert not layer.lora_core.any()
    assert torch.equal(layer.weight, WEIGHT)
    check(layer.lora_magnitude, [3, 1, 2])
    learns = {"lora_core", "lora_magnitude"}
    assert set(dict(layer.named_parameters())) == {"weight", "bias"} | learns
    assert METHODS["edora"]().core(torch.empty(40, 40)).std().item() == pytest.approx(1e-5, rel=0.1)


def test_edora_random_is_drawn_as_the_release_draws() -> None:
    torch.manual_seed(0)
    a, b = METHODS["edora"](rank=16, init="random").factors(torch.empty(400, 100))
    assert (a.shape, b.shape) == ((16, 100), (400, 16))
    for factor, bound in ((a, 16**-0.5), (b, 400**-0.5)):
        assert factor.abs().max() <= bound
        assert factor.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("fields", [{"init": "SVD"}, {"sigma": -1.0}])
def test_edora_checks_its_fields(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        METHODS["edora"](**fields)


def test_edora_is_its_formula_in_output_and_gradients() -> None:
    torch.manual_seed(0)
    layer = METHODS["edora"](rank=4, alpha=6, sigma=0.3).layer(nn.Linear(9, 7))
    x, y_weights = torch.randn(5, 9), torch.randn(5, 7)
    core = layer.lora_core.detach().clone().requires_grad_()
    length = (layer.lora_magnitude.detach() + 0.1).requires_grad_()
    with torch.no_grad():
        layer.lora_magnitude.add_(0.1)
    direction = layer.weight.detach() + 6 / 4 * layer.lora_b @ core @ layer.lora_a
    gain = length / direction.detach().norm(dim=1)
    expected = x @ (gain[:, None] * direction).T + layer.bias.detach()
    (expected * y_weights).sum().backward()
    y = layer(x)
    (y * y_weights).sum().backward()
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(layer.lora_core.grad, core.grad, atol=1e-5)
    assert torch.allclose(layer.lora_magnitude.grad, length.grad, atol=1e-5)
    assert torch.allclose(layer.folded()(x), expected, atol=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_dora_has_the_norm_with_or_without_its_gradient(detach: bool) -> None:
    torch.manual_seed(0)
    layer = METHODS["dora"](rank=4, detach_norm=detach).layer(nn.Linear(9, 7))
    with torch.no_grad():
        layer.lora_b.normal_()
    x, y_weights = torch.randn(5, 9), torch.randn(5, 7)
    expected = {}
    for detached in (True, False):
        a, b = (t.detach().clone().requires_grad_() for t in (layer.lora_a, layer.lora_b))
        direction = layer.weight.detach() + layer.scale * b @ a
        norm = direction.norm(dim=1)
        gain = layer.lora_magnitude.detach() / (norm.detach() if detached else norm)
        (x @ (gain[:, None] * direction).T * y_weights).sum().backward()
        expected[detached] = torch.cat([a.grad.flatten(), b.grad.flatten()])
    (layer(x) * y_weights).sum().backward()
    found = torch.cat([layer.lora_a.grad.flatten(), layer.lora_b.grad.flatten()])
    assert torch.allclose(found, expected[detach], atol=1e-4)
    assert not torch.allclose(found, expected[not detach], atol=1e-2)


def test_recyclelora_injects_columns_of_q_where_their_pivots_stand() -> None:
    # The columns have lengths 1, 3, 2: pivots 1, 2, 0 with Q = e0, e2, e1.
    layer = adapted("recyclelora", rank=2, sub_rank=1)
    check(layer.lora_a, [[1, 0, 0], [0, 2, 0]])  # main, then sub, twice as large
    check(layer.lora_b, [[0, 2], [1, 0], [0, 0]])
    check(layer.lora_core, [[1, 0], [0, 0.25]])
    check(layer.weight, [[0, 2.5, 0], [0.5, 0, 0], [0, 0, 2]])  # s = 1/2
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "lora_a", "lora_b"}


def test_recyclelora_sub_pair_learns_at_its_own_rate() -> None:
    torch.manual_seed(0)
    linear, x, target = nn.Linear(12, 10), torch.randn(20, 12), torch.randn(20, 10)
    method = METHODS["recyclelora"](rank=5, sub_rank=2, alpha=5.0, sub_rate=0.5)
    plain = METHODS["recyclelora"](rank=5, sub_rank=2, alpha=5.0, sub_rate=1.0)
    layer = method.layer(copy.deepcopy(linear))
    a, b = plain.factors(linear.weight.detach())
    main = [nn.Parameter(a[:3].clone()), nn.Parameter(b[:, :3].clone())]
    sub = [nn.Parameter(a[3:].clone()), nn.Parameter(b[:, 3:].clone())]
    residual = linear.weight.detach() - b @ a
    groups = [{"params": main, "lr": 1e-2}, {"params": sub, "lr": 5e-3}]
    separate = torch.optim.Adam(groups)
    together = torch.optim.Adam([layer.lora_a, layer.lora_b], lr=1e-2)
    for _ in range(8):
        weight = residual + main[1] @ main[0] + sub[1] @ sub[0]
        for optimizer, y in ((separate, x @ weight.T + linear.bias), (together, layer(x))):
            optimizer.zero_grad()
            (y - target).square().mean().backward()
            optimizer.step()
    expected = residual + main[1] @ main[0] + sub[1] @ sub[0]
    moved = (expected - linear.weight).abs().max().item()
    error = (layer.folded().weight - expected).abs().max().item()
    print(f"weights moved by {moved:.1e}, differ by {error:.1e}")
    assert moved > 0.05
    assert error <= 1e-5


def test_recyclelora_skips_blocks_or_as_released(small_vit) -> None:
    for skip, start, blocks in (("blocks", 1, 3), ("released", 1, 0), ("released", 0, 4)):
        vit = small_vit()
        fields = {"rank": 4, "sub_rank": 1, "skip": skip, "start_block": start}
        adapt(METHODS["recyclelora"](**fields), vit)
        layers = [module for module in vit.modules() if isinstance(module, LowRankLinear)]
        assert len(layers) == 6 * blocks


@pytest.mark.parametrize("fields", [{"sub_rank": 37}, {"sub_rate": 0.0}, {"skip": "layers"}])
def test_recyclelora_checks_its_fields(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        METHODS["recyclelora"](**fields)
    with pytest.raises(ValueError, match="rank 4: the weight has"):
        adapted("recyclelora", rank=4, sub_rank=1)


def test_bitfit_takes_biases_and_no_table_of_them() -> None:
    trains = METHODS["bitfit"]().trains
    assert trains("blocks.0.attn.qkv.q.bias")
    assert trains("blocks.0.attn.q_bias")
    assert trains("norm.bias")
    assert not trains("blocks.0.attn.relative_position_bias_table")
    assert not trains("blocks.0.ls1.gamma")


@pytest.mark.parametrize(
    ("name", "tensor", "rule"),
    [
        ("bitfit", "bias", "none"),
        ("milora", "lora_b", "to_zero"),
        ("mica", "lora_a", "to_zero"),
        ("dude", "lora_magnitude", "none"),
        ("edora", "lora_core", "to_zero"),
        ("edora", "lora_magnitude", "none"),
        ("recyclelora", "lora_a", "none"),
    ],
)
def test_decay(name: str, tensor: str, rule: str) -> None:
    assert METHODS[name]().decay(f"blocks.3.mlp.fc1.{tensor}") == rule


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["milora", "lora-middle", "mica", "dude", "edora", "recyclelora"])
def test_a_reload_decomposes_nothing(
    name: str, small_vit, images, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"rank": 4, "sub_rank": 1} if name == "recyclelora" else {"rank": 4}
    vit, fresh = small_vit(), small_vit()
    method = adapt(METHODS[name](**fields), vit)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(vit, tmp_path / "adapter.safetensors", method)
    monkeypatch.setattr(initialise, "_kept", None)  # another machine would find other signs
    load_adapter(method, fresh, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(images), vit(images))


def test_a_rank_beyond_that_of_the_weight_is_refused(small_vit) -> None:
    vit = small_vit()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with pytest.raises(ValueError, match="rank 100000: the weight has rank 32 at most"):
        adapt(METHODS["lora"](rank=100_000), vit)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
