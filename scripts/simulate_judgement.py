"""How often the judgement of differences errs, and how often it finds one: by simulation.

python scripts/simulate_judgement.py [TABLES]

Prints, for tables of 8 and 20 rows with 3 and 5 seeds whose rows differ in nothing but noise, how
many in 100 tables call any row better or worse than the reference (wanted: 3 to 7 of 100), and how
often a row that is 1.5 seed deviations apart is told from it, beside the plain paired t interval,
with Bonferroni's correction and without one. About a minute on one core with 1,000 tables.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import t
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import statistics
from benchmarks.report.statistics import CONFIDENCE, judge

EFFECT = 1.5  # a difference, in deviations between seeds
NOISE = ("equal", "4x apart", "one row 4x", "reference 4x")
HEADINGS = (
    "rows",
    "seeds",
    "deviations",
    "errs",
    "plain t",
    "power",
    "t with Bonferroni",
    "ratio",
    "plain t alone",
)


def deviations(kind: str, rows: int) -> np.ndarray:
    """Deviation of the noise of R rows, (R,), the reference first."""
    return {
        "equal": np.ones(rows),
        # Shuffled for every table, so that the reference is any of them.
        "4x apart": np.geomspace(0.5, 2, rows),
        "one row 4x": np.r_[np.ones(rows - 1), 4],
        "reference 4x": np.r_[4, np.ones(rows - 1)],
    }[kind]


def simulate(rows: int, seeds: int, kind: str, tables: int) -> dict[str, float]:
    """Rates in percent over `tables` random tables, always the same ones.

    Returns:
        errors, errors_t: tables in which any row is called better or worse though none is, with
        `judge` and with plain paired t intervals. power, power_bonferroni, power_t: rows that are
        told from the reference, were they `EFFECT` deviations apart.
    """
    # Every setting has draws of its own, so that one can be run without those before it.
    random = np.random.default_rng([rows, seeds, NOISE.index(kind)])
    labels = [str(row) for row in range(rows)]
    pairs = [(label, "0") for label in labels[1:]]
    usual = t.isf((1 - CONFIDENCE) / 2, seeds - 1)
    corrected = t.isf((1 - CONFIDENCE) / 2 / len(pairs), seeds - 1)
    counts: dict[str, list[float]] = {}
    for _ in range(tables):
        noise = deviations(kind, rows)
        if kind == "4x apart":
            random.shuffle(noise)
        values = noise[:, None] * random.standard_normal((rows, seeds))
        # The seeds' own effect, which pairing removes.
        values += 2 * random.standard_normal(seeds)
        table = {k: dict(enumerate(row.tolist())) for k, row in zip(labels, values, strict=True)}
        made = judge(table, pairs).differences
        means = np.array([made[pair].mean for pair in pairs])
        halves = np.array([made[pair].high - made[pair].mean for pair in pairs])
        plain = (values[1:] - values[0]).std(axis=1, ddof=1) / np.sqrt(seeds)
        # In deviations of the two rows, pooled: an effect of one size whatever their noise is.
        apart = np.abs(means + EFFECT * np.sqrt((noise[1:] ** 2 + noise[0] ** 2) / 2))
        for name, rate in {
            "errors": (np.abs(means) > halves).any(),
            "errors_t": (np.abs(means) > usual * plain).any(),
            "power": (apart > halves).mean(),
            "power_bonferroni": (apart > corrected * plain).mean(),
            "power_t": (apart > usual * plain).mean(),
        }.items():
            counts.setdefault(name, []).append(rate)
    return {name: 100 * float(np.mean(rates)) for name, rates in counts.items()}


def main(tables: int) -> None:
    """Print one line per setting, and which of them miss their target."""
    # Half widths to about 1 %, in a fourth of the time.
    statistics.POINTS = 2**12
    lines, missed = [], []
    for rows in (8, 20):
        for seeds in (3, 5):
            for kind in NOISE:
                result = simulate(rows, seeds, kind, tables)
                ratio = result["power"] / result["power_bonferroni"]
                names = ("errors", "errors_t", "power", "power_bonferroni")
                shown = [f"{result[name]:.1f} %" for name in names]
                shown += [f"{ratio:.1f}", f"{result['power_t']:.1f} %"]
                lines.append((rows, seeds, kind, *shown))
                if not 3 <= result["errors"] <= 7:
                    missed.append(f"{rows} rows, {seeds} seeds, {kind}: errs in {shown[0]}")
                if seeds == 3 and ratio < 2:
                    missed.append(f"{rows} rows, {seeds} seeds, {kind}: {ratio:.1f} x the power")
    print(tabulate(lines, HEADINGS, tablefmt="pipe", disable_numparse=True))
    error = 100 * np.sqrt(0.05 * 0.95 / tables)
    print(
        f"\n{tables} tables a line; a rate of 5 % is known to ± {error:.1f} (one standard error). "
        "errs: of 100 tables in which no row differs, those that say better or worse of any. "
        f"power: rows {EFFECT:g} seed deviations apart that are told from the reference; ratio: "
        "to paired t intervals that are Bonferroni-corrected for as many rows, which err as seldom."
    )
    print("\nout of the targets (3 to 7 %; twice the power at 3 seeds):", "; ".join(missed) or "-")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
