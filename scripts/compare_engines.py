"""Trains the same cells of Table 2 under both engines and prints how far their scores lie apart.

Needs Detectron2. Cells that have a record in the folder are not run again:

    python scripts/compare_engines.py results/runs/engines [--methods freeze,lora] [--seeds 5,6,7]
"""

import sys
from pathlib import Path

import typer
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cell import make_cell, prepare  # noqa: E402
from benchmarks.commands import arguments  # noqa: E402
from benchmarks.detection.engines import FALLBACK, REFERENCE  # noqa: E402
from benchmarks.errors import UserError  # noqa: E402
from benchmarks.protocol import MARGIN  # noqa: E402
from benchmarks.record import Record  # noqa: E402
from benchmarks.report import statistics  # noqa: E402
from benchmarks.report.spec import TableSpec, load_table  # noqa: E402
from benchmarks.report.statistics import Difference, Summary  # noqa: E402
from benchmarks.report.table import values_by_seed  # noqa: E402
from benchmarks.run import run_cell  # noqa: E402
from benchmarks.sweep import Plan, sweep  # noqa: E402

ENGINES = (REFERENCE, FALLBACK)
HEADINGS = ("method", "domain", "n", *ENGINES, f"{REFERENCE} - {FALLBACK}", "engines")


def main(
    out: Path,
    methods: str = "",
    seeds: str = "",
    profile: str = "mini",
    data_root: Path | None = None,
    workers: int = 1,
) -> None:
    """Run the cells that have no record yet, then print the table."""
    spec = load_table("table2")
    protocol = spec.protocol(profile)
    root = arguments.data_root(protocol, data_root)
    chosen = arguments.names(methods) or spec.methods
    plans = {}
    for engine in ENGINES:
        held_fixed = protocol.model_copy(update={"engine": engine})
        cells = [
            make_cell(held_fixed, method, seed=seed)
            for seed in arguments.numbers(seeds) or protocol.seeds
            for method in chosen
        ]
        # A folder for each engine: their records have one path, and another digest.
        plans[engine] = Plan(prepare(cells, root, out), out / engine, root, "cpu", run_cell)
    for plan in plans.values():
        outcome = arguments.reported(plan, lambda report, plan=plan: sweep(plan, workers, report))
        if outcome.exit_code:
            raise typer.Exit(outcome.exit_code)
    rows = [row for method in chosen for row in compared(spec, protocol.selection, method, plans)]
    print(tabulate(rows, HEADINGS, tablefmt="pipe", disable_numparse=True))
    print(
        f"\n{spec.metric} in percent: mean ± sample standard deviation over n seeds; differences "
        f"are paired by seed with a 95 % t interval. agrees = it lies within {MARGIN:g} "
        "point of 0, differs = it does not and excludes 0, cannot tell = neither."
    )


def compared(
    spec: TableSpec, rule: str, method: str, plans: dict[str, Plan]
) -> list[tuple[str, ...]]:
    """One row per column of the table."""
    both = []
    for engine in ENGINES:
        cells, out = plans[engine].cells, plans[engine].out
        records = [Record.load(out / cell.path) for cell in cells if cell.method == method]
        both.append(values_by_seed(records, rule, spec.metric, spec.domains, spec.sources))
    rows = []
    for key, heading in spec.headings.items():
        reference, other = (values[key] for values in both)
        result = statistics.paired(reference, other)
        scores = (score(statistics.summarise(list(row.values()))) for row in (reference, other))
        verdict = statistics.agreement(result)
        rows.append((method, heading, str(len(reference)), *scores, difference(result), verdict))
    return rows


def score(summary: Summary | None) -> str:
    """Mean ± deviation."""
    if summary is None:
        return "-"
    return f"{summary.mean:.1f}" + (f" ± {summary.sd:.1f}" if summary.sd is not None else "")


def difference(result: Difference | None) -> str:
    """Mean [interval]."""
    if result is None:
        return "-"
    if result.low is None:
        return f"{result.mean:+.1f}"
    return f"{result.mean:+.1f} [{result.low:+.1f}, {result.high:+.1f}]"


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
