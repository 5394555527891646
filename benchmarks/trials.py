"""Summaries of trials: what `tune` tried for each method, and what an equal budget then chooses.

A summary is a csv with one row per run, of which a trial has one per seed: method (its label);
backbone_lr, empty where nothing of the backbone learns; weight_decay; the score on held-out source
data in percent, under the metric's name in lower case, empty where the run gave none; chosen, 1 or
0; protocol, version, domain, seed.
"""

import csv
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks import methods
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError
from benchmarks.protocol import MARGIN, TRIALS, Protocol
from benchmarks.yaml_files import problem


class Trial(BaseModel):
    """One row of a summary, a run of a trial; `score` is in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str
    backbone_lr: float | None
    weight_decay: float
    score: float | None
    chosen: bool = False
    protocol: str
    version: int
    domain: str
    seed: int

    @property
    def setting(self) -> tuple[str, float | None, float]:
        """What the runs of one trial share."""
        return self.method, self.backbone_lr, self.weight_decay

    def row(self, metric: str) -> dict[str, Any]:
        """As it stands in a summary, column -> value."""
        values = self.model_dump() | {"chosen": int(self.chosen)}
        return {metric.lower() if key == "score" else key: values[key] for key in values}


class Budget(BaseModel):
    """The trials behind the recipe of a cell.

    Attributes:
        trials: their number; each is a run per seed.
        backbone_lr: one axis of the grid, ascending.
        weight_decay: the other one.
        chosen: recipe field -> value.
        domain: held-out source images on which they were scored.
        metric: by which they were compared.
        seeds: of their runs.
        sha256: of the method's lines in the summary, each with its line end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int
    backbone_lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    chosen: dict[str, float]
    domain: str
    metric: str
    seeds: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        """Words for the note under a table."""
        grid = (("backbone_lr", self.backbone_lr), ("weight_decay", self.weight_decay))
        words = [f"{name} {', '.join(f'{v:g}' for v in values)}" for name, values in grid if values]
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{self.trials} trial{'s' * (self.trials > 1)} per method ({' x '.join(words)}) by "
            f"{'mean ' * (len(self.seeds) > 1)}{self.metric} on {self.domain}, "
            f"seed{'s' * (len(self.seeds) > 1)} {seeds}"
        )


def choose(trials: Iterable[Trial]) -> list[Trial]:
    """The runs with those of each method's chosen trial marked.

    That is, of the trials whose mean over their seeds lies less than `MARGIN` below the method's
    highest, the one with the smallest rate (of equal rates, decay; the first of equals), and none
    in which a run gave no score. A point is what tables call no difference; the smaller rate leaves
    more of the pretrained weights, and a larger one is nearer to where a seed diverges.
    """
    every = list(trials)
    means = {setting: mean for setting, mean in _means(every).items() if mean is not None}
    highest: dict[str, float] = {}
    for (method, *_), mean in means.items():
        highest[method] = max(mean, highest.get(method, mean))
    near = [setting for setting, mean in means.items() if mean > highest[setting[0]] - MARGIN]
    chosen: dict[str, tuple] = {}
    for setting in sorted(near, key=lambda setting: (setting[1] or 0, setting[2])):
        chosen.setdefault(setting[0], setting)
    return [
        trial.model_copy(update={"chosen": chosen.get(trial.method) == trial.setting})
        for trial in every
    ]


