"""The spectral layer against the dense core, rebuilt in float64 with numpy."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from baselines.salt import SALT
from baselines.svf import SVF
from soma import adapt, load_adapter, save_adapter
from soma import spectral as soma_spectral
from soma.spectral import SpectralLinear

Build = Callable[..., nn.Module]
SHAPES = [(24, 16), (16, 24), (16, 16)]
METHODS = {
    "values": SVF(),
    "scale": SVF(form="scale"),
    "scale+shift": SVF(form="scale+shift"),
    "top 5": SVF(rank=5),
    "s-sam": SVF(form="scale+shift", relu=True),
    "salt": SALT(share=0.2, rank=3),
    "salt, full": SALT(share=0.2, rank=3, relu="full"),
    "salt, none": SALT(share=0.2, rank=3, relu="none"),
}


def linear_of_shape(rows: int, columns: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=bias, dtype=torch.float64)


def layer(case: str, linear: nn.Linear) -> SpectralLinear:
    method, weight = METHODS[case], linear.weight.detach()
    count = method.components(min(weight.shape))
    return method.layer(linear, soma_spectral._triplets(weight, count, empty=False))


def move(module: SpectralLinear) -> None:
    """So far that singular values change sign, and entries of X Y are of both signs."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "spectral" in name:
                parameter.add_(torch.randn_like(parameter))


def dense(case: str, module: SpectralLinear, weight: np.ndarray) -> np.ndarray:
    """W' by the definition of each method, from the learned numbers and a fresh numpy SVD."""
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    # Where the kept U is flipped, so is the fresh one: X Y refers to the kept signs.
    kept = module.spectral_u.numpy()
    signs = np.sign((u[:, : kept.shape[1]] * kept).sum(axis=0))
    signs = np.append(signs, np.ones(len(s) - len(signs)))
    u, vh = u * signs, vh * signs[:, None]
    value = {
        name.removeprefix("spectral_"): p.detach().numpy() for name, p in module.named_parameters()
    }
    core = np.diag(s)
    if case in ("values", "top 5"):
        learned = len(value["shift"])
        core[:learned, :learned] += np.diag(value["shift"])
    elif case == "scale":
        core = np.diag(value["scale"] * s)
    elif case in ("scale+shift", "s-sam"):
        core = np.diag(value["scale"] * s + value["shift"])
        core = core if case == "scale+shift" else np.maximum(core, 0)
    else:
        top = int(0.2 * len(s))
        core[:top, :top] = np.diag(value["scale"] * s[:top] + value["shift"])
        core[top:, top:] += value["x"] @ value["y"]
        if case == "salt, full":
            core = np.maximum(core, 0)
        elif case == "salt":
            np.fill_diagonal(core, np.maximum(np.diag(core), 0))
    return u @ core @ vh


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", METHODS)
def test_forward_is_the_dense_core(case: str, shape: tuple[int, int], bias: bool) -> None:
    linear = linear_of_shape(*shape, bias=bias)
    weight = linear.weight.detach().numpy().copy()
    module = layer(case, linear)
    move(module)
    x = torch.randn(5, 3, shape[1], dtype=torch.float64)
    expected = x.numpy() @ dense(case, module, weight).T
    expected += module.bias.detach().numpy() if bias else 0
    error = np.abs(module(x).detach().numpy() - expected).max()
    print(f"{case} {shape}: {error:.1e}")
    assert error <= 1e-11
    assert np.abs(module(x).detach().numpy() - linear(x).detach().numpy()).max() > 0.1
    assert np.abs(module.folded()(x).detach().numpy() - expected).max() <= 1e-11


RELU = {
    "none": [[-1, 1, 2], [8, 0, -4], [-2, 0.5, 2]],
    "diagonal": [[0, 1, 2], [8, 0, -4], [-2, 0.5, 2]],
    "full": [[0, 1, 2], [8, 0, 0], [0, 0.5, 2]],
}


@pytest.mark.parametrize("relu", RELU)
def test_what_relu_cuts_off_is_written_down(relu: str) -> None:
    """U = V = 1 and S = (4, 3, 2, 1): the weight is the core. a S + c is -4 + 1."""
    s = torch.tensor([4.0, 3, 2, 1])
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(s.diag())
    module = SpectralLinear(
        linear,
        (torch.eye(4), s, torch.eye(4)),
        scale=torch.tensor([-1.0]),
        shift=torch.tensor([1.0]),
        xy=(torch.tensor([[1.0], [-2], [0.5]]), torch.tensor([[-4.0, 1, 2]])),
        relu=relu,
    )
    expected = torch.zeros(4, 4)
    expected[0, 0] = -3 if relu == "none" else 0
    expected[1:, 1:] = torch.tensor(RELU[relu])
    assert torch.equal(module(torch.eye(4)).T, expected)
    assert torch.equal(module.folded().weight, expected)


@pytest.mark.parametrize("case", METHODS)
def test_start_is_exact_to_the_bit(case: str) -> None:
    linear = linear_of_shape(24, 16).float()
    x = torch.randn(5, 16)
    assert torch.equal(layer(case, linear)(x), linear(x))


