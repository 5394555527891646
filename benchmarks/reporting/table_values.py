"""The numbers of one row of a table, per column and seed."""

from collections.abc import Collection, Sequence

from benchmarks.record import Record
from benchmarks.reporting import statistics
from benchmarks.reporting.selection import mean_of_role, select
from benchmarks.reporting.table_spec import AVERAGE, AVERAGE_ALL, SOURCE


def values_by_seed(
    records: Sequence[Record],
    rule: str,
    metric: str,
    targets: Collection[str],
    sources: Collection[str] = (),
    extras: Collection[str] = (),
) -> dict[str, dict[int, float]]:
    """Column key -> seed -> percent, for the done records of one row; averages per seed first.

    `targets` are averaged; `sources`, test splits of source domains, only in the average of all;
    `extras` in none.
    """
    averages = (AVERAGE, AVERAGE_ALL) if sources else (AVERAGE,)
    columns = (*sources, *targets, *averages, SOURCE, *extras)
    values: dict[str, dict[int, float]] = {key: {} for key in columns}
    for record in records:
        chosen = select(record.evaluations, rule, metric) if record.status == "done" else None
        if chosen is None:
            continue
        scores: dict[str, float | None] = {}
        for name in (*sources, *targets, *extras):
            value = chosen.domains[name].metrics.get(metric) if name in chosen.domains else None
            scores[name] = value if isinstance(value, float) else None
        everywhere = statistics.average([scores[name] for name in (*sources, *targets)])
        scores[AVERAGE] = statistics.average([scores[target] for target in targets])
        if sources:
            scores[AVERAGE_ALL] = everywhere
        scores[SOURCE] = mean_of_role(chosen, "validation", metric)
        for key, score in scores.items():
            if score is not None:
                values[key][record.seed] = score
    return values
