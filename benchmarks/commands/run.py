"""The command `run`: one cell, on one device or on several."""

import sys
from functools import partial

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
    """Train and score one cell: METHOD is a name or path/to/file.py:Class.

    With --dry-run only say what it would take and what is missing: needs no data, writes nothing.
    """
    from benchmarks.cell import make_cell, parse_changes, prepare
    from benchmarks.distributed import is_nonzero_rank
    from benchmarks.run import run_cell
    from benchmarks.sweep import Plan, join_run, remove_failed, run_one

    held_fixed = arguments.with_engine(load_protocol(protocol), engine)
    seed = arguments.checked_seed(seed)
    where = None if placement == "default" else placement
    changes = parse_changes(settings)
    cell = make_cell(held_fixed, method, seed=seed, placement=where, mode=mode, changes=changes)
    if dry_run:
        from benchmarks.dry_run import print_cell

        if devices * nodes > 1:
            raise UserError("--dry-run measures one device; leave --devices and --nodes out")
        print_cell(cell, device, arguments.known_root(held_fixed, data_root))
        return
    root = arguments.data_root(held_fixed, data_root)
    arguments.announce(held_fixed)
    (cell,) = prepare([cell], root, out)
    plan = Plan((cell,), out, root, device, partial(run_cell, devices=devices, nodes=nodes))
    if is_nonzero_rank(devices, nodes):
        join_run(plan, cell)
        return
    if retry_failed:
        remove_failed(plan, cell)
    result = run_one(plan, cell, True, wait_for_lock=False)
    if result is None:
        raise UserError(
            f"{cell}: another process runs it now; its record will be {out / cell.path}"
        )
    record, made = result
    if not made:
        print("recorded before; nothing was run", file=sys.stderr)
    console.print_record(record)
    print(out / cell.path)
    if record.status == "failed":
        raise typer.Exit(1)
