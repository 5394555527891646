"""LoRA, PiSSA and DoRA against the implementation in `peft`: same layer, same factors."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from baselines import METHODS
from soma import LowRankLinear, Method

OPTIONS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


class OneLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def ours(method: Method, linear: nn.Linear) -> LowRankLinear:
    a, b = method.factors(linear.weight.detach())
    kind = type(method)
    return LowRankLinear(
        linear, a, b, scale=method.scale, subtract=kind.subtract, magnitude=kind.magnitude
    )


@pytest.mark.parametrize("alpha", [6, 15])
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_gradients_agree(name: str, alpha: int) -> None:
    torch.manual_seed(0)
    model = OneLinear()
    method = METHODS[name](rank=6, alpha=alpha)
    layer = ours(method, copy.deepcopy(model.fc))
    config = LoraConfig(r=6, lora_alpha=alpha, target_modules=["fc"], **OPTIONS[name])
    theirs = get_peft_model(model, config).base_model.model.fc
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight

    if name == "pissa":  # their own initialisation means the same
        assert torch.allclose(b @ a, layer.lora_b @ layer.lora_a, atol=1e-5)
        assert torch.allclose(theirs.base_layer.weight, layer.weight, atol=1e-5)
    with torch.no_grad():
        theirs.base_layer.weight.copy_(layer.weight)
        for mine, other in ((layer.lora_a, a), (layer.lora_b, b)):
            mine.add_(0.1 * torch.randn_like(mine))
            other.copy_(mine)
        if name == "dora":
            magnitude = theirs.lora_magnitude_vector["default"].weight
            assert torch.allclose(magnitude, layer.lora_magnitude, atol=1e-6)
            layer.lora_magnitude.add_(0.1 * torch.randn(32))
            magnitude.copy_(layer.lora_magnitude)

    x = torch.randn(10, 48)
    weights = torch.randn(10, 32)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(inputs[0]), theirs(inputs[1])]
    for y in outputs:
        (y * weights).sum().backward()
    pairs = [outputs, [x.grad for x in inputs], (layer.lora_a.grad, a.grad)]
    pairs.append((layer.lora_b.grad, b.grad))
    if name == "dora":
        pairs.append((layer.lora_magnitude.grad, magnitude.grad))
    errors = [
        ((mine - other).abs().max() / max(1, other.abs().max())).item() for mine, other in pairs
    ]
    print(
        f"{name}, alpha {alpha}, against peft: output {errors[0]:.1e}, grads {max(errors[1:]):.1e}"
    )
    assert max(errors) <= 1e-5
