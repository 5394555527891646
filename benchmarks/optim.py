"""What a recipe does to the weights: parameter groups, schedules, weight decay, weight averaging.

Schedules are pure functions of the iteration, so that a resumed run needs no scheduler state. They
follow mmengine's schedulers, which the official SoMA and Rein configs use;
`tests/data/schedules.csv` holds what mmengine computed for five of those configs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm import layers
from torch import nn

from benchmarks.protocol import Recipe

DROP = 0.1  # factor on the learning rate at each milestone
# timm's own norms derive from none of torch's.
_NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm),
    *(layers.RmsNorm, layers.RmsNorm2d, layers.SimpleNorm, layers.SimpleNorm2d),
)
# Of Mask2Former: the learnt features of the queries, and what tells the levels of the pixel decoder
# apart, which is a bare parameter there.
_QUERIES = "head.transformer.queries_features.weight"
_LEVELS = "head.pixel_decoder.level_embed"


def warm_up(iteration: int, warmup: int, start: float) -> float:
    """Share of the learning rate at `iteration` < `warmup`: a line from `start` to 1."""
    # mmengine reaches the full rate in the last step of the warm-up, not in the step after it.
    return start + (1 - start) * iteration / max(1, warmup - 1)


def poly(iteration: int, iterations: int, power: float, warmup: int = 0) -> float:
    """Share of the learning rate after the warm-up: falls from 1 to 0 at the last iteration."""
    return (1 - (iteration - warmup) / max(1, iterations - warmup - 1)) ** power


def multistep(iteration: int, milestones: Iterable[int]) -> float:
    """Share of the learning rate: times `DROP` from each milestone on, counted from iteration 0.

    mmengine counts milestones from the end of the warm-up: 24,000 and 32,000 of the detection
    recipe with 1,500 iterations of warm-up are 25,500 and 33,500 here.
    """
    return DROP ** sum(iteration >= milestone for milestone in milestones)


def learning_rate_share(recipe: Recipe, iteration: int) -> float:
    """What to multiply every learning rate with at `iteration` (counted from 0)."""
    if iteration < recipe.warmup:
        return warm_up(iteration, recipe.warmup, recipe.warmup_start)
    if recipe.schedule == "multistep":
        return multistep(iteration, recipe.milestones)
    return poly(iteration, recipe.iterations, recipe.power, recipe.warmup)


def annealed(base: float, end: float, iteration: int, iterations: int) -> float:
    """Weight decay on a half cosine from `base` to `end`; from 0 it rises, as in mmengine."""
    angle = math.pi * iteration / iterations / 2
    return base * math.cos(angle) ** 2 + end * math.sin(angle) ** 2


def resolve_decay_schedule(recipe: Recipe, method_anneals: bool) -> Recipe:
    """The recipe with a weight decay schedule of "method" replaced by what the method asks for."""
    if recipe.weight_decay_schedule != "method":
        return recipe
    schedule = "cosine" if method_anneals else "constant"
    return recipe.model_copy(update={"weight_decay_schedule": schedule})


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, iteration: int) -> None:
    """Put learning rate and weight decay of `iteration` into every parameter group."""
    share = learning_rate_share(recipe, iteration)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share
        group["weight_decay"] = group["base_decay"]
        if recipe.weight_decay_schedule == "cosine":
            end, length = recipe.weight_decay_end, recipe.iterations
            group["weight_decay"] = annealed(group["base_decay"], end, iteration, length)


class AdamW(torch.optim.AdamW):
    """AdamW in which the decay of a group with a `start` pulls towards that start, not towards 0.

    `start` is a list of tensors like the group's parameters. It is a part of the state dict, so
    that a resumed run decays towards the same values.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; the decay is decoupled and comes before Adam's step in all groups."""
        anchored = [group for group in self.param_groups if "start" in group]
        decays = [group["weight_decay"] for group in anchored]
        for group in anchored:
            pull = group["lr"] * group["weight_decay"]
            for parameter, start in zip(group["params"], group["start"], strict=True):
                # Torch multiplies by 1 - lr x decay; this is the same step with `start` as its
                # fixed point.
                parameter.lerp_(start, pull)
            # Or torch's own decay, towards 0, would come on top.
            group["weight_decay"] = 0.0
        super().step(closure)
        for group, decay in zip(anchored, decays, strict=True):
            group["weight_decay"] = decay

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; the starting values go to their parameters' devices."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if "start" in group:
                pairs = zip(group["start"], group["params"], strict=True)
                # Torch moves a parameter's state, but leaves the tensors of a group where they were
                # loaded.
                group["start"] = [start.to(parameter.device) for start, parameter in pairs]


