"""Commands about methods or one record: `check`, `compare`, `tune`, `export`, `pictures`."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.commands import arguments, listing
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
from benchmarks.errors import UserError, closest
from benchmarks.protocol import load_protocol
from benchmarks.record import Record
from benchmarks.reporting.table_spec import load_table

if TYPE_CHECKING:
    from benchmarks.cell import Cell

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
    from benchmarks.cell import make_cell, parse_changes
    from benchmarks.reporting import compare as comparison

    spec = load_table(table)
    protocol = spec.protocol(profile)
    changes = parse_changes(settings)
    cells = [
        make_cell(protocol, method, seed=seed, placement=where, mode=mode, changes=changes)
        for seed in arguments.numbers(seeds) or protocol.seeds
        for where in arguments.placements(protocol, placement) or (protocol.default_placement,)
    ]
    how = f"python -m benchmarks sweep {table} --profile {profile} --out DIR"
    fixed = comparison.baselines(against, cells, out, how)
    root = arguments.data_root(protocol, data_root)
    data = arguments.fingerprints(protocol, root)
    cells = [cell.reading(data) for cell in cells]
    comparison.check_data(fixed, cells, root)
    todo = comparison.missing(fixed, cells, out, replace)
    arguments.announce(protocol)
    if comparison.nonconforming(cells[0], _say):
        _say("nothing was trained; `python -m benchmarks check` shows every property")
        raise typer.Exit(1)
    if replace:
        comparison.clear(todo, out)
    _train(todo, out, root, device, workers)
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
        Path | None, typer.Option(help="Default: the protocol's own, or beside the records.")
    ] = None,
) -> None:
    """Choose learning rate and weight decay on held-out source images, on one grid per method.

    Trials that have a record are not run again. The summary keeps the rows of other methods.
    """
    from benchmarks import tuning

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
    cells = [cell.reading(data) for cell in cells]
    _train(cells, out, root, device, workers)
    named = (mode.trials for mode in whole.recipes.values() if mode.trials)
    own = next((REPOSITORY / file for file in named), out / held_out.name / "trials.csv")
    chosen, without = tuning.update(summary or own, whole, cells, out)
    for trial in chosen:
        rate = "-" if trial.backbone_lr is None else f"{trial.backbone_lr:g}"
        print(
            f"{trial.method:<14} backbone_lr {rate:<8} weight_decay {trial.weight_decay:<8g} "
            f"{whole.metric} {trial.score:.2f}"
        )
    print(summary or own)
    for label, reason in without.items():
        _say(f"{label}: none of its trials gave a score: {reason or f'no {whole.metric}'}")
    if without:
        raise typer.Exit(1)


def _train(cells: "list[Cell]", out: Path, data_root: Path, device: str, workers: int) -> None:
    """Run the cells; whatever the user has to mend ends the command."""
    if not cells:
        _say("every cell is recorded; nothing was trained")
        return
    from benchmarks.run import run_cell
    from benchmarks.sweeps.claim import Plan
    from benchmarks.sweeps.local import end_workers_on_sigterm, sweep

    plan = Plan(tuple(cells), out, data_root, device, run_cell)
    end_workers_on_sigterm()
    with listing.progress(len(cells)) as report:
        outcome = sweep(plan, workers, report)
    for line in outcome.summary():
        _say(line)
    if outcome.exit_code > 1:
        raise typer.Exit(outcome.exit_code)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def export(
    record: Annotated[Path, typer.Argument(help="A record (.json), its weights beside it.")],
    destination: Annotated[Path, typer.Argument(help="Folder (peft) or file (folded).")],
    to: Annotated[str, typer.Option(help="peft or folded.")],
    protocol: Annotated[str, typer.Option(help="Path of its protocol, if not built in.")] = "",
    method: Annotated[str, typer.Option(help="path/to/file.py:Class, if not built in.")] = "",
) -> None:
    """Write what RECORD trained as a LoRA that peft loads, or as plain backbone weights."""
    from safetensors import SafetensorError

    from benchmarks.trained import load_trained
    from soma.export import NotExportable, export_folded, export_peft
    from soma.method import NotFoldable

    if to not in ("peft", "folded"):
        raise UserError(f"--to {to}: no such format{closest(to, ('peft', 'folded'))}")
    trained = load_trained(record, protocol, method)
    try:
        if to == "peft":
            export_peft(trained.vit, trained.plain, destination)
        else:
            export_folded(trained.method, trained.vit, destination)
    except NotExportable as error:
        mend = "plain weights may do: --to folded"
        raise UserError(f"{trained.record.label}: no LoRA for peft: {error}; {mend}") from None
    except NotFoldable as error:
        raise UserError(f"{trained.record.label}: no plain weights: {error}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{destination}: cannot be written ({error})") from None
    print(destination)


def pictures(
    record: Annotated[Path, typer.Argument(help="A detection record (.json).")],
    out: Annotated[Path | None, typer.Option(help="Default: RECORD without its .json.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many of each domain.")] = 8,
    data_root: DataRoot = None,
) -> None:
    """Draw what RECORD found beside what is there: one contact sheet per domain."""
    from benchmarks.detection.gallery import write_sheets

    protocol = Record.load(record).protocol
    try:
        data_root = data_root or arguments.data_root(load_protocol(protocol), None)
    except UserError as error:
        raise UserError(f"{error}; say where the data are with --data-root") from None
    for file in write_sheets(record, data_root, out or record.with_suffix(""), images):
        print(file)
