"""What must hold of an adapted backbone as it is copied, stored, folded, and run in other ways."""

import copy
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.conformance.method_under_test import (
    KINDS,
    Broken,
    MethodUnderTest,
    NothingToCheck,
    build_vit,
    changed,
    distance,
    learners,
    nudge,
    require_close,
    require_learners,
    snapshot,
    some,
)
from soma import Method, NotApplicable, NotFoldable, load_adapter, merge_qkv, save_adapter

COMPILED = 1e-5  # largest difference of a compiled backbone
FOLD = 1e-4  # largest difference of a folded backbone
SAME = 1e-6  # of one that was copied, stored and loaded
GRADIENT = 1e-4  # of gradients computed in another way, as a share of the largest
# An output in half precision is at most this many times as wrong as without the method.
HALF = 4


def deep_copy(test: MethodUnderTest) -> str:
    """A copy (for a moving average) gives the same output, and neither reads the other."""
    _, vit = test.trained()
    expected = test.features(vit)
    twin, other = copy.deepcopy(vit), copy.deepcopy(vit)
    require_close("the output of the copy", test.features(twin), expected, SAME)
    nudge(twin)
    if distance(test.features(vit), expected) != 0:
        raise Broken("moving what learns in the copy changes the output of the original")
    if distance(test.features(twin), expected) == 0:
        raise Broken("moving what learns in the copy does not change the copy's output")
    nudge(vit)
    if (leak := distance(test.features(other), expected)) != 0:
        raise Broken(f"the copy reads the original: moving that changes the copy by {leak:.1e}")
    moved = distance(test.features(twin), expected)
    return f"its output is its own; what learns in it moves it alone, by {moved:.1e}"


def pickling(test: MethodUnderTest) -> str:
    """Pickled and read again, the output is the same (workers and older checkpoints do that)."""
    _, vit = test.example
    content = pickle.dumps(vit)
    twin = pickle.loads(content)
    return require_close("the output", test.features(twin), test.features(vit), SAME)


def modes(test: MethodUnderTest) -> str:
    """`train` and `eval` return the backbone, reach every module, and change nothing else.

    New modules are in the mode of the backbone, which is `eval` where an adapter is loaded.
    """
    if deaf := [name for name, module in test.untrained[1].named_modules() if module.training]:
        raise Broken(f"put on a backbone in eval mode, {some(deaf)} are in training mode")
    _, vit = test.example
    before, learning, expected = snapshot(vit), set(learners(vit)), test.features(vit)
    for mode in (True, False):
        if (vit.train() if mode else vit.eval()) is not vit:
            raise Broken(f"{'train' if mode else 'eval'}() does not return the backbone")
        if deaf := [name for name, module in vit.named_modules() if module.training != mode]:
            raise Broken(f"training is not {mode} in {some(deaf)}")
        if moved := changed(before, snapshot(vit)):
            raise Broken(f"{'train' if mode else 'eval'}() changes {some(moved)}")
        if other := sorted(learning ^ set(learners(vit))):
            raise Broken(f"{'train' if mode else 'eval'}() changes what learns: {some(other)}")
    require_close("the output", test.features(vit), expected, 0)
    return f"return self; {len(before)} tensors, what learns and the output as before"


def folding(test: MethodUnderTest) -> str:
    """Folded, the backbone gives the same output with the keys and modules of the plain one."""
    placed, vit = test.example
    expected, twin = test.features(vit), _folded(test, placed, vit)
    plain = test.plain()
    _require_plain(twin, plain)
    close = require_close("the output", test.features(twin), expected, FOLD)
    require_close("folding a copy, the output of the original", test.features(vit), expected, 0)
    merge_qkv(twin)
    merge_qkv(plain)
    _require_plain(twin, plain)
    require_close("with q, k, v merged, the output", test.features(twin), expected, FOLD)
    moved = distance(expected, test.start)
    return f"{close}, where the method moved it by {moved:.1e}; the keys are back"


