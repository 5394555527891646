"""A protocol: everything that is held fixed while methods vary, and the parts it is made of.

Knows no task: what segmentation and detection add stands in their `settings`, and
`benchmarks.tasks.load_protocol` reads the YAML file of either.
"""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from benchmarks import yaml_files
from benchmarks.errors import UserError, closest
from benchmarks.yaml_files import Strict, added_field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Part of the paths of records: no way into other folders, and short enough for every file system.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=60)]
# Weights of a backbone that are no file of the user.
RANDOM, HUB = "random", "hub"


def _rises(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)}: the lower end comes first")
    return pair


Range = Annotated[tuple[Positive, Positive], AfterValidator(_rises)]


def _in_order(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if not blocks:
        raise ValueError("[]: list at least one block")
    # A backbone returns its blocks in their own order, each once, whatever order is asked for.
    if any(block >= following for block, following in itertools.pairwise(blocks)):
        raise ValueError(f"{list(blocks)}: list the blocks in rising order, each once")
    return blocks


def _is_start(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(
            f"{value} is neither a block index (0, 1, ...) nor a share in 0..1; write either"
        )
    return value


# First adapted block: an index, or a share of the depth.
Placement = Annotated[int | float, AfterValidator(_is_start)]


class Backbone(Strict):
    """The pretrained vision transformer.

    Attributes:
        name: timm model name.
        args: keyword arguments of `timm.create_model`.
        weights: file, relative to `benchmarks/` or absolute; "hub": the one that timm names for the
            model; or "random".
        sha256: of that file. That of the hub's may be left out: what was found goes into every
            record.
        features: block indices, counted from 0, whose outputs the head reads, fine to coarse.
        resize: how weights released in another layout of names, patch or image size become those of
            the model: "converter" as Rein and SoMA do, "timm" as timm does (see
            `backbones.fitted`). Without, the file has timm's names and the model's sizes.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    features: Annotated[tuple[Index, ...], AfterValidator(_in_order)]
    resize: Literal["converter", "timm"] | None = added_field(None)

    @model_validator(mode="after")
    def _hash_is_stated(self) -> "Backbone":
        if self.weights not in (RANDOM, HUB) and self.sha256 is None:
            raise ValueError("sha256 is required with weights; without, no run is reproducible")
        return self


class Domain(Strict):
    """One split of one data set.

    Attributes:
        domain: name in records and tables.
        card: name of a card in `datasets/`.
        split: a split of the card.
        size: test size (height, width) in pixels; null keeps the file's own.
        keep_ratio: whether the image is scaled to fit into `size` instead of being stretched to it.
        turn: whether an image that is higher than wide is fitted into the turned size instead.
        pad: (height, width) to which the resized and normalised image is filled up with 0, at the
            bottom and on the right. No part of it is scored. Detection alone has it.
        holdout: number of pairs, last in name order, that are never trained on: a source leaves
            them out, a validation domain is exactly them.
        limit: at most so many pairs, first in name order; null is all.
        exclude: names of images that are left out before that, with ground truth or without, such
            as files known to be corrupted.
        halve: images (bicubic) and ground truth (nearest) are halved when read, sides rounded down.
            "jpeg" also sends the image through JPEG at Pillow's default quality, as the files that
            Rein and SoMA score Mapillary on were made. Null reads files as they are.
    """

    domain: Name
    card: str
    split: str
    size: tuple[Count, Count] | None = None
    keep_ratio: bool = True
    turn: bool = added_field(False)
    pad: tuple[Count, Count] | None = added_field(None)
    holdout: Index = 0
    limit: Count | None = None
    exclude: tuple[str, ...] = added_field(())
    halve: Literal["pixels", "jpeg"] | None = added_field(None)

    @model_validator(mode="after")
    def _fits_into_padding(self) -> "Domain":
        if self.pad is None:
            return self
        if self.size is None:
            raise ValueError("pad needs a size, which every image is resized to before")
        sides = (max(self.size),) * 2 if self.turn else self.size
        if any(side > room for side, room in zip(sides, self.pad, strict=True)):
            raise ValueError(f"pad {list(self.pad)} has no room for images of {list(sides)}")
        return self


class Input(Strict):
    """Per-channel (R, G, B) mean and standard deviation of images scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class EMASettings(Strict):
    """Moving average of the weights.

    `momentum` is the share of the new ones, from iteration `start`.
    """

    momentum: Annotated[float, Field(gt=0, le=1)]
    start: Index


class Recipe(Strict):
    """How a model is trained.

    Attributes:
        iterations: optimizer steps.
        batch: images per step.
        lr: peak rate of the head.
        backbone_lr: peak rate of the backbone, absolute.
        weight_decay: falls to weight_decay_end over the run when its schedule is "cosine", or when
            it is "method" and the method asks for it.
        backbone_weight_decay: that of the backbone, where it is another.
        decay_query_features: whether the learnt features of Mask2Former's queries decay.
        decay_level_encoding: whether what its pixel decoder adds to tell its levels apart decays.
            Norms and other embeddings, those of the queries' positions too, never do.
        power: of the poly schedule.
        milestones: iterations from 0 at which the multistep schedule divides the rate by 10.
        warmup: iterations of a linear rise from the share `warmup_start` of the rate.
        clip: largest gradient norm, or null.
        precision: Lightning's name of it.
        checkpoint_every: iterations.
        evaluate_at: iterations; the last one is always evaluated.
        threads: torch threads of one process.
        loader_workers: data loading processes.
        accumulate: micro-batches that each process makes of its share of a batch.
        activation_checkpointing: blocks of the backbone are computed again in the backward pass
            instead of being kept.
    """

    iterations: Count
    batch: Count
    optimizer: Literal["adamw"] = "adamw"
    lr: Positive
    backbone_lr: Positive
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative
    weight_decay_schedule: Literal["constant", "cosine", "method"] = "constant"
    weight_decay_end: NotNegative = 1e-5
    backbone_weight_decay: NotNegative | None = added_field(None)
    decay_query_features: bool = added_field(False)
    decay_level_encoding: bool = added_field(False)
    schedule: Literal["poly", "multistep"] = "poly"
    power: NotNegative = 0.9
    milestones: tuple[Count, ...] = ()
    warmup: Index = 0
    warmup_start: Positive = 1e-6
    ema: EMASettings | None = None
    clip: Positive | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every: Count = 100
    evaluate_at: tuple[Count, ...] = ()
    threads: Count = 1
    loader_workers: Index = 0
    accumulate: Count = added_field(1)
    activation_checkpointing: bool = added_field(False)

    @model_validator(mode="after")
    def _schedule_is_complete(self) -> "Recipe":
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones belong to schedule multistep, and it needs them")
        return self


RecipeChanges = create_model(
    "RecipeChanges",
    __base__=Strict,
    __doc__="Some fields of a `Recipe`, to be put over another one.",
    **{name: (field.rebuild_annotation(), None) for name, field in Recipe.model_fields.items()},
)


class MethodChanges(Strict):
    """What a protocol sets for one method.

    Fields of the method, fields of the recipe, and on what ground.
    """

    fields: dict[str, Any] = Field(default_factory=dict)
    recipe: RecipeChanges = RecipeChanges()
    source: str = ""


class Mode(Strict):
    """A recipe mode: changes for every method, then changes per method.

    Or `trials`, a summary that `tune` wrote (relative to the repository, or absolute): every method
    then gets what was chosen of its trials, and no other change.
    """

    recipe: RecipeChanges = RecipeChanges()
    methods: dict[str, MethodChanges] = Field(default_factory=dict)
    trials: str | None = added_field(None)

    @model_validator(mode="after")
    def _trials_decide(self) -> "Mode":
        if self.trials is not None and (self.recipe.model_fields_set or self.methods):
            raise ValueError("trials decide the recipe of this mode; give no recipe or methods")
        return self


FOLDER = Path(__file__).parent / "protocols"
# Placements that every protocol knows besides its own, and what they set in a method.
OTHER_PLACEMENTS: dict[str, dict[str, int | float]] = {
    "last-third": {"start_block": 2 / 3},
    "first-two-thirds": {"start_block": 0, "end_block": 2 / 3},
}
# A difference below this counts as none. Nobody should choose a method by less: the test resolution
# alone moves published numbers by twice as much (PITFALLS.md).
MARGIN = 1.0
TRIALS = "results/trials"  # of each protocol, relative to the repository
EQUAL_BUDGET = "equal-budget"


class Protocol(Strict):
    """What every written protocol has; `benchmarks/protocols/*.yaml` show every field in use.

    Attributes:
        version: raised with every edit that can change a number.
        profile: the family a table picks it by.
        note: words printed under every table made from it.
        data_root: default folder of the data, relative to the repository; null where the user has
            to say it.
        source: training sets, concatenated.
        validation: held-out source.
        targets: unseen domains.
        extra: targets again, under other names and at other sizes; no average holds them.
        recipes: mode -> changes; `modes` adds one.
        methods: name -> what this protocol sets for it.
        placements: name -> first adapted block of every method (an index, or a share of the depth
            in 0..1), unless a recipe mode gives a method its own `start_block`.
        selection: which evaluated iteration counts.
        seeds: of a full table.
        starts_from: protocol whose model, of the same row and seed, this one goes on from.
        metric: the one of its task that choices are made by.
        ground_truth: what the cards of its data sets have to describe.
        roles: role of a scored domain in the records -> field that lists such domains, in the order
            of evaluation.
    """

    metric: ClassVar[str]
    ground_truth: ClassVar[Literal["label", "boxes"]]
    roles: ClassVar[dict[str, str]] = {
        "validation": "validation",
        "target": "targets",
        "extra": "extra",
    }

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=60)]
    version: Count
    profile: str
    task: str
    title: str
    note: str = ""
    data_root: str | None = None
    backbone: Backbone
    source: Annotated[tuple[Domain, ...], Field(min_length=1)]
    validation: tuple[Domain, ...] = ()
    targets: tuple[Domain, ...]
    extra: tuple[Domain, ...] = added_field(())
    input: Input
    recipe: Recipe
    recipes: dict[Name, Mode] = Field(default_factory=lambda: {"controlled": Mode()})
    methods: dict[str, MethodChanges] = Field(default_factory=dict)
    placements: dict[Name, Placement]
    default_placement: str
    selection: Literal["last", "source-val"] = "last"
    starts_from: Name | None = added_field(None)
    seeds: Annotated[tuple[Index, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_agree(self) -> "Protocol":
        if self.default_placement not in self.placements:
            known = closest(self.default_placement, self.placements)
            raise ValueError(
                f"default_placement {self.default_placement!r} is not a placement{known}"
            )
        scored = [domain.domain for domain in self.scored_domains]
        if not scored:
            raise ValueError("no domain is scored; give targets or a validation domain")
        for name in scored:
            if scored.count(name) > 1:
                raise ValueError(f"domain {name!r} is scored twice; give each its own name")
        if self.selection == "source-val" and not self.validation:
            raise ValueError("selection source-val needs a validation domain")
        return self

    @model_validator(mode="after")
    def _splits_exclude_alike(self) -> "Protocol":
        excluded: dict[tuple[str, str], tuple[str, ...]] = {}
        for domain in (*self.source, *self.scored_domains):
            key = domain.card, domain.split
            if set(excluded.setdefault(key, domain.exclude)) != set(domain.exclude):
                raise ValueError(
                    f"domain {domain.domain!r}: exclude differs from that of another domain of "
                    "the same split, so that what is held out from one is not the other; give both "
                    "the same"
                )
        return self

    def excluding(self, domain: str, names: tuple[str, ...]) -> "Protocol":
        """This protocol without some images, in every domain that reads the same split.

        Raises:
            UserError: it has no such domain.
        """
        domains = {domain.domain: domain for domain in (*self.source, *self.scored_domains)}
        if domain not in domains:
            raise UserError(f"{self.name}: no domain {domain!r}{closest(domain, domains)}")
        asked = domains[domain]
        groups = {
            field: tuple(
                other.model_copy(update={"exclude": names})
                if (other.card, other.split) == (asked.card, asked.split)
                else other
                for other in getattr(self, field)
            )
            for field in ("source", *self.roles.values())
        }
        return self.model_copy(update=groups)

    @property
    def scored(self) -> dict[str, tuple[Domain, ...]]:
        """Role in the records -> domains that are scored in it, in order."""
        return {role: getattr(self, field) for role, field in self.roles.items()}

    @property
    def scored_domains(self) -> list[Domain]:
        """Every domain that is evaluated, in order: held-out source first."""
        return [domain for group in self.scored.values() for domain in group]

    def role(self, domain: Domain) -> str:
        """What a scored domain is in the records."""
        return next(role for role, group in self.scored.items() if domain in group)

    @property
    def modes(self) -> dict[str, Mode]:
        """Recipe modes: the written ones, and an equal budget from what `tune` found."""
        return {EQUAL_BUDGET: Mode(trials=f"{TRIALS}/{self.name}.csv")} | self.recipes

    @property
    def engine_here(self) -> str | None:
        """The library that the head is built from on this machine, where there is a choice."""
        return None

    @property
    def engine_reason(self) -> str:
        """One line on which library the head is built from and why; "" without a choice."""
        return ""

    def placement(self, name: str) -> dict[str, int | float]:
        """What a placement sets in every method: one of the protocol's, or one that all know.

        Raises:
            UserError: no such placement.
        """
        if name in self.placements:
            return {"start_block": self.placements[name]}
        if name not in OTHER_PLACEMENTS:
            known = closest(name, [*self.placements, *OTHER_PLACEMENTS])
            raise UserError(f"{self.name}: no placement {name!r}{known}")
        return OTHER_PLACEMENTS[name]

    def changes_for(self, method: str, mode: str) -> MethodChanges:
        """What this protocol sets for a method in a recipe mode, fields and recipe.

        Raises:
            UserError: the protocol does not define that mode.
        """
        if mode not in self.modes:
            raise UserError(f"{self.name}: no recipe mode {mode!r}{closest(mode, self.modes)}")
        every, own = self.modes[mode], MethodChanges()
        recipe: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        mine = every.methods.get(method, own)
        for part in (self.methods.get(method, own), every, mine):
            recipe |= part.recipe.model_dump(exclude_unset=True)
            fields |= part.fields if isinstance(part, MethodChanges) else {}
        changes = RecipeChanges(**recipe)
        return MethodChanges(fields=fields, recipe=changes, source=mine.source)

    def recipe_for(self, method: str, mode: str, changes: dict[str, Any] | None = None) -> Recipe:
        """The recipe of one cell: protocol <- method <- mode <- `changes` (of the command line).

        Raises:
            UserError: unknown mode, or a change that is not a valid recipe field or value.
        """
        own = self.changes_for(method, mode).recipe.model_dump(mode="json", exclude_unset=True)
        given = self.recipe.model_dump(mode="json") | own | (changes or {})
        return yaml_files.validate(Recipe, given, f"{self.name}: recipe of {method}")


def scored_in(cell: Mapping[str, Any], task: str, roles: Iterable[str], where: str) -> list[Domain]:
    """The domains that a cell of `task` in a record says were scored.

    Args:
        cell: as the record has it.
        task: the wanted one.
        roles: keys of a protocol that name scored domains.
        where: the record, for messages.

    Raises:
        UserError: a cell of another task, or one that lacks them.
    """
    try:
        protocol = cell["protocol"]
        written, specs = protocol["task"], [spec for key in roles for spec in protocol.get(key, ())]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: its cell does not say what was scored ({error!r}); restore the file or run "
            "the cell again"
        ) from None
    if written != task:
        raise UserError(f"{where}: a record of {written}, not of {task}")
    return [yaml_files.validate(Domain, spec, where) for spec in specs]
