"""What must hold of a method as it starts and as it trains.

Each property is a function of a `MethodUnderTest` that returns what it measured, or raises
`Broken` or `NothingToCheck`. Differences are absolute, of features of the order of one.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.conformance.method_under_test import (
    Broken,
    MethodUnderTest,
    NothingToCheck,
    changed,
    distance,
    is_blind,
    learners,
    nudge,
    require_close,
    require_learners,
    snapshot,
    some,
)
from benchmarks.optim import make_optimizer, set_rates
from benchmarks.protocol import Recipe
from soma.backbone import block_index, comes_before

START = 1e-4  # largest difference of an exact start
# Gradients below this share of the largest one are rounding.
NOISE = 1e-7
# Those below this one may be: attention may be blind to what they are of.
FAINT = 1e-5
DECAY = 1e-5  # largest difference of what decayed from where it should be
STEPS, RATE = 25, 1e-3  # of the benchmark's optimiser
RESUMED = 1e-4  # largest difference after resuming
RULES = ("to_zero", "none", "to_init")


def exact_start(test: MethodUnderTest) -> str:
    """The output is the pretrained one before training, or the method says that it is not."""
    placed, vit = test.untrained
    got = test.features(vit)
    if placed.exact_start:
        return require_close("the output", got, test.start, START)
    if got.shape != test.start.shape or not got.isfinite().all():
        raise Broken(f"the output has shape {tuple(got.shape)}, or is not finite")
    return f"not exact, as the method says: differs by {distance(got, test.start):.1e}"


def seeded_start(test: MethodUnderTest) -> str:
    """The seed decides every starting value."""
    first, second = snapshot(test.untrained[1]), snapshot(test.adapted()[1])
    if different := changed(first, second):
        raise Broken(f"the same seed gives another {some(different)}")
    return f"{len(first)} tensors equal"


def another_seed(test: MethodUnderTest) -> str:
    """What learns and is drawn is drawn from the seed; the global generator goes on, not back."""
    with Draws() as draws:
        _, vit = test.adapted(seed=11)
    if not draws.values:
        raise NothingToCheck("nothing is drawn")
    begun = torch.Generator().manual_seed(11).get_state()
    first, state = snapshot(vit), torch.get_rng_state()
    with Draws() as others:
        other = snapshot(test.adapted(seed=12)[1])
    same = {n for n in learners(vit) if n in other and torch.equal(first[n], other[n])}
    if torch.equal(state, torch.get_rng_state()):
        raise Broken("sets the global generator: after it, another seed gives the same numbers")
    # The same seed with other numbers: what stays equal was never drawn, such as zeros.
    with Draws(twice=True):
        drawn = snapshot(test.adapted(seed=11)[1])
    if stuck := sorted(n for n in same if n in drawn and not torch.equal(first[n], drawn[n])):
        raise Broken(f"{some(stuck)} come from a draw that does not depend on the seed")
    # A method may draw from a generator of its own: that does not move the global one.
    by_seed = [not torch.equal(*pair) for pair in zip(draws.values, others.values, strict=False)]
    if any(by_seed) and torch.equal(state, begun):
        raise Broken("rewinds the global generator: what is drawn next are the same numbers again")
    return f"{sum(by_seed)} of {len(by_seed)} draws depend on the seed"


class Draws(TorchDispatchMode):
    """Keeps the random numbers that are drawn inside.

    Args:
        twice: everything is drawn a second time, so that what is drawn is other than without.
    """

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.twice, self.values = twice, list[Tensor]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `TorchDispatchMode`."""
        value = func(*args, **(kwargs or {}))
        is_draw = torch.Tag.nondeterministic_seeded in func.tags
        if is_draw and isinstance(value, Tensor) and not value.is_meta:
            if self.twice:
                value = func(*args, **(kwargs or {}))
            self.values.append(value.detach().clone())
        return value


def pretrained_keys(test: MethodUnderTest) -> str:
    """Pretrained tensors keep names and shapes."""
    before, after = test.plain().state_dict(), test.untrained[1].state_dict()
    if lost := [name for name in before if name not in after]:
        raise Broken(f"{len(lost)} of {len(before)} keys are gone: {some(lost)}")
    if other := [name for name, value in before.items() if after[name].shape != value.shape]:
        raise Broken(f"other shapes: {some(other)}")
    return f"{len(before)} keys and shapes as before"


def declared_learn(test: MethodUnderTest) -> str:
    """New parameters learn, pretrained ones where `trains` and `start_block` say; no others do.

    Asked again in training mode after a backward pass, and of the autograd graph, which also knows
    tensors that no module owns.
    """
    declared, pretrained = _declared(test), _pretrained(test)
    _, vit = test.adapted()
    owners: dict[int, str] = {}
    for name, parameter in vit.named_parameters(remove_duplicate=False):
        if (owner := owners.setdefault(id(parameter), name)) != name:
            raise Broken(f"one tensor learns under two names: {owner} and {name}")
    _require_learning(vit, declared, "after adapt")
    features = vit.train().forward_features(test.images)
    if hidden := [leaf for leaf in _leaves(features) if id(leaf) not in owners]:
        raise Broken(f"{len(hidden)} tensors learn that are no parameters of the backbone")
    if features.requires_grad:
        test.loss(features).backward()
    _require_learning(vit, declared, "after a training step")
    numbers = sum(parameter.numel() for parameter in learners(vit).values())
    kept = len(declared & pretrained)
    return f"{len(declared) - kept} new and {kept} pretrained tensors, {numbers:,} numbers"