def render(trials: Iterable[Trial], metric: str) -> str:
    """The text of a summary."""
    rows = [trial.row(metric) for trial in trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(path: Path, metric: str) -> tuple[list[Trial], list[str]]:
    """The trials in a summary, and the line that each of them stands on.

    Raises:
        UserError: unreadable, or no summary of this metric.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no csv in UTF-8"
        raise UserError(f"{path}: trials cannot be read: {why}; `tune` writes them") from None
    trials = []
    reader = csv.DictReader([header, *lines], restkey="(value without a column)")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}: trials cannot be read: {error}; `tune` writes them") from None
    for number, row in enumerate(rows, start=2):
        named = {"score" if key == metric.lower() else key: row[key] for key in row}
        named |= {key: named.get(key) or None for key in ("backbone_lr", "score")}
        try:
            trials.append(Trial.model_validate(named))
        except ValidationError as error:
            raise UserError(
                f"{path}: line {number}: no trial by {metric}: {problem(error, Trial)}; fix it, "
                "or move the file away and tune again"
            ) from None
    return trials, lines


def _means(trials: Iterable[Trial]) -> dict[tuple, float | None]:
    """Setting -> mean over its seeds; None where a run gave no score."""
    scores: dict[tuple, list[float | None]] = {}
    for trial in trials:
        scores.setdefault(trial.setting, []).append(trial.score)
    return {
        setting: None if None in runs else sum(runs) / len(runs) for setting, runs in scores.items()
    }


class Tried(BaseModel):
    """What a summary holds for one method.

    Attributes:
        trials: their number.
        runs: a trial has one per seed.
        backbone_lr: those tried, ascending.
        weight_decay: the same.
        chosen: rate and decay of the chosen trial, None where there is none.
        score: mean of its seeds in percent.
        highest: the same of the trial with the highest mean.
        lowest: and of the one with the lowest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    trials: int
    runs: int
    backbone_lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    chosen: tuple[float | None, float] | None
    score: float | None
    highest: float | None
    lowest: float | None


def tried(trials: Iterable[Trial]) -> list[Tried]:
    """One line per method of a summary, in its order."""
    every, held = list(trials), []
    for method in dict.fromkeys(trial.method for trial in every):
        own = [trial for trial in every if trial.method == method]
        means = _means(own)
        scored = [mean for mean in means.values() if mean is not None]
        chosen = next((trial.setting for trial in own if trial.chosen), None)
        held.append(
            Tried(
                method=method,
                trials=len(means),
                runs=len(own),
                backbone_lr=tuple(sorted({trial.backbone_lr for trial in own} - {None})),
                weight_decay=tuple(sorted({trial.weight_decay for trial in own})),
                chosen=chosen and chosen[1:],
                score=means.get(chosen),
                highest=max(scored, default=None),
                lowest=min(scored, default=None),
            )
        )
    return held


def summary_of(protocol: Protocol) -> tuple[str, list[Trial]] | None:
    """Name and runs of the summary that is kept for a protocol; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = REPOSITORY / TRIALS / f"{protocol.name}.csv"
    return (f"{TRIALS}/{path.name}", read(path, protocol.metric)[0]) if path.is_file() else None


def budget_of(protocol: Protocol, method: str, mode: str, seed: int) -> Budget | None:
    """The trials that a recipe mode takes a method's recipe from; None where it is from none.

    Raises:
        UserError: no summary, no score of this method in it, trials under another version of the
            protocol, grids that differ between methods, or a cell with the seed of the trials.
    """
    if mode not in protocol.modes or (file := protocol.modes[mode].trials) is None:
        return None
    path, label = REPOSITORY / file, methods.label(method)
    remedy = f"python -m benchmarks tune {protocol.name} --methods {method}"
    if not path.is_file():
        raise UserError(
            f"{path}: no trials to choose the recipe of {label} from; make them: {remedy}"
        )
    trials, lines = read(path, protocol.metric)
    own = [trial for trial in trials if trial.method == label]
    chosen = next((trial for trial in own if trial.chosen), None)
    if chosen is None:
        what = f"none of the {len(own)} trials of {label} gave a score" if own else f"no {label}"
        raise UserError(f"{path}: {what}; other trials: {remedy}")
    if {(trial.protocol, trial.version) for trial in own} != {(protocol.name, protocol.version)}:
        raise UserError(
            f"{path}: {label} was tuned under {chosen.protocol} version {chosen.version}, not "
            f"under {protocol.name} version {protocol.version}; again: {remedy}"
        )
    if seed in {trial.seed for trial in own}:
        raise UserError(
            f"{label}: seed {seed} is one of its trials', which favours what they chose; take "
            "another seed"
        )
    _check_equal(path, trials, own)
    mine = [line for trial, line in zip(trials, lines, strict=True) if trial.method == label]
    values = {"backbone_lr": chosen.backbone_lr, "weight_decay": chosen.weight_decay}
    return Budget(
        trials=len({trial.setting for trial in own}),
        backbone_lr=tuple(sorted({trial.backbone_lr for trial in own} - {None})),
        weight_decay=tuple(sorted({trial.weight_decay for trial in own})),
        chosen={key: value for key, value in values.items() if value is not None},
        domain=chosen.domain,
        metric=protocol.metric,
        seeds=tuple(sorted({trial.seed for trial in own})),
        sha256=hashlib.sha256("".join(f"{line}\n" for line in mine).encode()).hexdigest(),
    )


def _check_equal(path: Path, trials: list[Trial], own: list[Trial]) -> None:
    """Refuse a budget that another method's differs from, where a backbone learns in both."""
    grids: dict[str, set[tuple]] = {}
    for trial in trials:
        if trial.backbone_lr is not None:
            setting = trial.backbone_lr, trial.weight_decay, trial.seed
            grids.setdefault(trial.method, set()).add(setting)
    mine = own[0].method
    for other, grid in grids.items():
        if mine in grids and grid != grids[mine]:
            raise UserError(
                f"{path}: {mine} and {other} were tuned on different grids or seeds "
                f"({len(grids[mine])} and {len(grid)} runs), which is no equal budget; tune both "
                "with the same --rates, --decays and --seeds"
            )
