"""The command `tune`: learning rate and weight decay, on held-out source images."""

from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from benchmarks import console
from benchmarks.commands import arguments
from benchmarks.commands.arguments import (
    RUNS,
    DataRoot,
    Device,
    Out,
)
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError
from benchmarks.protocol import EQUAL_BUDGET
from benchmarks.tasks import load_protocol

DEFAULT_RATES = "1e-4,3e-4,1e-3,3e-3"


def tune(
    protocol: Annotated[str, typer.Argument(help="Its sources alone are read and scored.")],
    methods: Annotated[str, typer.Option(help="Such as soma,my_method.py:MyMethod.")],
    rates: Annotated[str, typer.Option(help="Learning rates of the backbone.")] = DEFAULT_RATES,
    decays: Annotated[str, typer.Option(help="Weight decays; default: the protocol's.")] = "",
    seeds: Annotated[str, typer.Option(help="Of every trial; none of the protocol's.")] = "100,101",
    settings: Annotated[
        list[str], typer.Option("--set", help="data.DOMAIN.exclude=NAMES; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Trials side by side.")] = 2,
    device: Device = "cpu",
    data_root: DataRoot = None,
    out: Out = RUNS,
    summary: Annotated[
        Path | None, typer.Option(help="Default: where --recipe equal-budget looks for it.")
    ] = None,
) -> None:
    """Choose learning rate and weight decay on held-out source images, on one grid per method.

    Trials that have a record are not run again. The summary keeps the rows of other methods.
    """
    from benchmarks import trials, tuning
    from benchmarks.cell import parse_changes, prepare

    changes = parse_changes(settings)
    if changes["recipe"] or changes["method"]:
        raise UserError("--set of tune takes data.DOMAIN.exclude=NAMES; recipes are what it tries")
    whole = load_protocol(protocol)
    for domain, names in changes["data"].items():
        whole = whole.excluding(domain, names)
    held_out = tuning.source_only(whole)
    grid = arguments.reals(rates, "--rates"), arguments.reals(decays, "--decays")
    drawn = arguments.numbers(seeds)
    asked = dict.fromkeys(arguments.names(methods))
    cells = [cell for method in asked for cell in tuning.cells(held_out, method, *grid, drawn)]
    if not cells:
        raise UserError("no trials: give --methods, --rates and --seeds")
    root = arguments.data_root(whole, data_root)
    arguments.announce(whole)
    cells = prepare(cells, root, out)
    arguments.train_missing(cells, out, root, device, workers)
    summary = summary or REPOSITORY / whole.modes[EQUAL_BUDGET].trials
    chosen, without = tuning.update(summary, whole, cells, out)
    for setting, runs in groupby(chosen, key=lambda trial: trial.setting):
        label, rate, decay = setting
        scores = [run.score for run in runs]
        print(
            f"{label:<14} backbone_lr {'-' if rate is None else f'{rate:g}':<8} "
            f"weight_decay {decay:<8g} {whole.metric} {fmean(scores):.2f}"
            + f" ({', '.join(f'{score:.2f}' for score in scores)})"
            * (len(scores) > 1)
        )
    print(summary)
    held = trials.read(summary, whole.metric)[0]
    here = [t for t in held if (t.protocol, t.version) == (whole.name, whole.version)]
    print(f"\n{tuning.judged(here, whole.metric)}")
    for label, reason in without.items():
        console.say(f"{label}: none of its trials gave a score: {reason or f'no {whole.metric}'}")
    if without:
        raise typer.Exit(1)
