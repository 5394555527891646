"""Commands about methods: `check`, `compare`, `tune`."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import arguments, listing, training
from benchmarks.commands.arguments import (
    REFERENCE,
    RUNS,
    DataRoot,
    Device,
    Mode,
    Out,
    PlacementName,
    Profile,
    Seeds,
    Settings,
)
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError
from benchmarks.protocol import EQUAL_BUDGET, load_protocol
from benchmarks.reporting.table_spec import load_table

DEFAULT_RATES = "1e-4,3e-4,1e-3,3e-3"
COLOURS = {"pass": "green", "fail": "bold red", "n/a": "yellow"}


def check(
    method: Annotated[str, typer.Argument(help="A name, path/to/file.py:Class or hf:Name.")],
) -> None:
    """Check METHOD on small random backbones: one line per property, exit code 1 if one fails."""
    started = time.perf_counter()
    from rich.console import Console

    from benchmarks.cell import make_method
    from benchmarks.conformance.check import KINDS, check_method

    made, console = make_method(method, {}), Console(highlight=False)
    counts: Counter[str] = Counter()
    for kind in KINDS:
        console.print(f"{method} on a backbone with {kind}", style="bold", markup=False)
        for finding in check_method(made, kind):
            counts[finding.verdict] += 1
            line = f"  {finding.verdict:<5} {finding.property:<26} {finding.measured}"
            style = COLOURS[finding.verdict]
            console.print(line, style=style, markup=False, soft_wrap=True)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS)
    seconds = time.perf_counter() - started
    console.print(f"{method}: {verdicts}; {seconds:.1f} s", markup=False)
    if counts["fail"] or not counts["pass"]:
        raise typer.Exit(1)


def compare(
    method: Annotated[str, typer.Argument(help="A name, path/to/file.py:Class or hf:Name.")],
    table: Annotated[str, typer.Option(help="The table whose rows are the baselines.")] = "table1",
    profile: Profile = "mini",
    seeds: Seeds = "",
    placement: PlacementName = "default",
    mode: Mode = "controlled",
    settings: Settings = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Cells trained side by side.")] = 2,
    device: Device = "cpu",
    data_root: DataRoot = None,
    out: Out = RUNS,
    against: Annotated[Path, typer.Option(help="Records of the fixed baselines.")] = REFERENCE,
    replace: Annotated[
        bool, typer.Option(help="Run again what failed or was recorded before METHOD changed.")
    ] = False,
) -> None:
    """Check METHOD, train its row of TABLE, and say what is larger than seed noise.

    The baselines are the committed records, which are never run again.
    """
    from benchmarks import first_stage
    from benchmarks.reporting import compare as comparison

    spec = load_table(table)
    protocol = spec.protocol(profile)
    cells = training.cells(protocol, [method], seeds, placement, mode, settings)
    how = f"python -m benchmarks sweep {table} --profile {profile} --out DIR"
    fixed = comparison.baselines(against, cells, out, how)
    root = arguments.data_root(protocol, data_root)
    data = arguments.fingerprints(protocol, root)
    cells = first_stage.reading(cells, data, out)
    comparison.check_data(fixed, cells, root)
    todo = comparison.missing(fixed, cells, out, replace)
    arguments.announce(protocol)
    if comparison.nonconforming(cells[0], listing.say):
        listing.say("nothing was trained; `python -m benchmarks check` shows every property")
        raise typer.Exit(1)
    if replace:
        comparison.clear(todo, out)
    training.train_missing(todo, out, root, device, workers)
    mine = comparison.records_of(cells, fixed, out)
    print(comparison.answer(spec, fixed, cells, mine), end="")
    if any(record.status == "failed" for record in mine):
        raise typer.Exit(1)


def tune(
    protocol: Annotated[str, typer.Argument(help="Its sources alone are read and scored.")],
    methods: Annotated[str, typer.Option(help="Such as soma,my_method.py:MyMethod.")],
    rates: Annotated[str, typer.Option(help="Learning rates of the backbone.")] = DEFAULT_RATES,
    decays: Annotated[str, typer.Option(help="Weight decays; default: the protocol's.")] = "",
    seed: Annotated[int, typer.Option(help="Of all trials; none of the protocol's.")] = 100,
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
    from benchmarks import first_stage, tuning

    whole = load_protocol(protocol)
    held_out = tuning.source_only(whole)
    grid = arguments.reals(rates, "--rates"), arguments.reals(decays, "--decays")
    asked = dict.fromkeys(arguments.names(methods))
    cells = [cell for method in asked for cell in tuning.cells(held_out, method, *grid, seed)]
    if not cells:
        raise UserError("no trials: give --methods and --rates")
    root = arguments.data_root(whole, data_root)
    arguments.announce(whole)
    data = arguments.fingerprints(held_out, root)
    cells = first_stage.reading(cells, data, out)
    training.train_missing(cells, out, root, device, workers)
    summary = summary or REPOSITORY / whole.modes[EQUAL_BUDGET].trials
    chosen, without = tuning.update(summary, whole, cells, out)
    for trial in chosen:
        rate = "-" if trial.backbone_lr is None else f"{trial.backbone_lr:g}"
        print(
            f"{trial.method:<14} backbone_lr {rate:<8} weight_decay {trial.weight_decay:<8g} "
            f"{whole.metric} {trial.score:.2f}"
        )
    print(summary)
    for label, reason in without.items():
        listing.say(f"{label}: none of its trials gave a score: {reason or f'no {whole.metric}'}")
    if without:
        raise typer.Exit(1)
