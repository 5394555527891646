"""Uncertainty of table entries: summaries over seeds, differences, verdicts, rank agreement.

Values are percent. Everything is a pure function of numbers; no random resampling.
Source of the conventions: sample standard deviation (ddof=1) and Student's t, with n always shown.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import chdtri, digamma, fdtrc, ndtri, polygamma, stdtr, stdtrit

from benchmarks.protocol import MARGIN

CONFIDENCE = 0.95
# How far Avg of the same seed lies apart on two types of processor, in points: the larger of 0.01
# and 0.02, measured on mini with MKL made to choose its kernels as on Intel. A tiny cell on a real
# Intel processor had the scores of an AMD one (scripts/golden.py).
PROCESSOR_SPREAD = 0.02
WITHIN = f"within {MARGIN:g} point"
WORDS = ("better", "worse", WITHIN, "cannot tell")
# A row this improbably noisy, given the others, is judged by its own variance alone.
HYPERVARIABLE = 0.1
# Of the quasi-random rule behind simultaneous intervals: half widths to about 0.5 %.
POINTS = 2**15


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof=1; None below two values) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval; `low` and `high` are None below two values.

    Attributes:
        n: pairs of seeds, or the smaller of the two numbers of values.
        paired: by seed or not.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    paired: bool

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and does not contain 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def widened(self, by: float) -> "Difference":
        """With an interval that reaches `by` further on both sides; without one, as it is."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=self.low - by, high=self.high + by)

    @property
    def within_margin(self) -> bool:
        """Whether the interval exists and lies within `MARGIN` of 0."""
        return self.low is not None and self.low >= -MARGIN and self.high <= MARGIN


@dataclass(frozen=True)
class Discrimination:
    """How well a set of methods can be told apart.

    Attributes:
        spread: largest minus smallest mean of a method.
        seed_sd: median over methods of the standard deviation over seeds.
        tau: Kendall's tau between the rankings of single seeds, mean over `pairs` pairs of seeds.
            None: not defined for these values.
    """

    spread: float
    seed_sd: float | None
    tau: float | None
    pairs: int

    @property
    def ratio(self) -> float | None:
        """Spread in units of seed noise; None without noise to compare with."""
        return self.spread / self.seed_sd if self.seed_sd else None


def summarise(values: Sequence[float]) -> Summary | None:
    """Summary of the values of several seeds; None for no values."""
    if not values:
        return None
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), sd, len(values))


