"""What a method of adaptation is, and how it is applied to a backbone."""

import inspect
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from torch import nn

from soma.backbone import (
    SIX_TARGETS,
    NotApplicable,
    block_index,
    blocks_of,
    comes_before,
    depth,
    fingerprint,
    head_names,
    plain_linears,
    provides,
)

__all__ = ["Adaptation", "Method", "NotApplicable", "NotFoldable", "Targeted", "adapt"]


class NotFoldable(Exception):
    """The adapted backbone has no plain form; the message says why."""


def added_field(default: Any) -> Any:
    """A field of a method that came after records and adapters were kept.

    Its default has to mean what was done before. Descriptions leave it out while it has that value;
    older records and adapters then stay those of the same method.
    """
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` notes in the backbone's attribute `adaptation`; copies and pickles carry it.

    Attributes:
        method: class and fields, as JSON.
        weights: fingerprint of the pretrained weights, the classifier's left out.
    """

    method: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to adapt a pretrained ViT. The fields are its hyper-parameters.

    A method overrides what differs: `trains` alone for full, freeze or bias tuning, `attach` and
    `fold` where modules are added. It never asks for protocol, domain or task.

    Attributes:
        source: paper, code and commit that the definition was read from.
        needs: what the backbone must provide (see `soma.backbone.provides`).
        exact_start: the output equals the pretrained one before training.
        exact_gradient: what learns gets the gradient of the output; a method that leaves a part of
            it out by its definition (DoRA, that of its norm) says that it does not.
        annealed_decay: the method's own recipe lets weight decay fall on a cosine.
        start_block: first adapted block; a float in (0, 1) is a share of the depth. Everything
            before it stays frozen, the embeddings too where it is not 0.

    Raises:
        ValueError: a `start_block` that is no index and no share.
    """

    source: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    exact_start: ClassVar[bool] = True
    exact_gradient: ClassVar[bool] = True
    annealed_decay: ClassVar[bool] = False

    start_block: int | float = 0

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse a class whose fields would be ignored (TypeError)."""
        require_own_fields(cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        start = self.start_block
        is_share = isinstance(start, float) and 0 <= start < 1
        is_index = isinstance(start, int) and not isinstance(start, bool) and start >= 0
        if not (is_share or is_index):
            raise ValueError(f"start_block {start!r}: expected a block index or a share in (0, 1)")

    def first_block(self, vit: nn.Module) -> int:
        """Index of the first adapted block, rounded where `start_block` is a share of the depth.

        Raises:
            ValueError: the backbone has no such block.
        """
        blocks, start = depth(vit), self.start_block
        index = _index(start, blocks)
        if index >= blocks:
            raise ValueError(
                f"start_block {start!r}: the backbone has {blocks} blocks; take one of "
                f"0..{blocks - 1}"
            )
        return index

    def past_block(self, vit: nn.Module) -> int:
        """Index of the first block after the adapted ones; the depth where a method has no end."""
        return depth(vit)

    def placed(self, vit: nn.Module) -> Self:
        """The same method with `start_block` as an index for this backbone."""
        return replace(self, start_block=self.first_block(vit))

    def attach(self, vit: nn.Module) -> None:
        """Add modules or hooks in place. Names of pretrained parameters must not change."""

    def attach_empty(self, vit: nn.Module) -> None:
        """Add the same modules without initialising them: their values come from a file."""
        self.attach(vit)

    def trains(self, name: str) -> bool:
        """Whether the pretrained parameter `name` learns."""
        return False

    def fold(self, vit: nn.Module) -> None:
        """Turn the adapted backbone back into a plain one with the keys it had, in place.

        A method that overrides it calls it at the end: the backbone can be adapted again then.

        Raises:
            NotFoldable: there is no plain form.
        """
        if type(self).fold is Method.fold and type(self).attach is not Method.attach:
            raise NotFoldable(f"{type(self).__name__} adds modules and defines no fold")
        vit.__dict__.pop("adaptation", None)

    def described(self, vit: nn.Module) -> str:
        """Class and fields as JSON, `start_block` as an index for this backbone."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        described = self.placed(vit).described_fields()
        return json.dumps({"class": kind, **described}, sort_keys=True, default=repr)

    def described_fields(self) -> dict[str, Any]:
        """Name -> value of the fields; those added later only where they are not the default."""
        return {
            field.name: value
            for field, value in zip(fields(self), asdict(self).values(), strict=True)
            if not (field.metadata.get("added") and value == field.default)
        }

    def decay(self, name: str) -> str:
        """Where weight decay pulls the parameter: "to_zero", "none" or "to_init".

        Asked of new parameters, and of pretrained ones that learn where a method overrides this.
        """
        return "to_zero"


def _index(share: int | float, blocks: int) -> int:
    """A block by its index, or by a share of the depth, rounded."""
    # Not `round`, which takes a half to the even number.
    return int(share * blocks + 0.5) if isinstance(share, float) else share


def require_own_fields(kind: type[Method]) -> None:
    """Python ignores the fields of a class that is no dataclass, and defaults without a type.

    Raises:
        TypeError: the class, or one that it derives from, has such fields.
    """
    for base in kind.__mro__:
        if not issubclass(base, Method):
            continue
        if "__dataclass_fields__" not in vars(base):
            raise TypeError(
                f"{base.__name__} is no dataclass, so that its own fields would be ignored: write "
                "@dataclass(frozen=True, kw_only=True) above the class"
            )
        names = {field.name for field in fields(base)} & vars(base).keys()
        if ignored := sorted(names - inspect.get_annotations(base).keys()):
            raise TypeError(
                f"{base.__name__}.{ignored[0]} is a field without a type, so that its value would "
                f"be ignored: write {ignored[0]}: <type> = ..."
            )


@dataclass(frozen=True, kw_only=True)
class Targeted(Method):
    """A method that replaces linears of chosen roles.

    Attributes:
        targets: roles of the adapted linears: q, k, v, proj, fc1, fc2.
        end_block: first block after the adapted ones, as `start_block` is given; None for none.

    Raises:
        ValueError: an `end_block` that is no index and no share, or targets without a role.
    """

    targets: tuple[str, ...] = SIX_TARGETS
    end_block: int | float | None = added_field(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        end = self.end_block
        is_share = isinstance(end, float) and 0 < end <= 1
        is_index = isinstance(end, int) and not isinstance(end, bool) and end > 0
        if not (end is None or is_share or is_index):
            raise ValueError(f"end_block {end!r}: expected a block index or a share in (0, 1]")
        # YAML gives a list, and a frozen method has to be hashable.
        object.__setattr__(self, "targets", tuple(self.targets))
        if unknown := set(self.targets) - set(SIX_TARGETS):
            raise ValueError(f"targets: no role {sorted(unknown)}, only {', '.join(SIX_TARGETS)}")
        if not self.targets:
            raise ValueError("targets: at least one role is needed")

    def past_block(self, vit: nn.Module) -> int:
        """Index of the first block after the adapted ones.

        Raises:
            ValueError: it lies beyond the depth, or leaves no block from `start_block` on.
        """
        blocks, end = depth(vit), self.end_block
        past = blocks if end is None else _index(end, blocks)
        if not self.first_block(vit) < past <= blocks:
            raise ValueError(
                f"end_block {end!r} after start_block {self.start_block!r}: the backbone has "
                f"{blocks} blocks, and one at least is adapted"
            )
        return past

    def placed(self, vit: nn.Module) -> Self:
        """The same method with `start_block` and `end_block` as indices for this backbone."""
        past = self.past_block(vit)
        return replace(super().placed(vit), end_block=None if self.end_block is None else past)

    def target_linears(self, vit: nn.Module) -> dict[str, nn.Linear]:
        """Name -> linear that the method replaces, from `start_block` on and before `end_block`.

        Raises:
            NotApplicable: a target role is absent (q, k and v are while `qkv` is fused), or no
                plain linear.
            ValueError: the backbone has no such blocks.
        """
        return plain_linears(vit, range(self.first_block(vit), self.past_block(vit)), self.targets)


def adapt(method: Method, vit: nn.Module, *, empty: bool = False) -> Method:
    """Attach the method and decide what learns; call it after the pretrained weights are in.

    New parameters learn. Pretrained ones learn where the method says so, from `start_block` on. A
    classifier stays as it is.
    Random draws come from torch's global generator: seed it before. `empty` leaves out the
    initialisation, for values that come from a file.

    Returns:
        The method with `start_block` as an index for this backbone.

    Raises:
        NotApplicable: the backbone lacks what the method needs; it is unchanged then.
        ValueError: a field does not fit this backbone, or the backbone is adapted already.
    """
    return adapt_as_noted(method, vit, adaptation_of(method, vit), empty=empty)


def adaptation_of(method: Method, vit: nn.Module) -> Adaptation:
    """What `adapt` notes: the method as placed, and the weights as they are now.

    Raises:
        NotApplicable: the backbone lacks what the method needs.
        ValueError: a field does not fit this backbone, or the backbone is adapted already.
    """
    if earlier := getattr(vit, "adaptation", None):
        kind = json.loads(earlier.method)["class"]
        raise ValueError(f"the backbone is adapted already, by {kind}; start from a fresh one")
    # Before `needs`: no method applies to what is no ViT, and this says so.
    blocks_of(vit)
    if missing := method.needs - provides(vit):
        raise NotApplicable(f"{type(vit).__name__} does not provide {', '.join(sorted(missing))}")
    head = head_names(vit)
    # Without the classifier: with another number of classes it is the same backbone.
    weights = {name: value for name, value in vit.state_dict().items() if name not in head}
    return Adaptation(method.described(vit), fingerprint(weights))


def adapt_as_noted(method: Method, vit: nn.Module, note: Adaptation, *, empty: bool) -> Method:
    """As `adapt`, with what `adaptation_of` gave for the same method and backbone."""
    placed = method.placed(vit)
    start, past = placed.first_block(vit), placed.past_block(vit)
    head, pretrained = head_names(vit), {name for name, _ in vit.named_parameters()}
    # After the names were read: what is new from here on learns.
    (placed.attach_empty if empty else placed.attach)(vit)
    vit.adaptation = note
    for name, parameter in vit.named_parameters():
        if name not in head:
            index = block_index(name)
            outside = comes_before(vit, name, start) or (index is not None and index >= past)
            learns = placed.trains(name) and not outside
            parameter.requires_grad_(learns or name not in pretrained)
    return placed
