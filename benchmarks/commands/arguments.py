"""What commands share: options, texts as values, and training the cells that are asked for."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import console
from benchmarks.environment import REPOSITORY
from benchmarks.errors import UserError, closest
from benchmarks.protocol import Protocol

if TYPE_CHECKING:
    from benchmarks.cell import Cell
    from benchmarks.report.spec import TableSpec
    from benchmarks.sweep import Outcome, Plan, Report


RUNS, REFERENCE = Path("results/runs"), REPOSITORY / "results" / "reference"
Seeds = Annotated[str, typer.Option(help="Such as 5,6,7; default: the protocol's.")]
Methods = Annotated[
    str, typer.Option(help="Such as soma,lora, or factors of Table 4; default: the table's.")
]
Profile = Annotated[str, typer.Option(help="Which protocol of the table: mini, smoke, ...")]
PlacementName = Annotated[str, typer.Option(help="Adapted blocks: default, both, or a name.")]
Mode = Annotated[
    str, typer.Option("--recipe", help="Its mode: controlled, as-published, equal-budget.")
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="recipe.FIELD=VALUE, method.FIELD=VALUE, or data.DOMAIN.exclude=[NAME, ...] or =a "
        ".txt file of names; repeatable. Several values (method.rank=4,8) make several cells.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; workers take GPUs in turn.")]
Devices = Annotated[int, typer.Option(min=1, help="Of them on each node, sharing each batch.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines; srun or torchrun starts the processes.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Two steps and one image, rendered; time, memory, gaps.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data sets.")]
Engine = Annotated[
    str, typer.Option(help="Of detection: detectron2 or torchvision; default: the protocol's.")
]
Retry = Annotated[bool, typer.Option(help="Run failed cells again.")]
Out = Annotated[Path, typer.Option(help="Folder of the records.")]


def data_root(protocol: Protocol, given: Path | None) -> Path:
    """The folder of the data sets: as given, else the protocol's own.

    Raises:
        UserError: neither is there.
    """
    root = known_root(protocol, given)
    if root is None:
        raise UserError(f"{protocol.name} reads real data: say where with --data-root")
    return root


def known_root(protocol: Protocol, given: Path | None) -> Path | None:
    """The folder of the data sets: as given, else the protocol's own, if it has one."""
    if given is None and protocol.data_root is not None:
        return REPOSITORY / protocol.data_root
    return given


def announce(protocol: Protocol) -> None:
    """Say on stderr which engine a run takes, where there is a choice.

    Raises:
        UserError: the protocol asks for one that is not installed.
    """
    if protocol.engine_reason:
        print(protocol.engine_reason, file=sys.stderr)


def placements(protocol: Protocol, asked: str) -> tuple[str, ...]:
    """Placements by "both", "default" or names; none for ""."""
    if asked == "both":
        return tuple(protocol.placements)
    return (protocol.default_placement,) if asked == "default" else names(asked)


def names(text: str) -> tuple[str, ...]:
    """The parts of "a,b"; none for "". A comma inside parentheses parts nothing."""
    # hf:LORA(r=8, lora_alpha=8) is one method.
    parts = re.split(r",(?![^()]*\))", text)
    return tuple(name.strip() for name in parts if name.strip())


def reals(text: str, option: str) -> tuple[float, ...]:
    """The different numbers in "1e-4,0.05"; none for "".

    Raises:
        UserError: not numbers.
    """
    try:
        made = tuple(dict.fromkeys(float(name) for name in names(text)))
    except ValueError:
        made = (math.nan,)
    if not all(map(math.isfinite, made)):
        raise UserError(f"{option} {text}: expected numbers such as 1e-4,3e-4")
    return made


def require_folder(folder: Path) -> None:
    """Refuse a folder of records that is not there.

    Raises:
        UserError: it is not.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder of records; give one that `sweep` or `run` wrote"
        )


def numbers(text: str) -> tuple[int, ...]:
    """The different seeds in "0,1,2"; none for "".

    Raises:
        UserError: not whole numbers in 0..2**32 - 1.
    """
    # ASCII digits, no sign: int() takes "1_0" and other scripts' digits too.
    if not all(re.fullmatch(r"[0-9]{1,10}", name) for name in names(text)):
        raise UserError(f"--seeds {text}: expected whole numbers such as 0,1,2")
    return tuple(dict.fromkeys(checked_seed(int(name), "--seeds") for name in names(text)))


def checked_seed(seed: int, option: str = "--seed") -> int:
    """The seed, where random streams can be drawn from it.

    Raises:
        UserError: negative, or beyond 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{option} {seed}: a seed lies in 0..4294967295")
    return seed


