"""A method on a small random backbone, and how it is trained and measured for the checks."""

import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from soma import Method, NotApplicable, adapt, split_qkv

WIDTH, DEPTH = 32, 3
_SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "num_heads": 2, "num_classes": 0}
# Images of any size, as the benchmark builds its backbones. (SAM takes them by itself.)
_ANY = {"dynamic_img_size": True}
_VIT, _EVA, _GRID = "vit_tiny_patch16_224", "eva02_large_patch14_224", "samvit_base_patch16"
_REGISTERS = _ANY | {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True}
# The norm of EVA stands before its pooling, so that it takes part in the features.
_NORM = _ANY | {"use_post_transformer_norm": True, "use_fc_norm": False}
_WINDOWS = {"window_size": 2, "global_attn_indexes": (1,), "neck_chans": WIDTH}
_MODELS = {
    # the layout of the mini backbone
    "class token": (_VIT, _ANY),
    # DINOv2 with registers
    "registers and layer scale": (_VIT, _REGISTERS),
    # EVA02-L: q, k, v apart by nature and no bias of the keys; a norm inside the gated MLP
    "rotary and SwiGLU": (_EVA, {"mlp_ratio": 3, **_NORM}),
    # SAM, ViTDet: blocks see B x height x width x channels, there is no token before the patches
    "grid in windows": (_GRID, _WINDOWS),
}
KINDS = tuple(_MODELS)

RATE, STEPS = 1e-2, 4  # of Adam, for the checks that want a trained adapter

BLIND = 1e-3  # what else may move where all keys are shifted by one: rounding


def build_vit(
    kind: str, *, split: bool = True, depth: int = DEPTH, biases: bool = True
) -> nn.Module:
    """A random backbone in eval mode, the same on every call; no tensor of it is constant.

    Seeds torch's global generator. Width 32, 2 heads, 16 patches of 8 x 8 pixels.

    Args:
        kind: one of `KINDS`.
        split: q, k and v as linears of their own; else fused where the model fuses them.
        depth: number of blocks, at least 2.
        biases: those of the linears in the blocks are there, as the model has them; else none is.
    """
    name, options = _MODELS[kind]
    torch.manual_seed(7)
    vit = timm.create_model(name, pretrained=False, **_SIZE, **options, depth=depth)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if split:
        split_qkv(vit)
    for module in [] if biases else vit.blocks.modules():
        if isinstance(module, nn.Linear):
            module.bias = None
    return vit.eval()


def draw_images(height: int = 32, width: int = 32) -> Tensor:
    """Three images of noise, (3, 3, height, width), the same on every call."""
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(5))


class Broken(Exception):
    """A property does not hold; the message says what was measured."""


class NothingToCheck(Exception):
    """A property says nothing about this method; the message says why."""


@dataclass(frozen=True)
class Trace:
    """A backbone after two steps, with its gradients, and its tensors before and after them."""

    vit: nn.Module
    before: dict[str, Tensor]
    after: dict[str, Tensor]


