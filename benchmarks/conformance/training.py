"""What must hold of a method as it starts and as it trains.

Each property is a function of a `MethodUnderTest` that returns what it measured, or raises
`Broken` or `NothingToCheck`. Differences are absolute, of features of the order of one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.conformance.method_under_test import (
    Broken,
    MethodUnderTest,
    changed,
    distance,
    learners,
    require_close,
    require_learners,
    snapshot,
    some,
)
from benchmarks.optim import make_optimizer
from benchmarks.protocol import Recipe
from soma.backbone import block_index, comes_before, parameter_role

START = 1e-4  # largest difference of an exact start
NOISE = 1e-7  # gradients below this share of the largest one are rounding
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
    """Placed on the last block, nothing before it is touched."""
    last = len(test.plain().blocks) - 1
    late = test.from_block(last)
    _, vit = late.trained()
    early = [
        name for name in learners(vit) if (index := block_index(name)) is not None and index < last
    ]
    if early:
        raise Broken(f"with start_block {last}, {some(early)} learn")
    found = distance(_entering_last(vit, test), _entering_last(test.plain(), test))
    if found != 0:
        raise Broken(f"with start_block {last}, what enters block {last} differs by {found:.1e}")
    return f"from block {last}: {len(learners(vit))} tensors learn, what enters it is unchanged"


def optimiser(test: MethodUnderTest) -> str:
    """The optimiser that the benchmark builds holds what learns, each tensor once."""
    placed, vit = test.untrained
    found = require_learners(vit)
    rules = {f"backbone.{name}": placed.decay(name) for name in found}
    recipe = Recipe(iterations=1, batch=1, lr=1e-3, backbone_lr=1e-3, weight_decay=0.01)
    built = make_optimizer(nn.ModuleDict({"backbone": vit}), recipe, rules)
    held = [id(parameter) for group in built.param_groups for parameter in group["params"]]
    if sorted(held) != sorted(id(parameter) for parameter in found.values()):
        raise Broken(f"holds {len(held)} tensors, {len(found)} learn")
    return f"holds the {len(held)} tensors that learn, once each"


def gradients(test: MethodUnderTest) -> str:
    """After one step a gradient reaches all that learns (two zero factors starve each other)."""
    vit = test.trace.vit
    found = require_learners(vit)
    sizes = {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in found.items()}
    blind = {name for name in sizes if _is_blind(name, vit)}
    seen = {name: size for name, size in sizes.items() if name not in blind}
    dead = [name for name, size in seen.items() if not size > NOISE * max(sizes.values())]
    if dead:
        raise Broken(f"no gradient reaches {len(dead)} of {len(sizes)}: {some(dead)}")
    note = f"; {len(blind)} key biases get none, attention is blind to them" if blind else ""
    return f"{len(seen)} tensors, {min(seen.values()):.1e} to {max(seen.values()):.1e}{note}"


def movement(test: MethodUnderTest) -> str:
    """Two steps move all that learns."""
    trace = test.trace
    found = require_learners(trace.vit)
    moved = {name: distance(trace.before[name], trace.after[name]) for name in found}
    still = [name for name, by in moved.items() if not by > 0 and not _is_blind(name, trace.vit)]
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


def _is_blind(name: str, vit: nn.Module) -> bool:
    """The bias of the keys adds a constant per query, unless a rotation comes after it."""
    rotary = getattr(vit, "rope", None) is not None
    return parameter_role(name) == "k" and name.endswith(".bias") and not rotary


def _leaves(output: Tensor) -> list[Tensor]:
    """Tensors that a backward pass from `output` would give gradients to."""
    seen, found, waiting = set(), [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _entering_last(vit: nn.Module, test: MethodUnderTest) -> Tensor:
    """Output of the block before the last one."""
    caught = []
    handle = vit.blocks[-2].register_forward_hook(lambda module, args, y: caught.append(y))
    with torch.no_grad():
        vit.forward_features(test.images)
    handle.remove()
    return caught[0]


TRAINING: dict[str, Callable[[MethodUnderTest], str]] = {
    "exact start": exact_start,
    "start by seed": seeded_start,
    "pretrained keys": pretrained_keys,
    "declared parameters learn": declared_learn,
    "start_block": start_block,
    "optimiser": optimiser,
    "gradient after one step": gradients,
    "moves after two": movement,
    "frozen tensors rest": frozen_rest,
    "weight decay rules": decay_rules,
}