def check_engine(protocol: Protocol, engine: str) -> None:
    """Refuse --engine where the task has no choice of engines.

    Raises:
        UserError: it is given, and there is none.
    """
    if engine and "engine" not in type(protocol).model_fields:
        raise UserError(f"--engine {engine}: {protocol.name} has no choice of them; leave it out")


def with_engine(protocol: Protocol, engine: str) -> Protocol:
    """The protocol with the engine of --engine; as it is for "".

    Raises:
        UserError: no such engine, one that is not installed, or a task without a choice.
    """
    if not engine:
        return protocol
    check_engine(protocol, engine)
    chosen = protocol.model_copy(update={"engine": engine})
    # Asked for at once: it refuses what is not known or not installed.
    _ = chosen.engine_here
    return chosen


def checked(named: Sequence[Cell]) -> list[Cell]:
    """The cells, once it is known that there are such methods with such fields.

    Raises:
        UserError: there is not.
    """
    for cell in named:
        cell.make_method()
    return [*named]


def named(
    protocol: Protocol,
    methods: Sequence[str],
    seeds: str,
    placement: str,
    mode: str,
    settings: Sequence[str],
) -> list[Cell]:
    """The cells of METHODS as the flags of a command ask for them, see `cell.name_cell`.

    Seeds are outermost: a sweep that is cut off has complete rankings of its first seeds.

    Raises:
        UserError: a flag cannot be read, or the protocol has no such thing.
    """
    from benchmarks.cell import combinations, name_cell

    asked = [
        name_cell(protocol, method, seed=seed, placement=where, mode=mode, changes=changes)
        for seed in numbers(seeds) or protocol.seeds
        for where in placements(protocol, placement) or (protocol.default_placement,)
        for method in dict.fromkeys(methods)
        for changes in combinations(settings)
    ]
    # A value of --set may be the protocol's own, which makes the same cell twice.
    return list({cell.path: cell for cell in asked}.values())


def table_of_methods(name: str) -> TableSpec:
    """A table whose rows a method can be compared with.

    Raises:
        UserError: there is none of that name, or its rows vary one method.
    """
    from benchmarks.report.spec import load_table

    spec = load_table(name)
    if spec.rows:
        raise UserError(f"--table {name}: its rows vary one method; take a table of methods")
    return spec


def named_of(
    spec: TableSpec,
    protocol: Protocol,
    methods: str,
    seeds: str,
    placement: str,
    mode: str,
    settings: Sequence[str],
) -> list[Cell]:
    """The cells of a table as the flags of a command ask for them, see `cell.name_cell`.

    Raises:
        UserError: a flag cannot be read, or does not fit the table.
    """
    if not spec.rows:
        asked = names(methods) or spec.methods
        return named(protocol, asked, seeds, placement, mode, settings)
    if settings:
        raise UserError(f"--set: the rows of {spec.name} say what they change")
    return _named_of_rows(spec, protocol, methods, seeds, placement, mode)


def _named_of_rows(
    spec: TableSpec, protocol: Protocol, factors: str, seeds: str, placement: str, mode: str
) -> list[Cell]:
    """The cells of a table of factors, or of some of them; none twice."""
    from benchmarks.cell import name_cell

    chosen = factors_of(spec, factors, placement)
    asked = [
        name_cell(
            protocol,
            line.method,
            seed=seed,
            placement=line.placement,
            mode=mode,
            changes=line.changes,
        )
        for seed in numbers(seeds) or protocol.seeds
        for line in spec.lines(protocol, mode)
        if not chosen or line.factor in ("", *chosen)
    ]
    return list({cell.path: cell for cell in asked}.values())


def factors_of(spec: TableSpec, asked: str, placement: str) -> tuple[str, ...]:
    """The factors that --methods names where a table has them; none for "".

    Raises:
        UserError: no such factor, or a placement, which is each row's own.
    """
    if placement not in ("", "default"):
        raise UserError(f"--placement {placement}: every row of {spec.name} has its own")
    for name in names(asked):
        if name not in spec.rows:
            known = closest(name, spec.rows)
            raise UserError(
                f"--methods {name}: {spec.name} has no such factor{known}: {', '.join(spec.rows)}"
            )
    return names(asked)


def train_missing(
    cells: Sequence[Cell], out: Path, data_root: Path, device: str, workers: int
) -> None:
    """Train the cells here; whatever the user has to fix ends the command."""
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

    # SIGTERM ends Python without clean-up: workers would train on without anyone to report to.
    end_workers_on_sigterm()
    records = {plan.out / cell.path: str(cell) for cell in plan.cells}
    with console.progress(len(plan.cells), records) as report:
        outcome = work(report)
    for line in outcome.summary():
        console.say(line)
    return outcome
