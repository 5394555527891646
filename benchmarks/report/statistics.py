"""Uncertainty of table entries: summaries over seeds, differences, verdicts, rank agreement.

Values are percent. Everything is a pure function of numbers; no random resampling.
Source of the conventions: sample standard deviation (ddof=1) and Student's t, with n always shown.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
# A difference below this counts as none. Nobody should choose a method by less: the test resolution
# alone moves published numbers by twice as much (PITFALLS.md).
MARGIN = 1.0


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof=1; None below two values) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % t interval; `low` and `high` are None below two values.

    Attributes:
        n: pairs of seeds, or the smaller of the two numbers of values. paired: by seed or not.
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


@dataclass(frozen=True)
class Discrimination:
    """How well a set of methods can be told apart.

    Attributes:
        spread: largest minus smallest mean of a method. seed_sd: median over methods of the
            standard deviation over seeds. tau: Kendall's tau between the rankings of single seeds,
            mean over `pairs` pairs of seeds. None: not defined for these values.
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
    if np.ptp(differences) == 0:  # no spread, for which scipy has no interval
        return Difference(mean, mean, mean, n, paired=True)
    from scipy.stats import ttest_1samp  # slow to import, and one seed does not need it

    low, high = ttest_1samp(differences, 0).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), n, paired=True)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    """Difference of two means of unpaired values with Welch's t interval; None without values."""
    if not ours or not theirs:
        return None
    mean, n = float(np.mean(ours) - np.mean(theirs)), min(len(ours), len(theirs))
    if n < 2:
        return Difference(mean, None, None, n, paired=False)
    if np.ptp(ours) == np.ptp(theirs) == 0:
        return Difference(mean, mean, mean, n, paired=False)
    from scipy.stats import ttest_ind

    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), n, paired=False)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Paired where the two share seeds (at least two, or all there are), else Welch."""
    shared = set(ours) & set(theirs)
    if len(shared) > 1 or (shared and min(len(ours), len(theirs)) == 1):
        return paired(ours, theirs)
    return welch(list(ours.values()), list(theirs.values()))


def verdict(found: Difference | None) -> str:
    """Word for a difference: better, worse, unresolved (interval contains 0), one seed, or -."""
    if found is None:
        return "-"
    if found.low is None:
        return "one seed"
    if not found.excludes_zero:
        return "unresolved"
    return "better" if found.mean > 0 else "worse"


def agreement(found: Difference | None, rounding: float = 0.05) -> str:
    """Whether a repeated measurement agrees with its reference: a test of equivalence.

    Returns:
        "agrees" when the whole interval lies within `MARGIN` of 0, or one seed gives the same
        printed digits (less than `rounding` apart); "differs" when the interval excludes 0;
        "cannot tell"; "one seed" when there is a difference but no interval; or "-".
    """
    if found is None:
        return "-"
    if found.low is None:
        return "agrees" if abs(found.mean) < rounding else "one seed"
    if found.low >= -MARGIN and found.high <= MARGIN:
        return "agrees"
    return "differs" if found.excludes_zero else "cannot tell"


def stands_among(found: Difference, comparisons: int) -> bool:
    """Whether a paired difference excludes 0 after Bonferroni's correction.

    The interval is widened to the level 1 - 0.05 / comparisons.
    """
    if not found.excludes_zero:
        return False
    level, freedom = (1 - CONFIDENCE) / 2, found.n - 1
    widen = stdtrit(freedom, 1 - level / comparisons) / stdtrit(freedom, 1 - level)
    return abs(found.mean) > widen * (found.high - found.low) / 2


def kendall(by_seed: Sequence[Mapping[str, float]]) -> tuple[float | None, int]:
    """Mean Kendall tau-b between the rankings of single seeds, and the number of pairs of seeds.

    Args:
        by_seed: per seed, method -> value. Only methods that both seeds of a pair have count;
            a pair with fewer than two, or without any order, is left out.
    """
    from scipy.stats import kendalltau  # slow to import, and only tables with two seeds need it

    taus = []
    for first, second in itertools.combinations(by_seed, 2):
        methods = sorted(set(first) & set(second))
        if len(methods) < 2:
            continue
        tau = kendalltau([first[m] for m in methods], [second[m] for m in methods]).statistic
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
        seed_sd=float(np.median(sds)) if sds else None,
        tau=tau,
        pairs=pairs,
    )