def average(values: Sequence[float | None]) -> float | None:
    """Unweighted mean over domains of one seed; None where a domain is missing."""
    known = [value for value in values if value is not None]
    # Over fewer domains it would be another quantity under the same name.
    return float(np.mean(known)) if known and len(known) == len(values) else None


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Mean of ours - theirs over the seeds both have, with a t interval; None without a pair."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    mean, n = float(differences.mean()), len(seeds)
    if n < 2:
        return Difference(mean, None, None, n, paired=True)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * differences.std(ddof=1) / math.sqrt(n)
    return Difference(mean, float(mean - half), float(mean + half), n, paired=True)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    """Difference of two means of unpaired values with Welch's t interval; None without values."""
    if not ours or not theirs:
        return None
    mean, n = float(np.mean(ours) - np.mean(theirs)), min(len(ours), len(theirs))
    if n < 2:
        return Difference(mean, None, None, n, paired=False)
    # Without noise Welch's degrees of freedom are 0 / 0.
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return Difference(mean, mean, mean, n, paired=False)
    from scipy.stats import ttest_ind

    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), n, paired=False)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Paired where the two share seeds (at least two, or all there are), else Welch."""
    shared = set(ours) & set(theirs)
    # One pair gives no interval: unpaired means say more, unless one value is all there is.
    if len(shared) > 1 or (shared and min(len(ours), len(theirs)) == 1):
        return paired(ours, theirs)
    return welch(list(ours.values()), list(theirs.values()))


def verdict(result: Difference | None) -> str:
    """The word for a difference, the same everywhere.

    Returns:
        "better" or "worse": the interval excludes 0. "within 1 point" (`MARGIN`): it contains 0 and
        lies inside the margin. "cannot tell": neither. "one seed": there is no interval. "-".
    """
    if result is None:
        return "-"
    if result.low is None:
        return "one seed"
    if result.excludes_zero:
        # Before the margin: a difference that stands is named, however small it is.
        return "better" if result.mean > 0 else "worse"
    return WITHIN if result.within_margin else "cannot tell"


def agreement(result: Difference | None, rounding: float = 0.05) -> str:
    """Whether a repeated measurement agrees with its reference: a test of equivalence.

    Returns:
        "agrees" when the whole interval lies within `MARGIN` of 0, or one seed gives the same
        printed digits (less than `rounding` apart); "differs" when the interval excludes 0;
        "cannot tell"; "one seed" when there is a difference but no interval; or "-".
    """
    if result is None:
        return "-"
    if result.low is None:
        return "agrees" if abs(result.mean) < rounding else "one seed"
    # Before zero, unlike `verdict`: what repeats to within the margin has served its purpose.
    if result.within_margin:
        return "agrees"
    return "differs" if result.excludes_zero else "cannot tell"


@dataclass(frozen=True)
class Judgement:
    """The differences that a table makes, judged together.

    Attributes:
        differences: (row, other) -> row minus other; None where they share no seed, and without an
            interval where they share one.
        rows: how many rows the noise is estimated from.
        freedom: residual degrees of freedom of all rows together.
        confidence: of a single interval, such that all hold together with `CONFIDENCE`.
    """

    differences: dict[tuple[str, str], Difference | None]
    rows: int
    freedom: int
    confidence: float


def judge(values: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]) -> Judgement:
    """Differences between rows with intervals that hold together (`CONFIDENCE`).

    Value = row + seed + noise, fitted by least squares, so that values may be missing. A row's
    noise is moderated by that of all rows (`_noise`). The intervals are simultaneous over `pairs`:
    Dunnett's (1955, JASA 50:1096) for one reference, Tukey's for all pairs, where all rows are
    equally noisy; where they are not, correlations follow from the estimated variances, and each
    interval has its own degrees of freedom (Hasler and Hothorn 2008, Biometrical Journal 50:793).

    Args:
        values: row -> seed -> percent. Rows of no pair count for the noise.
        pairs: of rows; those with fewer than two shared seeds get no interval and do not count.
    """
    shared = {(a, b): len(set(values[a]) & set(values[b])) for a, b in pairs}
    tested = [pair for pair in pairs if shared[pair] > 1]
    differences = {(a, b): paired(values[a], values[b]) for a, b in set(pairs) - set(tested)}
    if not tested:
        return Judgement(differences, 0, 0, CONFIDENCE)
    rows = {label: place for place, label in enumerate(k for k, v in values.items() if v)}
    seeds = sorted({seed for row in values.values() for seed in row})
    cells = [(rows[k], seeds.index(seed), v) for k in rows for seed, v in values[k].items()]
    row, seed, observed = (np.array(column) for column in zip(*cells, strict=True))
    # Seeds are blocks: what a seed does to all rows, by its head and order of data, is no noise.
    design = np.hstack([np.eye(len(rows))[row], np.eye(len(seeds))[seed]])
    identity = np.eye(len(rows))
    contrasts = np.array([identity[rows[a]] - identity[rows[b]] for a, b in tested])
    means, halves, freedom, level = _simultaneous(design, row, observed, contrasts)
    for pair, mean, half in zip(tested, means, halves, strict=True):
        low, high = float(mean - half), float(mean + half)
        differences[pair] = Difference(float(mean), low, high, shared[pair], paired=True)
    return Judgement(differences, sum(len(values[k]) > 1 for k in rows), freedom, 1 - level)


def repeated(
    ours: Mapping[str, Mapping[int, float]], theirs: Mapping[str, Mapping[int, float]]
) -> dict[str, Difference | None]:
    """Per row, a measurement minus an earlier one of the same cells, with intervals as `judge`'s.

    The noise is that of the paired differences; no seed is expected to differ from another. Rows
    with fewer than two shared seeds get what `difference` gives.
    """
    both = {label: sorted(set(ours[label]) & set(theirs.get(label, {}))) for label in ours}
    tested = [label for label, seeds in both.items() if len(seeds) > 1]
    results = {k: difference(ours[k], theirs.get(k, {})) for k in ours if k not in tested}
    if not tested:
        return results
    row = np.repeat(np.arange(len(tested)), [len(both[label]) for label in tested])
    observed = [ours[label][seed] - theirs[label][seed] for label in tested for seed in both[label]]
    identity = np.eye(len(tested))
    means, halves, *_ = _simultaneous(identity[row], row, np.array(observed), identity)
    for label, mean, half in zip(tested, means, halves, strict=True):
        low, high = float(mean - half), float(mean + half)
        results[label] = Difference(float(mean), low, high, len(both[label]), paired=True)
    return results


def _simultaneous(
    design: np.ndarray, row: np.ndarray, values: np.ndarray, contrasts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Contrasts of rows, half widths of their intervals, residual freedom, level of one interval.

    Args:
        design: (values, parameters) of ones and zeros, one parameter per row first.
        row: (values), the row of each.
        values: (values).
        contrasts: (contrasts, rows).
    """
    # Columns of rows and of seeds have one sum, so the design lacks a rank. Contrasts of rows do
    # not depend on how that is filled.
    inverse = np.linalg.pinv(design)
    residual = np.eye(len(values)) - design @ inverse
    # The trace of a projection is its rank: (rows - 1) (seeds - 1) where no value is missing.
    freedom = round(np.trace(residual))
    effects = inverse[: contrasts.shape[1]]
    # Rounded far below what is printed: equal values differ by 0, not by 1e-15.
    means = np.round(contrasts @ effects @ values, 9)
    variance, own_freedom = _noise(residual, row, values)
    # Rows that repeat to the digit: intervals without width, not 0 / 0.
    if not variance.any():
        return means, np.zeros(len(means)), freedom, 1 - CONFIDENCE
    root = contrasts @ np.linalg.cholesky(effects * variance[row] @ effects.T)
    errors = np.linalg.norm(root, axis=1)
    # The smaller of two, not Satterthwaite's sum: the prior is one estimate in both rows.
    least = np.where(contrasts != 0, np.minimum(own_freedom, freedom), np.inf).min(axis=1)
    # At the largest of them, where the level is lowest: intervals of the other rows get too long
    # rather than too short.
    level = _level(root / errors[:, None], max(1, round(least.max())))
    return means, errors * -stdtrit(least, level / 2), freedom, level


