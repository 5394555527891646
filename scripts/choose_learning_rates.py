"""Chooses the backbone learning rate of every method on held-out source images.

Every method gets the same four trials with one seed that no table uses. The protocol
`mini_gtav_source` names no target domain, so no target image is read. Prints the winner of each
method and writes all trials to results/mini/learning_rates.csv, where the rows of methods that
were not asked for stay as they are:

    python scripts/choose_learning_rates.py --workers 2 [--methods mica,svf]
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from baselines import METHODS  # noqa: E402
from benchmarks.arguments import names  # noqa: E402
from benchmarks.cell import Cell, make_cell  # noqa: E402
from benchmarks.claim import Plan  # noqa: E402
from benchmarks.listing import progress  # noqa: E402
from benchmarks.protocol import load_protocol  # noqa: E402
from benchmarks.record import Record  # noqa: E402
from benchmarks.run import run_cell  # noqa: E402
from benchmarks.segmentation import fingerprints  # noqa: E402
from benchmarks.sweep import sweep  # noqa: E402

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SEED = 100


def trials(methods: Sequence[str], data_root: Path) -> list[Cell]:
    """All methods times all rates."""
    protocol = load_protocol("mini_gtav_source")
    data = fingerprints(protocol, data_root)
    return [
        make_cell(protocol, method, seed=SEED, changes={"recipe": {"backbone_lr": rate}}, data=data)
        for method in methods
        for rate in RATES
    ]


def kept(summary: Path, methods: Sequence[str]) -> list[dict[str, str]]:
    """The rows of other methods."""
    if not summary.is_file():
        return []
    with summary.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["method"] not in methods]


def main(
    methods: str = ",".join(name for name in METHODS if name != "freeze"),
    data_root: Path = ROOT / "data/mini",
    workers: int = 2,
    out: Path = ROOT / "results/runs",
    summary: Path = ROOT / "results/mini/learning_rates.csv",
) -> None:
    """Run the trials that have no record yet, then choose."""
    chosen = names(methods)
    cells = trials(chosen, data_root)
    with progress(len(cells)) as report:
        outcome = sweep(Plan(tuple(cells), out, data_root, "cpu", run_cell), workers, report, False)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    rows = []
    for cell in cells:
        score = Record.load(out / cell.path).evaluations[-1].domains["gtav_held_out"]
        rate = cell.protocol.recipe.backbone_lr
        rows.append({"method": cell.method, "backbone_lr": rate, "miou": score.metrics["mIoU"]})
    for row in rows:
        best = max((r for r in rows if r["method"] == row["method"]), key=lambda r: r["miou"])
        row["chosen"] = int(row is best)
        if row is best:
            print(f"{row['method']:<14} {row['backbone_lr']:g}  ({row['miou']:.2f} mIoU)")
    others = kept(summary, chosen)
    with summary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows([*others, *rows])


if __name__ == "__main__":
    typer.run(main)