class MethodUnderTest:
    """A method on one kind of backbone. Every call starts again from the same pretrained weights.

    Attributes:
        method: as given, its `start_block` a share or an index.
        images: the batch that everything is measured on, (3, 3, 32, 32).
    """

    def __init__(self, method: Method, kind: str, plain: nn.Module | None = None) -> None:
        self.method, self.kind = method, kind
        self.images = draw_images()
        self._plain = build_vit(kind) if plain is None else plain

    def with_fields(self, **changes: Any) -> "MethodUnderTest":
        """The same with other values of some fields."""
        return MethodUnderTest(replace(self.method, **changes), self.kind, self._plain)

    def with_other_numbers(self) -> "MethodUnderTest":
        """The same with another value of each number among the fields, no two of them equal.

        Equal ones hide a mistake: without its scale alpha / rank, an update is right where both are
        16. A number stays where the method takes no other.

        Raises:
            NothingToCheck: no number can be another.
        """
        others: dict[str, Any] = {}
        for place, field in enumerate(fields(self.method), start=1):
            value = getattr(self.method, field.name)
            if field.init and field.name != "start_block" and type(value) in (int, float):
                others[field.name] = value + place if type(value) is int else value * 1.37
        changes = others if self._takes(others) else {}
        for name in [name for name in others if name not in changes]:
            if self._takes(changes | {name: others[name]}):
                changes |= {name: others[name]}
        if not changes:
            raise NothingToCheck("no field is a number that can be another")
        return self.with_fields(**changes)

    def _takes(self, changes: dict[str, Any]) -> bool:
        try:
            self.with_fields(**changes).adapted()
        except (ValueError, NotApplicable):
            return False
        return True

    def without_dropout(self) -> "MethodUnderTest":
        """The same with zero in each field whose name says that it drops something."""
        names = [field.name for field in fields(self.method) if field.init]
        return self.with_fields(**{name: 0.0 for name in names if "drop" in name})

    def without_biases(self) -> "MethodUnderTest":
        """The same on a backbone whose linears have none."""
        return MethodUnderTest(self.method, self.kind, build_vit(self.kind, biases=False))

    def plain(self) -> nn.Module:
        """The pretrained backbone, q, k and v apart, in eval mode."""
        return copy.deepcopy(self._plain)

    @cached_property
    def start(self) -> Tensor:
        """Features of the pretrained backbone, (B, tokens, width)."""
        return self.features(self._plain)

    def adapted(self, vit: nn.Module | None = None, seed: int = 11) -> tuple[Method, nn.Module]:
        """The method as placed, and the backbone (a fresh one, unless given) that it is on."""
        vit = self.plain() if vit is None else vit
        torch.manual_seed(seed)
        return adapt(self.method, vit), vit

    def trained(self) -> tuple[Method, nn.Module]:
        """As `adapted`, after `STEPS` steps and back in eval mode."""
        placed, vit = self.adapted()
        self.train(vit, STEPS)
        return placed, vit.eval()

    @cached_property
    def untrained(self) -> tuple[Method, nn.Module]:
        """One of `adapted`, for properties that leave it as it is."""
        return self.adapted()

    @cached_property
    def example(self) -> tuple[Method, nn.Module]:
        """One of `trained`, for properties that leave it as it is."""
        return self.trained()

    def train(self, vit: nn.Module, steps: int) -> None:
        """Steps of Adam on the loss; the gradients of the last one stay."""
        learning = learners(vit)
        vit.train()
        torch.manual_seed(13)  # of dropout
        optimizer = torch.optim.Adam(learning.values(), lr=RATE) if learning else None
        for _ in range(steps if optimizer else 0):
            optimizer.zero_grad()
            self.loss(vit.forward_features(self.images)).backward()
            optimizer.step()

    @cached_property
    def trace(self) -> "Trace":
        """What two steps do."""
        _, vit = self.adapted()
        before = snapshot(vit)
        self.train(vit, 2)
        return Trace(vit, before, snapshot(vit))

    @torch.no_grad()
    def features(self, vit: nn.Module, images: Tensor | None = None) -> Tensor:
        """What the backbone returns for images (B, 3, H, W): (B, tokens, width), no gradient."""
        return vit.forward_features(self.images if images is None else images)

    def maps(self, vit: nn.Module, images: Tensor | None = None) -> Tensor:
        """What a task reads: the map (B, width, h, w) that leaves the last block, not normalised.

        Detection reads this one alone, segmentation those of three more blocks.
        """
        images, last = self.images if images is None else images, len(vit.blocks) - 1
        options = {"norm": False, "stop_early": True, "intermediates_only": True}
        return vit.forward_intermediates(images, indices=[last], **options)[0]

    def loss(self, features: Tensor) -> Tensor:
        """A fixed random linear read-out, a scalar, of features or maps of any shape."""
        readout = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
        exact = features if features.dtype == torch.float64 else features.float()
        return (exact * readout).sum()


class Attention(TorchFunctionMode):
    """Keeps queries, keys and values of each attention that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        if func is functional.scaled_dot_product_attention:
            self.seen.append(args[:3])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def is_blind(vit: nn.Module, parameter: nn.Parameter, images: Tensor) -> bool:
    """Whether the attention is blind to the parameter: it shifts all keys alike, and nothing else.

    Images are (B, 3, H, W). The softmax subtracts what it finds in all keys, so that a bias of the
    keys gets no gradient (unless a rotation comes after it). Measured: the parameter is moved, and
    put back.
    """
    before, after, value = Attention(), Attention(), parameter.clone()
    torch.manual_seed(19)
    try:
        with before:
            vit.forward_features(images)
        parameter.add_(torch.randn_like(parameter))
        with after:
            vit.forward_features(images)
    finally:
        parameter.copy_(value)
    shift, rest = 0.0, 0.0
    for one, other in zip(before.seen, after.seen, strict=True):
        query, key, worth = (b - a for a, b in zip(one, other, strict=True))
        common = key.mean(-2, keepdim=True)  # over the tokens
        shift = max(shift, common.abs().max().item())
        rest = max(rest, *(part.abs().max().item() for part in (query, key - common, worth)))
    return rest < BLIND * shift


def learners(vit: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what requires a gradient, shared ones once."""
    return {name: p for name, p in vit.named_parameters() if p.requires_grad}


def require_learners(vit: nn.Module) -> dict[str, nn.Parameter]:
    """As `learners`.

    Raises:
        NothingToCheck: nothing learns.
    """
    if not (learning := learners(vit)):
        raise NothingToCheck("nothing learns")
    return learning


@torch.no_grad()
def nudge(vit: nn.Module, size: float = 0.1) -> None:
    """Move what learns, or everything where nothing does, by noise of this standard deviation."""
    torch.manual_seed(17)
    for parameter in (learners(vit) or dict(vit.named_parameters())).values():
        parameter.add_(size * torch.randn_like(parameter))


def snapshot(vit: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, under every name that they have."""
    named = [*vit.named_parameters(remove_duplicate=False), *vit.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names that came, went or hold other values."""
    same = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    return sorted((before.keys() | after.keys()) - same)


def distance(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors of any shape; of unequal ones, infinite."""
    if one.shape != other.shape:
        return float("inf")
    return (one.float() - other.float()).abs().max().item()


def require_close(what: str, one: Tensor, other: Tensor, limit: float) -> str:
    """`what` with the largest difference of two tensors of any shape, in words.

    Raises:
        Broken: it is above `limit`, or not a number.
    """
    apart = distance(one, other)
    if not apart <= limit:
        raise Broken(f"{what} differs by {apart:.1e}, above {limit:.0e}")
    return f"{what} differs by {apart:.1e} (at most {limit:.0e})"


def some(names: list[str], shown: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
