"""The pass of low-rank layers against their formula, and what it keeps for backward."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from soma import LowRankLinear, SoMA, adapt, split_qkv
from soma.backbone import SplitQKV
from soma.update import remember_input

Build = Callable[..., nn.Module]


def layer(seed: int = 0, *, bias: bool = True, core: bool = False, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    linear = nn.Linear(24, 16, bias=bias)
    linear.weight.requires_grad_(False)
    a, b = torch.randn(4, 24), torch.randn(16, 4)
    core = torch.randn(4, 4) if core else None
    return LowRankLinear(linear, a, b, scale=0.7, core=core, **options)


def composed(module: nn.Module) -> nn.Module:
    """A copy that computes the formula, operation by operation."""
    plain = copy.deepcopy(module)
    for part in plain.modules():
        if isinstance(part, LowRankLinear):
            part.forward = part._composed
        for name in [k for k, hook in part._forward_hooks.items() if hook is remember_input]:
            del part._forward_hooks[name]
    return plain


def results(
    module: nn.Module, x: torch.Tensor, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Output and every gradient."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = module(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    (y * weights).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"output": y.detach(), "input": x.grad, **grads}


def require_equal(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        scale = other[name].abs().max()
        assert (value - other[name]).abs().max() <= tolerance * scale, name


CASES = {
    "plain": {},
    "no bias": {"bias": False},
    "subtract": {"subtract": True},
    "core": {"core": True},
    "core alone learns": {"core": True, "frozen": {"a", "b"}},
    "a alone learns": {"frozen": {"b"}},
    "b alone learns": {"frozen": {"a"}},
    "magnitude": {"magnitude": True},
    "magnitude, no bias": {"magnitude": True, "bias": False},
    "magnitude and core": {"magnitude": True, "core": True, "frozen": {"a", "b"}},
    "norm with gradient": {"magnitude": True, "detach_norm": False},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_formula(case: str) -> None:
    module = layer(**CASES[case])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter), alpha=float(name != "weight"))
    x = torch.randn(2, 5, 24)
    require_equal(results(module, x), results(composed(module), x), 2e-6)
    module.weight.requires_grad_(True)
    assert "weight" in results(module, x)
    require_equal(results(module, x), results(composed(module), x), 4e-6)
    rounded = results(module, x, torch.bfloat16)
    assert rounded["output"].dtype == torch.bfloat16
    theirs, exact = results(composed(module), x, torch.bfloat16), results(module, x)
    for name, value in exact.items():
        assert rounded[name].dtype == theirs[name].dtype
        ours, other = ((made[name] - value).norm() for made in (rounded, theirs))
        assert ours <= 1.3 * other + 1e-3 * value.norm(), name
    with torch.no_grad():
        assert torch.allclose(module(x), composed(module)(x), atol=1e-5)
    double = copy.deepcopy(module).double()
    require_equal(results(double, x.double()), results(composed(double), x.double()), 1e-14)


@pytest.mark.parametrize("case", ["plain", "magnitude", "core", "norm with gradient"])
def test_q_k_and_v_side_by_side(case: str) -> None:
    split = SplitQKV(*(layer(seed, **CASES[case]) for seed in range(3)))
    x = torch.randn(2, 5, 24)
    require_equal(results(split, x), results(composed(split), x), 2e-6)
    calls = []
    split.k.register_forward_hook(lambda *_: calls.append(1))  # a layer with hooks is called
    require_equal(results(split, x), results(composed(split), x), 2e-6)
    assert calls
    split.v = nn.Linear(24, 16)  # another kind of layer among them
    require_equal(results(split, x), results(composed(split), x), 2e-6)


class Tail(nn.Module):
    """An activation or a norm before a layer, and something between them."""

    def __init__(self, before: nn.Module, between: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.between, self.layer = before, between or nn.Identity(), layer()
        self.before.register_forward_hook(remember_input)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.between(self.before(x * 1)))


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def kept(module: nn.Module, x: torch.Tensor) -> int:
    """Bytes that autograd keeps, parameters left out."""
    storages = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        storages[place.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    del y
    return sum(t.untyped_storage().nbytes() for p, t in storages.items() if p not in own)


@pytest.mark.parametrize("before", [nn.GELU(), nn.GELU("tanh"), nn.LayerNorm(24)])
def test_what_a_norm_or_an_activation_gives_is_computed_again(before: nn.Module) -> None:
    x = torch.randn(3, 50, 24)
    tail = Tail(before)
    require_equal(results(tail, x), results(composed(tail), x), 2e-6)
    bytes_of_x = x.numel() * 4
    assert kept(composed(tail), x.requires_grad_()) - kept(tail, x) == bytes_of_x
    # Changed in place after it: then it is kept.
    for between in (Doubled(), nn.Dropout(0.5)):
        tail = Tail(before, between)
        torch.manual_seed(3)
        ours = results(tail, x.detach())
        torch.manual_seed(3)
        require_equal(ours, results(composed(tail), x.detach()), 2e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    tail, x = Tail(nn.GELU()), torch.randn(3, 5, 24)
    again = copy.deepcopy(tail)
    whole = again.forward
    again.forward = lambda x: checkpoint(whole, x, use_reentrant=reentrant)
    require_equal(results(again, x), results(tail, x), 0)


def test_a_compiler_gets_the_formula() -> None:
    module, x = SplitQKV(*(layer(seed, magnitude=True) for seed in range(3))), torch.randn(2, 5, 24)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    y = compiled(x.requires_grad_())
    assert torch.allclose(y, module(x), atol=1e-5)
    y.sum().backward()
    assert module.q.lora_a.grad is not None


def test_a_folded_backbone_is_watched_no_more(small_vit: Build) -> None:
    vit = small_vit()
    split_qkv(vit)
    method = adapt(SoMA(rank=2, start_block=1), vit)
    watched = [name for name, m in vit.named_modules() if m._forward_hooks]
    assert watched
    assert all(name.startswith(("blocks.1.", "blocks.2.", "blocks.3.")) for name in watched)
    method.fold(vit)
    assert not any(module._forward_hooks for module in vit.modules())


@pytest.mark.parametrize(("method", "share"), [("lora", 0.75), ("dora", 0.8)])
def test_bytes_kept_in_a_block_of_vit_l(method: str, share: float) -> None:
    from timm.models.vision_transformer import Block

    from baselines import METHODS

    vit = nn.Module()
    vit.blocks = nn.ModuleList([Block(256, 4, qkv_bias=True)])  # the shares do not depend on width
    vit.patch_embed = nn.Identity()
    x = torch.randn(1, 130, 256, requires_grad=True)
    full = kept(vit.blocks[0], x)
    for parameter in vit.parameters():
        parameter.requires_grad_(False)
    split_qkv(vit)
    adapt(METHODS[method](rank=4), vit)
    assert kept(vit.blocks[0], x) <= share * full
