"""Do methods rank alike under another backbone or head? Kendall's tau between two sets of records.

python scripts/compare_rankings.py FIRST SECOND [--placement last-two-thirds]

FIRST and SECOND are folders of a protocol's records, such as results/reference/mini_gtav and
results/runs/mini_gtav_m2f. Prints the unseen average of every row that both have, each the mean
over its seeds, tau between the two columns, and as a yardstick tau between single seeds of each:
two rankings cannot agree better than the seeds of one.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.errors import UserError
from benchmarks.report.records import read_records
from benchmarks.report.statistics import discrimination, kendall
from benchmarks.tasks import PROTOCOLS


def unseen(folder: Path, placement: str) -> dict[str, dict[int, float]]:
    """Row -> seed -> mean over the targets, in percent, of the records in `folder`.

    Raises:
        UserError: there are none.
    """
    values: dict[str, dict[int, float]] = {}
    for record in read_records([folder.parent], folder.name, "controlled").values():
        if record.status == "done" and record.placement in (placement, "none"):
            metric = PROTOCOLS[record.cell["protocol"]["task"]].metric
            scores = record.evaluations[-1].domains.values()
            mean = fmean(score.metrics[metric] for score in scores if score.role == "target")
            values.setdefault(record.label, {})[record.seed] = mean
    if not values:
        raise UserError(f"{folder}: no records of placement {placement}; give a protocol's folder")
    return values


def main() -> None:
    """Print the two columns and the taus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("first", "second"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--placement", default="last-two-thirds")
    args = parser.parse_args()
    folders = args.first, args.second
    first, second = (unseen(folder, args.placement) for folder in folders)
    rows = sorted(set(first) & set(second), key=lambda row: -fmean(first[row].values()))
    means = [{row: fmean(values[row].values()) for row in rows} for values in (first, second)]
    names = [folder.name for folder in folders]
    print(
        tabulate([[row, *(m[row] for m in means)] for row in rows], ["row", *names], floatfmt=".1f")
    )
    tau, _ = kendall(means)
    print(f"tau over {len(rows)} rows: {_text(tau)}")
    for name, values in zip(names, (first, second), strict=True):
        if own := discrimination({row: values[row] for row in rows}):
            print(f"between single seeds of {name}: {_text(own.tau)} ({own.pairs} pairs)")


def _text(tau: float | None) -> str:
    return "-" if tau is None else f"{tau:.2f}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
