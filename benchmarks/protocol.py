"""A protocol: everything that is held fixed while methods vary, read from YAML with strict keys."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from benchmarks import yaml_files
from benchmarks.detection.engines import resolve
from benchmarks.detection.settings import DetectionAugment, FasterRCNN
from benchmarks.errors import UserError, closest
from benchmarks.protocol_parts import (
    Augment,
    Backbone,
    Count,
    Domain,
    Ema,
    Head,
    Index,
    Input,
    MethodChanges,
    Mode,
    Placement,
    Recipe,
    RecipeChanges,
    Window,
)
from benchmarks.yaml_files import Strict, later

__all__ = [
    "Augment",
    "Backbone",
    "DetectionProtocol",
    "Domain",
    "Ema",
    "Head",
    "Input",
    "MethodChanges",
    "Mode",
    "Protocol",
    "Recipe",
    "RecipeChanges",
    "SegmentationProtocol",
    "Window",
    "find",
    "load_protocol",
]

FOLDER = Path(__file__).parent / "protocols"
TRIALS = "results/trials"  # of each protocol, relative to the repository
EQUAL_BUDGET = "equal-budget"


class Protocol(Strict):
    """What every written protocol has; `benchmarks/protocols/*.yaml` show every field in use.

    Attributes:
        version: raised with every edit that can change a number. profile: the family a table picks
            it by.
        note: words printed under every table made from it. data_root: default folder of the data,
            relative to the repository; null where the user has to say it.
        source: training sets, concatenated. validation: held-out source. targets: unseen domains.
        extra: targets again, under other names and at other sizes; no average holds them.
        recipes: mode -> changes; `modes` adds one. methods: name -> what this protocol sets for it.
        placements: name -> first adapted block of every method (an index, or a share of the depth
            in 0..1), unless a recipe mode gives a method its own `start_block`.
        selection: which evaluated iteration counts. seeds: of a full table.
        starts_from: protocol whose model, of the same row and seed, this one goes on from.
        metric: the one of its task that choices are made by.
    """

    metric: ClassVar[str]

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
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
    extra: tuple[Domain, ...] = later(())
    input: Input
    recipe: Recipe
    recipes: dict[str, Mode] = Field(default_factory=lambda: {"controlled": Mode()})
    methods: dict[str, MethodChanges] = Field(default_factory=dict)
    placements: dict[str, Placement]
    default_placement: str
    selection: Literal["last", "source-val"] = "last"
    starts_from: str | None = later(None)
    seeds: Annotated[tuple[Index, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_agree(self) -> "Protocol":
        if self.default_placement not in self.placements:
            known = closest(self.default_placement, self.placements)
            raise ValueError(
                f"default_placement {self.default_placement!r} is not a placement{known}"
            )
        scored = [part.domain for group in self.scored.values() for part in group]
        if not scored:
            raise ValueError("no domain is scored; give targets or a validation domain")
        for name in scored:
            if scored.count(name) > 1:
                raise ValueError(f"domain {name!r} is scored twice; give each its own name")
        if self.selection == "source-val" and not self.validation:
            raise ValueError("selection source-val needs a validation domain")
        return self

    @property
    def scored(self) -> dict[str, tuple[Domain, ...]]:
        """Role in the records -> domains that are scored in it, in order."""
        return {"validation": self.validation, "target": self.targets, "extra": self.extra}

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


class SegmentationProtocol(Protocol):
    """A protocol of semantic segmentation with Mask2Former."""

    metric: ClassVar[str] = "mIoU"
    task: Literal["segmentation"]
    head: Head
    augment: Augment
    window: Window


class DetectionProtocol(Protocol):
    """A protocol of object detection with Faster R-CNN.

    Attributes:
        engine: what the detector is built from; auto takes Detectron2 where it is installed.
        source_test: test splits of the sources, scored beside the unseen domains; nothing is chosen
            on them.
    """

    metric: ClassVar[str] = "AP50_voc07"
    task: Literal["detection"]
    engine: Literal["auto", "detectron2", "torchvision"] = "auto"
    head: FasterRCNN
    augment: DetectionAugment
    source_test: tuple[Domain, ...] = ()

    @property
    def scored(self) -> dict[str, tuple[Domain, ...]]:
        """Role in the records -> domains that are scored in it, in order."""
        return {
            "validation": self.validation,
            "source": self.source_test,
            "target": self.targets,
            "extra": self.extra,
        }

    @property
    def engine_here(self) -> str:
        """The engine on this machine.

        Raises:
            UserError: the protocol asks for one that is not installed.
        """
        return resolve(self.engine)


_TASKS = {"segmentation": SegmentationProtocol, "detection": DetectionProtocol}


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by its name in `benchmarks/protocols`, or by a path that ends in .yaml.

    Raises:
        UserError: unknown name, unreadable file, unknown key, wrong value, or more than one level
            of `extends`.
    """
    path = find(name)
    data = yaml_files.read(path)
    if "extends" in data:
        base = yaml_files.read(find(str(data.pop("extends")), path))
        if "extends" in base:
            raise UserError(f"{path}: extends: the base extends another file; one level is allowed")
        data = yaml_files.merge(base, data)
    task = data.get("task", "segmentation")
    if task not in _TASKS:
        raise UserError(f"{path}: task: no such task {task!r}{closest(str(task), _TASKS)}")
    protocol = yaml_files.validate(_TASKS[task], data, str(path))
    if protocol.name != path.stem:
        raise UserError(f"{path}: name: {protocol.name!r} differs from the file's name; use one")
    return protocol


def find(name: str | Path, asked_by: Path | None = None) -> Path:
    """The file of a protocol.

    Raises:
        UserError: no such protocol.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        where = f"{asked_by}: extends: " if asked_by else ""
        known = closest(str(name), (file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"{where}no protocol {str(name)!r}{known}")
    return path