def _noise(
    residual: np.ndarray, row: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the noise in each row and its degrees of freedom.

    As limma's for genes (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3): the mean of the row's
    own variance and of a prior that all rows give, weighted by degrees of freedom. A row that is
    noisier than the others let expect (`prior` of the others, F test at 10 %) keeps its own
    variance and at most 2 (n - 1) degrees of freedom, much as hypervariable genes do in Phipson et
    al. (2016, Ann. Appl. Stat. 10:946): with few rows the prior would hide it.

    Args:
        residual: (values, values), takes values to residuals.
        row: (values), the row of each.
        values: (values).
    """
    squares = np.bincount(row, np.round(residual @ values, 9) ** 2)
    blocks = [residual[np.ix_(row == m, row == m)] for m in range(len(squares))]
    trace = np.array([np.trace(block) for block in blocks])
    # Not a row with one value, or with none that another row shares.
    known = trace > 1e-9
    own, shape = np.zeros(len(squares)), np.zeros(len(squares))
    own[known] = squares[known] / trace[known]
    # Of the chi-square that fits the quadratic form: n - 1 where no value is missing.
    shape[known] = trace[known] ** 2 / np.array([(b**2).sum() for b in blocks])[known]
    if not own.any():
        return own, shape
    # The mean where most rows repeat to the digit, whose median is 0.
    middle = np.median(own[known]) or own[known].mean()
    # limma's floor: 0 has no logarithm.
    own[known] = np.maximum(own[known], 1e-5 * middle)
    prior_freedom, centre = prior(own[known], shape[known])
    # Why moderated: from three seeds a row knows its variance with two degrees of freedom, and t is
    # 4.3. With what the other rows know of noise it comes near 2.
    weight = 0 if math.isinf(prior_freedom) else shape / (prior_freedom + shape)
    variance, freedom = centre + weight * (own - centre), prior_freedom + shape
    for m in np.flatnonzero(known):
        others = known & (np.arange(len(own)) != m)
        if others.sum() > 1:
            expected, usual = prior(own[others], shape[others])
            # No prior knows more than the rows that it comes from.
            expected = min(expected, trace[others].sum())
            # One-sided: a row that is quieter than the others gets no interval that is too short.
            if fdtrc(shape[m], expected, own[m] / usual) < HYPERVARIABLE:
                # n - 1 alone would give an ordinary row of three seeds, one in ten, an interval of
                # +-13; twice as many err about as seldom (scripts/simulate_judgement.py).
                variance[m], freedom[m] = own[m], min(freedom[m], 2 * shape[m])
    return variance, freedom


def prior(variances: np.ndarray, freedom: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and centre of the scaled inverse chi-square that variances come from.

    From the moments of their logarithms (Smyth 2004, section 6.2); both arguments are (n,).
    Infinite, with the pooled variance, where they differ by no more than their degrees of freedom
    explain.
    """
    logs = np.log(variances) - digamma(freedom / 2) + np.log(freedom / 2)
    spread = logs.var(ddof=1) - polygamma(1, freedom / 2).mean() if len(logs) > 1 else 0.0
    if spread <= 0:
        return math.inf, float(np.average(variances, weights=freedom))
    # Newton's iteration for trigamma(half) = spread, from limma's start.
    half = 0.5 + 1 / spread
    for _ in range(50):
        trigamma = polygamma(1, half)
        step = trigamma * (1 - trigamma / spread) / polygamma(2, half)
        half += step
        if -step < 1e-8 * half:
            break
    return 2 * float(half), float(np.exp(logs.mean() + digamma(half) - np.log(half)))


def _level(root: np.ndarray, freedom: int) -> float:
    """Error that every single interval may have, so that together they have 1 - `CONFIDENCE`.

    Args:
        root: (contrasts, rows) of unit rows, whose products are the correlations of the contrasts.
        freedom: of the multivariate t.
    """
    normal, scale = _draws(root.shape[1], freedom)
    largest = np.abs(normal @ root.T).max(axis=1) / scale
    level = 2 * stdtr(freedom, -np.quantile(largest, CONFIDENCE))
    # Between Bonferroni's and that of a single test, which bound it: the points are finitely many.
    return float(np.clip(level, (1 - CONFIDENCE) / len(root), 1 - CONFIDENCE))


@cache
def _draws(rows: int, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed quasi-random points: (points, rows) normal, (points) root of chi-square / freedom."""
    # Slow to import, and one seed does not need it.
    from scipy.stats.qmc import Sobol

    # One seed: the same records give the same digits. Off 0 and 1, where quantiles are infinite.
    uniform = Sobol(rows + 1, rng=0).random(POINTS).clip(1e-12, 1 - 1e-12)
    return ndtri(uniform[:, :rows]), np.sqrt(chdtri(freedom, uniform[:, rows]) / freedom)


def kendall(by_seed: Sequence[Mapping[str, float]]) -> tuple[float | None, int]:
    """Mean Kendall tau-b between the rankings of single seeds, and the number of pairs of seeds.

    Args:
        by_seed: per seed, method -> value. Only methods that both seeds of a pair have count;
            a pair with fewer than two, or without any order, is left out.
    """
    # Slow to import, and only tables with two seeds need it.
    from scipy.stats import kendalltau

    taus = []
    for first, second in itertools.combinations(by_seed, 2):
        methods = sorted(set(first) & set(second))
        if len(methods) < 2:
            continue
        tau = kendalltau([first[m] for m in methods], [second[m] for m in methods]).statistic
        # Where all values of a seed are equal there is no order, and tau is 0 / 0.
        if math.isfinite(tau):
            taus.append(float(tau))
    return (float(np.mean(taus)) if taus else None), len(taus)


def discrimination(values: Mapping[str, Mapping[int, float]]) -> Discrimination | None:
    """How well methods differ: `values` is method -> seed -> value; None below two methods."""
    present = {method: seeds for method, seeds in values.items() if seeds}
    if len(present) < 2:
        return None
    summaries = [summarise(list(seeds.values())) for seeds in present.values()]
    means = [summary.mean for summary in summaries if summary]
    sds = [summary.sd for summary in summaries if summary and summary.sd is not None]
    seeds = sorted({seed for row in present.values() for seed in row})
    by_seed = [{m: row[seed] for m, row in present.items() if seed in row} for seed in seeds]
    tau, pairs = kendall(by_seed)
    return Discrimination(
        spread=max(means) - min(means),
        # The median: one row that varies much does not speak for the others.
        seed_sd=float(np.median(sds)) if sds else None,
        tau=tau,
        pairs=pairs,
    )