def folding_other_numbers(test: MethodUnderTest) -> str:
    """The same with other values of the fields that are numbers, no two of them equal."""
    other = test.with_other_numbers()
    numbers = [
        f"{field.name} {value}"
        for field in fields(test.method)
        if (value := getattr(other.method, field.name)) != getattr(test.method, field.name)
    ]
    return f"{', '.join(numbers)}: {_fold_anew(other)}"


def folding_without_biases(test: MethodUnderTest) -> str:
    """The same where no linear has a bias, and where the start is exact, it is so there too."""
    try:
        return _fold_anew(test.without_biases())
    except NotApplicable as reason:
        raise NothingToCheck(f"refused: {reason}") from None


def _fold_anew(test: MethodUnderTest) -> str:
    placed, vit = test.adapted()
    if placed.exact_start:
        require_close("the start", test.features(vit), test.start, FOLD)
    nudge(vit, 0.03)
    twin = _folded(test, placed, vit)
    _require_plain(twin, test.plain())
    return require_close("the output", test.features(twin), test.features(vit), FOLD)


def _folded(test: MethodUnderTest, placed: Method, vit: nn.Module) -> nn.Module:
    """A folded copy.

    Raises:
        NothingToCheck: the method has no fold, and says so without changing anything.
    """
    twin = copy.deepcopy(vit)
    try:
        placed.fold(twin)
    except NotFoldable as reason:
        require_close("refuses, but the output", test.features(twin), test.features(vit), 0)
        if not str(reason):
            raise Broken("refuses without a reason") from None
        raise NothingToCheck(f"not foldable: {reason}") from None
    return twin


def saving(test: MethodUnderTest) -> str:
    """Saved and loaded onto a fresh backbone, the output is the same; nothing is drawn again."""
    placed, vit = test.example
    fresh = test.plain()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(vit, path, placed)
        size = path.stat().st_size
        torch.manual_seed(99)
        loaded = load_adapter(test.method, fresh, path)
    if loaded != placed:
        raise Broken(f"loading returns {loaded}, saved was {placed}")
    close = require_close("the output", test.features(fresh), test.features(vit), SAME)
    return f"{close}; the file has {size / 1024:.0f} KiB"


def checkpointing(test: MethodUnderTest) -> str:
    """Gradients are the same where blocks are computed again in the backward pass."""

    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        _, vit = test.adapted()
        nudge(vit)
        vit.train().set_grad_checkpointing(checkpointed)
        torch.manual_seed(13)
        # Two forward passes before the backward one: no state may leak between them.
        first = vit.forward_features(test.images)
        second = vit.forward_features(test.images.flip(0))
        return _gradients(vit, test.loss(first) + test.loss(second.square()))

    return _require_same(gradients(True), gradients(False))


def autocast(test: MethodUnderTest) -> str:
    """In bfloat16 the output is about as right as without the method, the gradients are finite."""

    def error(vit: nn.Module) -> float:
        exact = test.features(vit)
        with torch.autocast("cpu", torch.bfloat16):
            return distance(test.features(vit), exact) / exact.abs().max().item()

    _, vit = test.example
    mine, usual = error(vit), error(test.plain())
    if not mine <= HALF * usual:
        raise Broken(f"bfloat16: wrong by {mine:.1%}, without the method by {usual:.1%}")
    with torch.autocast("cpu", torch.bfloat16):
        features = vit.forward_features(test.images)
    if learners(vit):
        for name, gradient in _gradients(vit, test.loss(features)).items():
            if not gradient.isfinite().all():
                raise Broken(f"bfloat16: the gradient of {name} is not finite")
    return f"bfloat16 on the CPU: wrong by {mine:.1%}, without the method by {usual:.1%}"


