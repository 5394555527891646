"""The command `run`: one cell, on one device or on several."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import typer

from benchmarks import console
from benchmarks.commands import arguments
from benchmarks.commands.arguments import (
    RUNS,
    DataRoot,
    Device,
    Devices,
    DryRun,
    Engine,
    Mode,
    Nodes,
    Out,
    PlacementName,
    Retry,
    Settings,
)
from benchmarks.errors import UserError
from benchmarks.tasks import load_protocol

if TYPE_CHECKING:
    from benchmarks.cell import Cell
    from benchmarks.sweep import Plan


def run(
    protocol: str,
    method: str,
    seed: int = 0,
    mode: Mode = "controlled",
    settings: Settings = [],  # noqa: B006 - typer copies it
    placement: PlacementName = "default",
    device: Device = "cpu",
    devices: Devices = 1,
    nodes: Nodes = 1,
    data_root: DataRoot = None,
    out: Out = RUNS,
    engine: Engine = "",
    retry_failed: Retry = False,
    dry_run: DryRun = False,
) -> None:
    """Train and score one cell: METHOD is a name, path/to/file.py:Class or hf:NAME.

    Where --set has several values, one cell of each. With --dry-run only say what it would take and
    what is missing: needs no data, writes nothing.
    """
    from benchmarks.cell import prepare
    from benchmarks.distributed import is_nonzero_rank
    from benchmarks.run import run_cell
    from benchmarks.sweep import Plan, join_run

    held_fixed = arguments.with_engine(load_protocol(protocol), engine)
    seed = arguments.checked_seed(seed)
    if placement != "default":
        # One name, where a sweep takes several.
        held_fixed.placement(placement)
    cells = arguments.checked(
        arguments.named(held_fixed, [method], str(seed), placement, mode, settings)
    )
    if len(cells) > 1 and devices * nodes > 1:
        raise UserError("--set with several values takes one device here; sweep takes more")
    if dry_run:
        from benchmarks.dry_run import print_cell

        if devices * nodes > 1:
            raise UserError("--dry-run measures one device; leave --devices and --nodes out")
        for cell in cells:
            print_cell(cell, device, arguments.known_root(held_fixed, data_root))
        return
    root = arguments.data_root(held_fixed, data_root)
    arguments.announce(held_fixed)
    prepared = prepare(cells, root, out)
    plan = Plan(prepared, out, root, device, partial(run_cell, devices=devices, nodes=nodes))
    if is_nonzero_rank(devices, nodes):
        join_run(plan, prepared[0])
        return
    if "failed" in [_run(plan, cell, retry_failed) for cell in prepared]:
        raise typer.Exit(1)


def _run(plan: Plan, cell: Cell, retry_failed: bool) -> str:
    """Run one cell, print its record, and return the status in it.

    Raises:
        UserError: another process runs the cell now.
    """
    from benchmarks.sweep import remove_failed, run_one

    if retry_failed:
        remove_failed(plan, cell)
    result = run_one(plan, cell, True, wait_for_lock=False)
    if result is None:
        raise UserError(
            f"{cell}: another process runs it now; its record will be {plan.out / cell.path}"
        )
    record, made = result
    if not made:
        print("recorded before; nothing was run", file=sys.stderr)
    console.print_record(record)
    print(plan.out / cell.path)
    return record.status