def _require_learning(vit: nn.Module, declared: set[str], when: str) -> None:
    learning = set(learners(vit))
    if wrong := sorted(learning - declared):
        raise Broken(f"{some(wrong)} learn {when}, which is not declared")
    if wrong := sorted(declared - learning):
        raise Broken(f"{some(wrong)} do not learn {when}, which is declared")


def _pretrained(test: MethodUnderTest) -> set[str]:
    return {name for name, _ in test.plain().named_parameters()}


def _declared(test: MethodUnderTest) -> set[str]:
    """Names of the parameters that are to learn, whatever requires a gradient."""
    plain, (placed, vit) = test.plain(), test.untrained
    pretrained, start = _pretrained(test), placed.first_block(plain)
    return {
        name
        for name, _ in vit.named_parameters(remove_duplicate=False)
        if name not in pretrained or (placed.trains(name) and not comes_before(plain, name, start))
    }


def start_block(test: MethodUnderTest) -> str:
    """Placed on each block in turn: what learns changes that block's output, nothing before it."""
    plain = _leaving(test.plain(), test)
    touched = 0
    for first in range(len(plain)):
        _, vit = test.with_fields(start_block=first).adapted()
        learning, where = learners(vit), f"with start_block {first},"
        indices = {name: block_index(name) for name in learning}
        if early := [n for n, index in indices.items() if index is not None and index < first]:
            raise Broken(f"{where} {some(early)} learn")
        before = _leaving(vit, test)
        if learning:
            nudge(vit)
        after = _leaving(vit, test)
        if first and (moved := distance(plain[first - 1], after[first - 1])) != 0:
            raise Broken(f"{where} what enters that block differs by {moved:.1e}")
        if learning and distance(before[first], after[first]) == 0:
            raise Broken(f"{where} what learns does not change that block's output")
        touched += bool(learning)
    return f"from {touched} of {len(plain)} blocks on something learns, from that block itself on"


def optimiser(test: MethodUnderTest) -> str:
    """The optimiser that the benchmark builds holds what learns, each tensor once."""
    placed, vit = test.untrained
    learning = require_learners(vit)
    rules = {f"backbone.{name}": placed.decay(name) for name in learning}
    recipe = Recipe(iterations=1, batch=1, lr=1e-3, backbone_lr=1e-3, weight_decay=0.01)
    built = make_optimizer(nn.ModuleDict({"backbone": vit}), recipe, rules)
    held = [id(parameter) for group in built.param_groups for parameter in group["params"]]
    if sorted(held) != sorted(id(parameter) for parameter in learning.values()):
        raise Broken(f"holds {len(held)} tensors, {len(learning)} learn")
    return f"holds the {len(held)} tensors that learn, once each"


def gradients(test: MethodUnderTest) -> str:
    """After one step a gradient reaches all that learns (two zero factors starve each other)."""
    vit = test.trace.vit
    learning = require_learners(vit)
    sizes = {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in learning.items()}
    return require_gradients(test, vit, sizes)


def require_gradients(test: MethodUnderTest, vit: nn.Module, sizes: dict[str, float]) -> str:
    """The sizes of the gradients in words. Shifts of all keys get none: attention is blind to them.

    Args:
        test: for its images.
        vit: the backbone that learns.
        sizes: name of what learns -> the largest entry of its gradient.

    Raises:
        Broken: something else gets none.
    """
    learning, largest = learners(vit), max(sizes.values())
    low = [name for name, size in sizes.items() if not size > FAINT * max(largest, 1)]
    blind = [name for name in low if is_blind(vit, learning[name], test.images)]
    seen = {name: size for name, size in sizes.items() if name not in blind}
    dead = [name for name, size in seen.items() if not size > NOISE * largest]
    if not seen:
        raise Broken(f"all that learns shifts all keys alike, attention is blind to {some(blind)}")
    if dead:
        raise Broken(f"no gradient reaches {len(dead)} of {len(sizes)}: {some(dead)}")
    note = f"; {len(blind)} shift all keys alike, attention is blind to that" if blind else ""
    return f"{len(seen)} tensors, {min(seen.values()):.1e} to {max(seen.values()):.1e}{note}"


def movement(test: MethodUnderTest) -> str:
    """Two steps move all that learns."""
    trace = test.trace
    learning = require_learners(trace.vit)
    moved = {name: distance(trace.before[name], trace.after[name]) for name in learning}
    still = [
        name
        for name, by in moved.items()
        if not by > 0 and not is_blind(trace.vit, learning[name], test.images)
    ]
    if still:
        raise Broken(f"{len(still)} of {len(moved)} have not moved: {some(still)}")
    return f"{len(moved)} tensors, by up to {max(moved.values()):.1e}"