def compiling(test: MethodUnderTest) -> str:
    """Compiled (traced by dynamo, run by PyTorch: no compiler is needed), outputs are the same."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    # The same code with other sizes: a second of tracing saved.
    if test.kind == KINDS[1]:
        raise NothingToCheck(f"traced on the backbone with {KINDS[0]}, whose code is the same")
    # Two blocks are enough: tracing takes longer than all else, and longer the more there are.
    first = test.method.first_block(test.plain())
    plain = build_vit(test.kind, depth=2)
    test = MethodUnderTest(replace(test.method, start_block=min(first, 1)), test.kind, plain)
    _, vit = test.trained()
    expected = test.features(vit)
    # Past a number of backbones dynamo gives up, and runs them as they are.
    torch._dynamo.reset()
    compiled = torch.compile(vit.forward_features, backend=backend, dynamic=False)
    features = compiled(test.images)
    close = require_close("the output", features.detach(), expected, COMPILED)
    if not graphs:
        raise Broken("nothing was compiled")
    if learners(vit):
        plain = _gradients(vit, test.loss(vit.forward_features(test.images)))
        _require_same(_gradients(vit, test.loss(features)), plain)
    torch._dynamo.reset()
    return f"{close}, {graphs} graph{'s' if graphs > 1 else ''} (traced; backend eager)"


def fused_qkv(test: MethodUnderTest) -> str:
    """Where q, k and v are one linear, the method works too or refuses with a reason."""
    vit = test.plain()
    merge_qkv(vit)
    if vit.state_dict().keys() == test.plain().state_dict().keys():
        raise NothingToCheck("this backbone has them apart")
    before = snapshot(vit)
    try:
        test.adapted(vit)
    except NotApplicable as reason:
        if moved := changed(before, snapshot(vit)):
            raise Broken(f"refuses, but has changed {some(moved)} before") from None
        if not str(reason):
            raise Broken("refuses without a reason") from None
        return f"refused: {reason}"
    features = test.features(vit)
    if test.method.exact_start:
        return require_close("works: the output", features, test.start, FOLD)
    return f"works: the output differs by {distance(features, test.start):.1e}"


def _require_plain(vit: nn.Module, plain: nn.Module) -> None:
    """Keys in their order, and the type of every module."""
    keys, expected = list(vit.state_dict()), list(plain.state_dict())
    if other := sorted(set(keys) ^ set(expected)):
        raise Broken(f"folded, the keys differ in {some(other)}")
    if keys != expected:
        raise Broken("folded, the keys come in another order")
    kinds = {name: type(module) for name, module in plain.named_modules()}
    for name, module in vit.named_modules():
        if kinds.get(name) is not type(module):
            raise Broken(f"folded, {name} is a {type(module).__name__}")


def _gradients(vit: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Name -> gradient of what learns."""
    learning = require_learners(vit)
    values = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return {n: v for n, v in zip(learning, values, strict=True) if v is not None}


def _require_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Both as shares of the largest gradient, since single ones may be rounding noise."""
    largest = max((value.abs().max().item() for value in expected.values()), default=0.0) or 1.0
    if other := sorted(actual.keys() ^ expected.keys()):
        raise Broken(f"gradients differ in {some(other)}")
    shares = {name: distance(actual[name], expected[name]) / largest for name in expected}
    worst = max(shares, key=shares.get)
    if not shares[worst] <= GRADIENT:
        raise Broken(f"the gradient of {worst} differs by {shares[worst]:.1e} of the largest")
    return f"{len(shares)} gradients differ by {shares[worst]:.1e} of the largest at most"


DEPLOYMENT: dict[str, Callable[[MethodUnderTest], str]] = {
    "deep copy": deep_copy,
    "pickle": pickling,
    "train() and eval()": modes,
    "fold": folding,
    "fold with other numbers": folding_other_numbers,
    "fold without biases": folding_without_biases,
    "save and load": saving,
    "activation checkpointing": checkpointing,
    "autocast": autocast,
    "torch.compile": compiling,
    "fused q, k, v": fused_qkv,
}
