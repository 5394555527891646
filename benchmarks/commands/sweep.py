"""The command `sweep`: the cells of a table, trained here or as jobs of a SLURM cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    Methods,
    Mode,
    Out,
    PlacementName,
    Profile,
    Retry,
    Seeds,
    Settings,
)
from benchmarks.errors import UserError

if TYPE_CHECKING:
    from benchmarks.sweep import Plan


def _of_slurm(help: str, **limits: int) -> Any:
    return typer.Option(help=help, rich_help_panel="With --on slurm", **limits)


def sweep(
    table: str,
    profile: Profile = "mini",
    placement: PlacementName = "default",
    seeds: Seeds = "",
    methods: Methods = "",
    mode: Mode = "controlled",
    settings: Settings = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=1, help="Cells trained side by side, here.")] = 1,
    device: Device = "cpu",
    devices: Devices = 1,
    data_root: DataRoot = None,
    out: Out = RUNS,
    engine: Engine = "",
    retry_failed: Retry = False,
    dry_run: DryRun = False,
    on: Annotated[
        Literal["local", "slurm"], typer.Option(help="Train here, or each cell as a SLURM job.")
    ] = "local",
    wait: Annotated[bool, _of_slurm("For all records, or submit and leave.")] = True,
    partition: Annotated[str, _of_slurm("Partition of the jobs; default: the cluster's.")] = "",
    time: Annotated[int, _of_slurm("Minutes until a job is cut off, and continued.", min=5)] = 240,
    nodes: Annotated[int, _of_slurm("Machines of a cell.", min=1)] = 1,
    gpus_per_node: Annotated[
        int | None, _of_slurm("Default: --devices where these are GPUs.", min=0)
    ] = None,
    cpus: Annotated[int | None, _of_slurm("Processors for each device.", min=1)] = None,
    mem: Annotated[int | None, _of_slurm("GB on each node.", min=1)] = None,
    slurm: Annotated[
        list[str], _of_slurm("Any option of sbatch, as KEY=VALUE or KEY; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Run the cells of TABLE that have no record yet, and resume those that were cut off."""
    from benchmarks.cell import prepare
    from benchmarks.report.spec import load_table
    from benchmarks.run import run_cell
    from benchmarks.slurm import Resources
    from benchmarks.slurm import sweep as submit
    from benchmarks.sweep import Plan
    from benchmarks.sweep import sweep as work

    options = {key: value or True for key, _, value in (option.partition("=") for option in slurm)}
    resources = Resources(
        devices, nodes, time, partition or None, gpus_per_node, cpus, mem, options
    )
    # An option that does nothing would be believed.
    if on == "local" and not (wait and resources == Resources(devices)):
        raise UserError("what jobs ask SLURM for needs --on slurm; here there is one machine")
    spec = load_table(table)
    protocol = arguments.with_engine(spec.protocol(profile), engine)
    cells = arguments.checked(
        arguments.named_of(spec, protocol, methods, seeds, placement, mode, settings)
    )
    if dry_run:
        from benchmarks.dry_run import print_table

        # Seeds cost the same: one of each row.
        rows = list({(cell.placement, cell.label): cell for cell in reversed(cells)}.values())
        print_table(rows[::-1], device, arguments.known_root(protocol, data_root))
        return
    root = arguments.data_root(protocol, data_root)
    arguments.announce(protocol)
    shared = devices * nodes > 1
    run = partial(run_cell, devices=devices, nodes=nodes) if shared else run_cell
    plan = Plan(prepare(cells, root, out), out, root, device, run, devices)
    _announce(plan, workers if on == "local" and not shared else None, on == "local" and not shared)
    if on == "slurm":
        outcome = arguments.reported(
            plan, lambda report: submit(plan, resources, report, retry_failed, wait)
        )
    else:
        outcome = arguments.reported(plan, lambda report: work(plan, workers, report, retry_failed))
    raise typer.Exit(outcome.exit_code)


def _announce(plan: Plan, workers: int | None, here: bool) -> None:
    """Say how long a sweep of long cells takes, before it begins."""
    from benchmarks.sweep import forecast

    measure = None
    if here:
        from benchmarks.dry_run import hours as measure
    if line := forecast(plan, workers, measure):
        console.say(line)
