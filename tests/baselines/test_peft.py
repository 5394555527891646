"""The LoRA family against the implementation in `peft`: same layer, same factors."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from baselines import METHODS
from soma import LowRankLinear

OPTIONS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "milora": {},  # none of its own: the residual and the factors are handed over
    "mica": {"init_lora_weights": "mica"},
    "dude": {"init_lora_weights": "pissa", "use_dora": True},
}
SAME_START = {"pissa", "mica", "dude"}  # their own initialisation means the same


class OneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def theirs(model: OneLinear, rank: int, alpha: int, **options: object) -> nn.Module:
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["fc"], **options)
    return get_peft_model(model, config).base_model.model.fc


def learning(layer: LowRankLinear) -> dict[str, nn.Parameter]:
    return {name: p for name, p in layer.named_parameters() if name.startswith("lora_")}


@pytest.mark.parametrize("alpha", [6, 15])
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_gradients_agree(name: str, alpha: int) -> None:
    torch.manual_seed(0)
    model = OneLinear()
    mine = METHODS[name](rank=6, alpha=alpha).layer(copy.deepcopy(model.fc))
    other = theirs(model, 6, alpha, **OPTIONS[name])
    others = {
        "lora_a": other.lora_A["default"].weight,
        "lora_b": other.lora_B["default"].weight,
    }
    if mine.lora_magnitude is not None:
        others["lora_magnitude"] = other.lora_magnitude_vector["default"].weight
        assert torch.allclose(others["lora_magnitude"], mine.lora_magnitude, atol=1e-5)
    if name in SAME_START:
        start = others["lora_b"] @ others["lora_a"]
        assert torch.allclose(start, mine.lora_b @ mine.lora_a, atol=1e-5)
        assert torch.allclose(other.base_layer.weight, mine.weight, atol=1e-5)
    if name == "mica":
        frozen = others["lora_b"]
        assert torch.allclose(frozen.abs(), mine.lora_b.abs(), atol=1e-5)

    with torch.no_grad():
        other.base_layer.weight.copy_(mine.weight)
        for parameter in learning(mine).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for key, tensor in others.items():
            tensor.copy_(getattr(mine, key))

    x, weights = torch.randn(10, 48), torch.randn(10, 32)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [mine(inputs[0]), other(inputs[1])]
    for y in outputs:
        (y * weights).sum().backward()
    pairs = [outputs, [x.grad for x in inputs]]
    pairs += [(p.grad, others[key].grad) for key, p in learning(mine).items()]
    assert {key for key, p in others.items() if p.requires_grad} == set(learning(mine))
    errors = [((one - two).abs().max() / max(1, two.abs().max())).item() for one, two in pairs]
    print(
        f"{name}, alpha {alpha}, against peft: output {errors[0]:.1e}, grads {max(errors[1:]):.1e}"
    )
    assert max(errors) <= 1e-5


@pytest.mark.parametrize("alpha", [6, 15])
def test_milora_starts_from_what_their_largest_pissa_leaves(alpha: int) -> None:
    torch.manual_seed(0)
    model = OneLinear()
    mine = METHODS["milora"](rank=6, alpha=alpha).layer(copy.deepcopy(model.fc))
    other = theirs(model, 32 - 6, 32 - 6, init_lora_weights="pissa")
    taken = other.lora_B["default"].weight @ other.lora_A["default"].weight
    assert torch.allclose(mine.weight, taken, atol=1e-5)
    left = other.base_layer.weight
    assert torch.allclose(mine.scale * mine.lora_b @ mine.lora_a, left, atol=1e-5)