def make_optimizer(model: nn.Module, recipe: Recipe, rules: Mapping[str, str]) -> AdamW:
    """AdamW over exactly the parameters that require gradients.

    Args:
        model: parameters under `backbone.` learn with `recipe.backbone_lr`, all others with
            `recipe.lr`.
        recipe: rates, betas, eps and weight decay.
        rules: full parameter name -> "to_zero", "none" or "to_init", where a method has its own
            rule. Without one, parameters of norm layers and embeddings do not decay, unless the
            recipe says `decay_query_features` or `decay_level_encoding` as the official configs
            do; all others, biases included, decay towards zero.

    Raises:
        ValueError: a rule is none of those three.
    """
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for name, parameter, owner in _owned_parameters(model):
        if parameter.requires_grad:
            part = "backbone" if name.startswith("backbone.") else "head"
            rule = rules.get(name) or _default_rule(name, owner, recipe)
            groups.setdefault((part, rule), []).append(parameter)
    optimizer = AdamW(
        [_group(part, rule, parameters, recipe) for (part, rule), parameters in groups.items()],
        betas=tuple(recipe.betas),
        eps=recipe.eps,
        # One pass over each tensor. With a loss scale it cannot be combined with clipping.
        fused=recipe.precision != "16-mixed",
    )
    require_holds_trainable(optimizer, model)
    return optimizer


def require_holds_trainable(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """The optimizer must hold each parameter that requires a gradient, once, and no other.

    Raises:
        RuntimeError: it does not.
    """
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if len(held) != len(set(held)):
        raise RuntimeError("a parameter is in two groups of the optimizer")
    if set(held) != trainable:
        raise RuntimeError("the optimizer does not hold exactly the trainable parameters")


def _group(part: str, rule: str, parameters: list[nn.Parameter], recipe: Recipe) -> dict[str, Any]:
    if rule not in {"to_zero", "none", "to_init"}:
        raise ValueError(f"weight decay rule {rule!r}: expected to_zero, none or to_init")
    rate = recipe.backbone_lr if part == "backbone" else recipe.lr
    own = recipe.backbone_weight_decay if part == "backbone" else None
    decay = recipe.weight_decay if own is None else own
    decay = 0.0 if rule == "none" else decay
    # lr and weight_decay are set anew in every iteration; see set_rates.
    group = {"name": f"{part} {rule}", "params": parameters, "base_lr": rate, "base_decay": decay}
    if rule == "to_init":
        group["start"] = [parameter.detach().clone() for parameter in parameters]
    return group


def _owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """(full name, parameter, the module that owns it), shared parameters once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter, module


def _default_rule(name: str, owner: nn.Module, recipe: Recipe) -> str:
    decides = {_QUERIES: recipe.decay_query_features, _LEVELS: recipe.decay_level_encoding}
    decays = decides.get(name, not isinstance(owner, (*_NORMS, nn.Embedding)))
    return "to_zero" if decays else "none"


def make_ema(parameters: list[nn.Parameter], recipe: Recipe) -> "EMA | None":
    """The moving average that a recipe asks for."""
    ema = recipe.ema
    return EMA(parameters, ema.momentum, ema.start) if ema else None


class EMA:
    """Moving average of parameters, as mmengine's EMAHook does it (buffers are not averaged).

    After each update the average moves by `momentum` of the way towards the new weights. Up to and
    including iteration `start`, and in the first one, it is a copy of the weights.
    """

    def __init__(self, parameters: list[nn.Parameter], momentum: float, start: int) -> None:
        """Start from the parameters as they are now."""
        self.parameters, self.momentum, self.start = parameters, momentum, start
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take in the weights after `done` iterations (1 after the first)."""
        momentum = 1.0 if done <= max(1, self.start) else self.momentum
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, momentum)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model holds the averaged weights inside, its own again afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def load(self, values: list[torch.Tensor]) -> None:
        """Go on from the `values` of an earlier average, of the same shapes."""
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged weights and those of the model."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            # Values move, tensors stay: the optimizer and DDP hold these very parameters.
            held = parameter.clone()
            parameter.copy_(value)
            value.copy_(held)