def frozen_rest(test: MethodUnderTest) -> str:
    """Two steps move no frozen parameter and no buffer."""
    trace = test.trace
    declared = _declared(test)
    moved = [name for name in changed(trace.before, trace.after) if name not in declared]
    if moved:
        raise Broken(f"{len(moved)} moved that are not to learn: {some(moved)}")
    return f"{len(trace.before.keys() - declared)} frozen tensors and buffers as before"


def decay_rules(test: MethodUnderTest) -> str:
    """The method says of each parameter that learns where weight decay pulls it."""
    placed, vit = test.untrained
    counts = dict.fromkeys(RULES, 0)
    for name in require_learners(vit):
        rule = placed.decay(name)
        if rule not in RULES:
            raise Broken(f"decay({name!r}) is {rule!r}: expected {', '.join(RULES)}")
        counts[rule] += 1
    return ", ".join(f"{rule} {count}" for rule, count in counts.items() if count)


def decay_alone(test: MethodUnderTest) -> str:
    """Under a loss of zero, decay moves what learns to where the method says, and nothing else."""
    placed, vit = test.adapted()
    learning = require_learners(vit)
    rules = {name: placed.decay(name) for name in learning}
    start = snapshot(vit)
    recipe = Recipe(iterations=1, batch=1, lr=0.1, backbone_lr=0.1, weight_decay=1.0)
    named = {f"backbone.{name}": rule for name, rule in rules.items()}
    optimizer = make_optimizer(nn.ModuleDict({"backbone": vit}), recipe, named)
    set_rates(optimizer, recipe, 0)
    nudge(vit)
    vit.train()
    before = snapshot(vit)
    for _ in range(2):
        optimizer.zero_grad()
        (0 * test.loss(vit.forward_features(test.images))).backward()
        optimizer.step()
    after = snapshot(vit)
    for name, rule in rules.items():
        points = {"to_zero": 0 * start[name], "to_init": start[name], "none": before[name]}
        if learning[name].grad is None:
            # No part of the loss: the optimiser leaves it as it is.
            continue
        left = (1 - recipe.lr * recipe.weight_decay) ** 2
        expected = points[rule] + left * (before[name] - points[rule])
        require_close(f"{name}, decayed {rule},", after[name], expected, DECAY)
    if moved := [name for name in changed(before, after) if name not in learning]:
        raise Broken(f"the decay of what learns moves {some(moved)}, which does not")
    return f"{len(rules)} tensors have {left:.0%} of their way left"


def _leaves(output: Tensor) -> list[Tensor]:
    """Tensors that a backward pass from `output` would give gradients to."""
    seen, leaves, waiting = set(), [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _leaving(vit: nn.Module, test: MethodUnderTest) -> list[Tensor]:
    """The output of each block."""
    caught: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda block, args, y: caught.append(y)) for block in vit.blocks
    ]
    test.features(vit)
    for handle in handles:
        handle.remove()
    return caught


def resuming(test: MethodUnderTest) -> str:
    """The benchmark's optimiser lowers a loss; stopped half-way and resumed, it ends the same."""

    def begun() -> tuple[nn.Module, Optimizer]:
        placed, vit = test.adapted()
        rules = {f"backbone.{name}": placed.decay(name) for name in require_learners(vit)}
        recipe = Recipe(iterations=STEPS, batch=3, lr=RATE, backbone_lr=RATE, weight_decay=0.05)
        optimizer = make_optimizer(nn.ModuleDict({"backbone": vit}), recipe, rules)
        set_rates(optimizer, recipe, 0)
        return vit.train(), optimizer

    target = torch.randn(test.start.shape, generator=torch.Generator().manual_seed(23))

    def train(vit: nn.Module, optimizer: Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            # So that dropout drops the same in the run that is resumed.
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = (vit.forward_features(test.images) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    vit, optimizer = begun()
    losses = train(vit, optimizer, range(STEPS // 2))
    state = copy.deepcopy((vit.state_dict(), optimizer.state_dict()))
    losses += train(vit, optimizer, range(STEPS // 2, STEPS))
    if not losses[-1] < losses[0]:
        raise Broken(f"{STEPS} steps move the loss from {losses[0]:.3f} to {losses[-1]:.3f}")
    resumed, optimizer = begun()
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    train(resumed, optimizer, range(STEPS // 2, STEPS))
    ends = test.features(resumed.eval()), test.features(vit.eval())
    close = require_close(f"resumed after {STEPS // 2}, the output", *ends, RESUMED)
    return f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps; {close}"


TRAINING: dict[str, Callable[[MethodUnderTest], str]] = {
    "exact start": exact_start,
    "start by seed": seeded_start,
    "another seed": another_seed,
    "pretrained keys": pretrained_keys,
    "declared parameters learn": declared_learn,
    "start_block": start_block,
    "optimiser": optimiser,
    "gradient after one step": gradients,
    "moves after two": movement,
    "frozen tensors rest": frozen_rest,
    "weight decay rules": decay_rules,
    "weight decay alone": decay_alone,
    "25 steps, resumed": resuming,
}