def test_gradients_are_those_of_the_dense_core() -> None:
    """Of SALT with its default relu, by autograd through the definition."""
    linear = linear_of_shape(12, 10)
    module = layer("salt", linear)
    move(module)
    x, direction = torch.randn(7, 10).double(), torch.randn(7, 12).double()
    (module(x) * direction).sum().backward()
    learned = {n: p for n, p in module.named_parameters() if "spectral" in n}
    twins = {n.removeprefix("spectral_"): p.detach().requires_grad_() for n, p in learned.items()}
    s, top = module.spectral_s, module.top
    rest = s[top:].diag() + twins["x"] @ twins["y"]
    rest = rest - rest.diag().diag() + rest.diag().relu().diag()
    head = (twins["scale"] * s[:top] + twins["shift"]).relu().diag()
    weight = module.spectral_u @ torch.block_diag(head, rest) @ module.spectral_vh
    (x @ weight.T * direction).sum().backward()
    assert (head.diag() == 0).any() or (rest.diag() == 0).any()  # the relu takes part
    for name, parameter in learned.items():
        expected = twins[name.removeprefix("spectral_")].grad
        assert torch.allclose(parameter.grad, expected, atol=1e-11), name


@pytest.mark.parametrize("relu", ["none", "diagonal", "full"])
def test_with_y_zero_the_full_relu_lets_the_diagonal_through_alone(relu: str) -> None:
    """Of dM/dY = X^T G the released form keeps what comes from diagonal entries of G."""
    linear = linear_of_shape(20, 20)
    method = SALT(share=0.2, rank=3, relu=relu)
    weight = linear.weight.detach()
    module = method.layer(linear, soma_spectral._triplets(weight, 20, empty=False))
    x, direction = torch.randn(30, 20).double(), torch.randn(30, 20).double()
    (module(x) * direction).sum().backward()
    # G = dL/dM = U^T (direction^T x) V of the mixed components.
    g = (module.spectral_u.T @ direction.T @ x @ module.spectral_vh.T)[4:, 4:]
    g = g.diag().diag() if relu == "full" else g
    assert torch.allclose(module.spectral_y.grad, module.spectral_x.T @ g, atol=1e-10)


def test_zero_singular_values_start_exactly_and_learn() -> None:
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight[:, 3:] = 0
        linear.weight[3] = linear.weight[2]  # rank 3 of 4
    module = layer("s-sam", linear)
    x = torch.randn(5, 6)
    assert torch.equal(module(x), linear(x))
    module(x).square().sum().backward()
    assert module.spectral_shift.grad.isfinite().all()


def test_autocast_computes_gains_in_float32() -> None:
    """A change far below what bfloat16 resolves in a scale of one still reaches the output."""
    linear = linear_of_shape(16, 16, bias=False).float()
    module, x = layer("scale", linear), torch.randn(5, 16)
    with torch.no_grad():
        module.spectral_scale.add_(1e-4)
    u, s, vh = module.spectral_u, module.spectral_s, module.spectral_vh
    with torch.autocast("cpu", torch.bfloat16):
        change = module._update(torch.nn.functional.linear(x, vh))
    expected = 1e-4 * x @ (u @ s.diag() @ vh).T
    assert change.dtype == torch.bfloat16
    assert (change.float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_half_precision_and_shapes_are_refused() -> None:
    triplets = (torch.eye(4), torch.ones(4), torch.eye(4))
    with pytest.raises(ValueError, match="float32"):
        SpectralLinear(nn.Linear(4, 4).bfloat16(), triplets, scale=torch.ones(4))
    for learned in ({"scale": torch.ones(3)}, {}, {"scale": torch.ones(2), "shift": torch.ones(4)}):
        with pytest.raises(ValueError, match="4 components"):
            SpectralLinear(nn.Linear(4, 4), triplets, **learned)


def test_copies_are_independent() -> None:
    module, x = layer("salt", linear_of_shape(16, 24)), torch.randn(2, 24).double()
    before = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), before)
        move(twin)
        assert torch.equal(module(x), before)


def test_reload_needs_no_svd_and_no_draw(
    small_vit: Build, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, method = small_vit(), SALT(rank=3, start_block=2)
    placed = adapt(method, vit)
    for module in vit.modules():
        if isinstance(module, SpectralLinear):
            move(module)
    path = tmp_path / "adapter.safetensors"
    save_adapter(vit, path, placed)
    with safe_open(str(path), framework="pt") as file:
        kept = {name.split(".")[-1] for name in file.keys() if "fc1" in name}  # noqa: SIM118
    assert kept == {f"spectral_{name}" for name in ("u", "s", "vh", "scale", "shift", "x", "y")}
    monkeypatch.setattr(soma_spectral, "singular_triplets", None)
    fresh = small_vit()
    torch.manual_seed(99)
    assert load_adapter(method, fresh, path) == placed
    for (name, expected), (_, got) in zip(
        vit.state_dict().items(), fresh.state_dict().items(), strict=True
    ):
        assert torch.equal(got, expected), name
    assert torch.equal(fresh(images), vit(images))
