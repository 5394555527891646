"""What commands that train cells share: which cells are meant, and training what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from benchmarks import console
from benchmarks.commands import arguments
from benchmarks.protocol import Protocol

if TYPE_CHECKING:
    from benchmarks.cell import Cell
    from benchmarks.sweep import Outcome, Plan, Report


def cells(
    protocol: Protocol,
    methods: Sequence[str],
    seeds: str,
    placement: str,
    mode: str,
    settings: Sequence[str],
) -> list[Cell]:
    """The cells of METHODS as the flags of a command ask for them.

    Seeds are outermost: a sweep that is cut off has complete rankings of its first seeds.

    Raises:
        UserError: a flag cannot be read, or the protocol has no such thing.
    """
    from benchmarks.cell import make_cell, parse_changes

    changes = parse_changes(settings)
    return [
        make_cell(protocol, method, seed=seed, placement=where, mode=mode, changes=changes)
        for seed in arguments.numbers(seeds) or protocol.seeds
        for where in arguments.placements(protocol, placement) or (protocol.default_placement,)
        for method in methods
    ]


def train_missing(
    cells: Sequence[Cell], out: Path, data_root: Path, device: str, workers: int
) -> None:
    """Train the cells here; whatever the user has to mend ends the command."""
    if not cells:
        console.say("every cell is recorded; nothing was trained")
        return
    from benchmarks import sweep
    from benchmarks.run import run_cell
    from benchmarks.sweep import Plan

    plan = Plan(tuple(cells), out, data_root, device, run_cell)
    outcome = reported(plan, lambda report: sweep.sweep(plan, workers, report))
    if outcome.exit_code > 1:
        raise typer.Exit(outcome.exit_code)


def reported(plan: Plan, work: Callable[[Report], Outcome]) -> Outcome:
    """Do the work of a plan with its progress and its summary on stderr."""
    from benchmarks.sweep import end_workers_on_sigterm

    end_workers_on_sigterm()
    with console.progress(len(plan.cells)) as report:
        outcome = work(report)
    for line in outcome.summary():
        console.say(line)
    return outcome
