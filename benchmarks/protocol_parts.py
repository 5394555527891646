"""The parts of a protocol, each with its units: backbone, head, domains, window, recipe."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from benchmarks.yaml_files import Strict, later

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
RANDOM, HUB = "random", "hub"  # weights of a backbone that are no file of the user


def _rises(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)}: the lower end comes first")
    return pair


Range = Annotated[tuple[Positive, Positive], AfterValidator(_rises)]


def _is_start(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"{value} is neither a block index (0, 1, ...) nor a share in 0..1")
    return value


# First adapted block: an index, or a share of the depth.
Placement = Annotated[int | float, AfterValidator(_is_start)]


class Backbone(Strict):
    """The pretrained vision transformer.

    Attributes:
        name: timm model name. args: keyword arguments of `timm.create_model`.
        weights: file, relative to `benchmarks/` or absolute; "hub": the one that timm names for
            the model; or "random". sha256: of that file. That of the hub's may be left out: what
            was found goes into every record.
        features: block indices, counted from 0, whose outputs the head reads, fine to coarse.
        resize: how weights released in another layout of names, patch or image size become those
            of the model: "converter" as Rein and SoMA do, "timm" as timm does (see
            `weights.fitted`). Without, the file has timm's names and the model's sizes.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    features: tuple[Index, ...]
    resize: Literal["converter", "timm"] | None = later(None)

    @model_validator(mode="after")
    def _hash_is_stated(self) -> "Backbone":
        if self.weights not in (RANDOM, HUB) and self.sha256 is None:
            raise ValueError("sha256 is required with weights; without, no run is reproducible")
        return self


class Head(Strict):
    """Sizes (channels, counts) and loss weights of Mask2Former.

    `points` are sampled per mask in the loss. `scales` resize the four feature maps, fine to
    coarse. The default is that of Rein and SoMA, strides of 4 to 32 pixels with patches of 16.
    `encoder_feedforward` is the width in the pixel decoder's layers where it is another.
    """

    hidden: Count
    feedforward: Count
    encoder_feedforward: Count | None = later(None)
    encoder_layers: Count
    decoder_layers: Count
    attention_heads: Count
    queries: Count
    points: Count
    scales: tuple[Positive, Positive, Positive, Positive] = (4.0, 2.0, 1.0, 0.5)
    class_weight: NotNegative = 2.0
    mask_weight: NotNegative = 5.0
    dice_weight: NotNegative = 5.0
    no_object_weight: NotNegative = 0.1


class Domain(Strict):
    """One split of one data set.

    Attributes:
        domain: name in records and tables. card: name of a card in `datasets/`. split: a split of
            the card.
        size: test size (height, width) in pixels; null keeps the file's own. keep_ratio: whether
            the image is scaled to fit into `size` instead of being stretched to it. turn: whether
            an image that is higher than wide is fitted into the turned size instead.
        holdout: number of pairs, last in name order, that are never trained on: a source leaves
            them out, a validation domain is exactly them. limit: at most so many pairs, first in
            name order; null is all.
        exclude: names of pairs that are left out before that, such as files known to be corrupted.
        halve: images (bicubic) and ground truth (nearest) are halved when read, sides rounded down.
            "jpeg" also sends the image through JPEG at Pillow's default quality, as the files that
            Rein and SoMA score Mapillary on were made. Null reads files as they are.
    """

    domain: str
    card: str
    split: str
    size: tuple[Count, Count] | None = None
    keep_ratio: bool = True
    turn: bool = later(False)
    holdout: Index = 0
    limit: Count | None = None
    exclude: tuple[str, ...] = later(())
    halve: Literal["pixels", "jpeg"] | None = later(None)


class Input(Strict):
    """Per-channel (R, G, B) mean and standard deviation of images scaled to 0..1."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]


class Augment(Strict):
    """Training augmentation: lengths in pixels, `max_class_share` and `flip` as shares of 1.

    `factor` is the range of a number, uniformly drawn, by which the drawn short side and the cap on
    the long side are both multiplied.
    """

    short_sides: Annotated[tuple[Count, ...], Field(min_length=1)]
    long_side_max: Count
    factor: Range = later((1.0, 1.0))
    crop: Count
    max_class_share: Share
    flip: Share
    photometric: bool


class Window(Strict):
    """Sliding window of evaluation: side and stride in pixels."""

    size: Count
    stride: Count


class Ema(Strict):
    """Moving average of the weights.

    `momentum` is the share of the new ones, from iteration `start`.
    """

    momentum: Annotated[float, Field(gt=0, le=1)]
    start: Index


class Recipe(Strict):
    """How a model is trained.

    Attributes:
        iterations: optimizer steps. batch: images per step.
        lr: peak rate of the head. backbone_lr: peak rate of the backbone, absolute.
        weight_decay: falls to weight_decay_end over the run when its schedule is "cosine", or
            when it is "method" and the method asks for it. backbone_weight_decay: that of the
            backbone, where it is another. decay_query_features: whether the learnt features of
            Mask2Former's queries decay; norms and embeddings, theirs of position too, never do.
        power: of the poly schedule. milestones: iterations from 0 at which the multistep schedule
            divides the rate by 10. warmup: iterations of a linear rise from the share
            `warmup_start` of the rate. clip: largest gradient norm, or null.
        precision: Lightning's name of it. checkpoint_every: iterations.
        evaluate_at: iterations; the last one is always evaluated.
        threads: torch threads of one process. loader_workers: data loading processes.
        accumulate: micro-batches that each process makes of its share of a batch.
        activation_checkpointing: blocks of the backbone are computed again in the backward pass
            instead of being kept.
    """

    iterations: Count
    batch: Count
    optimizer: Literal["adamw"] = "adamw"
    lr: Positive
    backbone_lr: Positive
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative
    weight_decay_schedule: Literal["constant", "cosine", "method"] = "constant"
    weight_decay_end: NotNegative = 1e-5
    backbone_weight_decay: NotNegative | None = later(None)
    decay_query_features: bool = later(False)
    schedule: Literal["poly", "multistep"] = "poly"
    power: NotNegative = 0.9
    milestones: tuple[Count, ...] = ()
    warmup: Index = 0
    warmup_start: Positive = 1e-6
    ema: Ema | None = None
    clip: Positive | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every: Count = 100
    evaluate_at: tuple[Count, ...] = ()
    threads: Count = 1
    loader_workers: Index = 0
    accumulate: Count = later(1)
    activation_checkpointing: bool = later(False)

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
    then gets what was best of its trials, and no other change.
    """

    recipe: RecipeChanges = RecipeChanges()
    methods: dict[str, MethodChanges] = Field(default_factory=dict)
    trials: str | None = later(None)

    @model_validator(mode="after")
    def _trials_decide(self) -> "Mode":
        if self.trials is not None and (self.recipe.model_fields_set or self.methods):
            raise ValueError("trials decide the recipe of this mode; give no recipe or methods")
        return self
