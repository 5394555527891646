"""Statistics against hand values, scipy, and properties that must hold for any numbers."""

import importlib.util
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from scipy import optimize, special, stats

from benchmarks.report import statistics
from benchmarks.report.statistics import Difference

VALUES = st.floats(min_value=0, max_value=100, allow_nan=False)
ROWS = st.lists(VALUES, min_size=2, max_size=6)
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=6)
quick = settings(max_examples=60, deadline=None)


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_standard_deviation_is_the_sample_one() -> None:
    summary = statistics.summarise([0.1, 0.2, 0.3])
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.2)
    assert summary.sd == pytest.approx(0.1)  # 0.0816 with ddof=0


def test_single_value_has_no_deviation_and_none_has_no_summary() -> None:
    assert statistics.summarise([3.0]) == statistics.Summary(3.0, None, 1)
    assert statistics.summarise([]) is None


def test_average_is_missing_where_a_domain_is_missing() -> None:
    assert statistics.average([1.0, 2.0]) == 1.5
    assert statistics.average([1.0, None]) is None
    assert statistics.average([]) is None


def test_paired_interval_by_hand() -> None:
    # differences 1, 2, 3: mean 2, sd 1, half width 4.3027 / sqrt(3)
    found = statistics.paired({0: 11, 1: 22, 2: 33, 9: 0}, {0: 10, 1: 20, 2: 30, 7: 5})
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.mean, found.n, found.paired) == (2.0, 3, True)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


@quick
@given(PAIRS)
def test_paired_interval_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (by_seed(list(values)) for values in zip(*pairs, strict=True))
    found = statistics.paired(ours, theirs)
    differences = np.array([a - b for a, b in pairs])
    if differences.std() < 1e-6:  # scipy warns of lost precision here
        assert found.low <= found.mean <= found.high
        return
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@quick
@given(ROWS, ROWS)
def test_welch_interval_is_that_of_scipy(ours: list[float], theirs: list[float]) -> None:
    if min(np.std(ours), np.std(theirs)) < 1e-3:
        return
    found = statistics.welch(ours, theirs)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


@quick
@given(PAIRS)
def test_difference_turns_its_sign_with_the_rows(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (by_seed(list(values)) for values in zip(*pairs, strict=True))
    one, other = statistics.paired(ours, theirs), statistics.paired(theirs, ours)
    assert one.mean == pytest.approx(-other.mean)
    opposite = {"better": "worse", "worse": "better"}
    word = statistics.verdict(one)
    assert statistics.verdict(other) == opposite.get(word, word)


@quick
@given(ROWS)
def test_row_is_never_better_than_itself(values: list[float]) -> None:
    same = statistics.difference(by_seed(values), by_seed(values))
    assert statistics.verdict(same) == "within 1 point"
    assert statistics.agreement(same) == "agrees"


def test_no_pair_gives_no_difference() -> None:
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None
    assert statistics.verdict(None) == "-"


def test_difference_pairs_shared_seeds_and_else_does_not() -> None:
    assert statistics.difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5, 2: 9.0}).paired
    assert not statistics.difference({0: 1.0, 1: 2.0}, {5: 1.5, 6: 2.5}).paired
    assert not statistics.difference({0: 1.0, 1: 2.0}, {1: 1.5, 6: 2.5}).paired
    assert statistics.difference({0: 1.0}, {0: 1.5, 1: 2.0}).paired


def interval(mean: float, low: float | None, high: float | None) -> Difference:
    return Difference(mean, low, high, 3 if low is not None else 1, paired=True)


@pytest.mark.parametrize(
    ("found", "verdict", "agreement"),
    [
        (interval(1.0, 0.5, 1.5), "better", "differs"),
        (interval(-1.0, -1.5, -0.5), "worse", "differs"),
        (interval(1.0, -0.5, 2.5), "cannot tell", "cannot tell"),
        (interval(1.0, 0.0, 2.0), "cannot tell", "cannot tell"),
        (interval(5.0, -12.4, 22.4), "cannot tell", "cannot tell"),
        (interval(0.1, -0.8, 1.0), "within 1 point", "agrees"),
        (interval(0.1, -1.01, 0.9), "cannot tell", "cannot tell"),
        (interval(0.01, 0.005, 0.015), "better", "agrees"),
        (interval(1.0, None, None), "one seed", "one seed"),
        (interval(0.0, None, None), "one seed", "agrees"),
    ],
)
def test_words_for_a_difference(found: Difference, verdict: str, agreement: str) -> None:
    assert statistics.verdict(found) == verdict
    assert statistics.agreement(found) == agreement


def test_kendall_is_the_mean_over_pairs_of_seeds() -> None:
    seeds = [{"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 2.0, "c": 3.0}]
    assert statistics.kendall(seeds) == (1.0, 1)
    # the third seed swaps b and c: tau 1/3 with each of the others
    tau, pairs = statistics.kendall([*seeds, {"a": 1.0, "b": 3.0, "c": 2.0}])
    assert (tau, pairs) == (pytest.approx((1 + 1 / 3 + 1 / 3) / 3), 3)
    assert statistics.kendall([{"a": 1.0, "b": 2.0}, {"b": 5.0, "a": 6.0}]) == (-1.0, 1)


def test_kendall_leaves_out_pairs_without_an_order() -> None:
    assert statistics.kendall([{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}]) == (None, 0)
    assert statistics.kendall([{"a": 1.0}, {"a": 1.0}]) == (None, 0)
    assert statistics.kendall([{"a": 1.0, "b": 2.0}]) == (None, 0)


def test_discrimination_by_hand() -> None:
    rows = {"a": {0: 1.0, 1: 3.0}, "b": {0: 10.0, 1: 10.2}, "c": {0: 5.0, 1: 6.0}, "d": {}}
    found = statistics.discrimination(rows)
    assert found.spread == pytest.approx(10.1 - 2.0)
    assert found.seed_sd == pytest.approx(1 / math.sqrt(2))  # median of 1.41, 0.14, 0.71
    assert found.ratio == pytest.approx(8.1 * math.sqrt(2))
    assert (found.tau, found.pairs) == (1.0, 1)


def test_discrimination_without_noise_or_methods_is_undefined() -> None:
    assert statistics.discrimination({"a": {0: 1.0}}) is None
    single = statistics.discrimination({"a": {0: 1.0}, "b": {0: 2.0}})
    assert (single.spread, single.seed_sd, single.ratio, single.tau) == (1.0, None, None, None)
    same = statistics.discrimination({"a": {0: 1.0, 1: 1.0}, "b": {0: 2.0, 1: 2.0}})
    assert same.ratio is None


@pytest.mark.parametrize(
    ("low", "high", "near", "far"),
    [
        (-0.985, 0.5, "agrees", "cannot tell"),  # reaches out of the margin
        (0.01, 1.5, "differs", "cannot tell"),  # reaches 0
        (0.5, 0.97, "agrees", "agrees"),
        (0.5, 1.5, "differs", "differs"),
    ],
)
def test_agreement_on_another_processor(low: float, high: float, near: str, far: str) -> None:
    made = Difference((low + high) / 2, low, high, 3, paired=True)
    assert statistics.agreement(made) == near
    assert statistics.agreement(made.widened(statistics.PROCESSOR_SPREAD)) == far
    single = Difference(0.3, None, None, 1, paired=True)
    assert single.widened(0.02) == single


# --- one judgement for the differences of a table ---


def table(values: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"r{row}": by_seed(cells.tolist()) for row, cells in enumerate(values)}


def noise(rows: int, seeds: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, seeds))


def to_first(values: dict[str, dict[int, float]]) -> list[tuple[str, str]]:
    first, *others = values
    return [(other, first) for other in others]


@quick
@given(PAIRS)
def test_two_rows_are_judged_by_the_paired_t_interval(pairs: list[tuple[float, float]]) -> None:
    a, b = (by_seed(list(values)) for values in zip(*pairs, strict=True))
    (found,) = statistics.judge({"a": a, "b": b}, [("a", "b")]).differences.values()
    plain = statistics.paired(a, b)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (plain.mean, plain.low, plain.high), abs=1e-6
    )


def test_intervals_of_equally_noisy_rows_are_dunnetts() -> None:
    # Rows whose noise is the same values in another order: no row is noisier than another, and
    # orders that sum to the same per seed leave no seed effect.
    base = np.array([1.0, -1.0, 0.5, -0.5])
    values = np.array([base, -base, base[::-1], -base[::-1]])
    values += np.array([[0], [1], [2], [30]])
    judged = statistics.judge(table(values), to_first(table(values)))
    freedom, pooled = 9, 4 * (base**2).sum() / 9
    assert (judged.rows, judged.freedom) == (4, freedom)
    for place, found in enumerate(judged.differences.values(), start=1):
        assert found.mean == pytest.approx(values[place].mean() - values[0].mean())
        # two-sided 5 % point of Dunnett's t, 3 comparisons, 9 degrees of freedom: 2.81 (his table)
        half = 2.81 * math.sqrt(2 * pooled / 4)
        assert found.high - found.mean == pytest.approx(half, rel=0.01)


@pytest.mark.parametrize(("rows", "freedom"), [(3, 6), (8, 16), (20, 40)])
def test_level_is_that_of_scipys_dunnett(rows: int, freedom: int) -> None:
    # scipy has no seed effects: its design with as many degrees of freedom has n values a row.
    n = freedom // rows + 1
    samples = np.random.default_rng(1).standard_normal((rows, n))
    made = stats.dunnett(*samples[1:], control=samples[0], rng=0).confidence_interval(0.95)
    error = math.sqrt(samples.var(axis=1, ddof=1).mean() * 2 / n)
    expected = (made.high - made.low)[0] / 2 / error
    contrasts = np.hstack([-np.ones((rows - 1, 1)), np.eye(rows - 1)]) / math.sqrt(2)
    level = statistics._level(contrasts, rows * (n - 1))
    assert stats.t.isf(level / 2, rows * (n - 1)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("rows", "freedom"), [(3, 4), (8, 14), (20, 38)])
def test_level_of_all_pairs_is_tukeys(rows: int, freedom: int) -> None:
    identity = np.eye(rows)
    pairs = itertools.combinations(range(rows), 2)
    contrasts = np.array([identity[a] - identity[b] for a, b in pairs]) / math.sqrt(2)
    expected = stats.studentized_range.ppf(0.95, rows, freedom) / math.sqrt(2)
    level = statistics._level(contrasts, freedom)
    assert stats.t.isf(level / 2, freedom) == pytest.approx(expected, rel=0.01)


def test_prior_is_that_of_limmas_formulas() -> None:
    # Smyth 2004, section 6.2: e_g = z_g - digamma(d/2) + log(d/2); trigamma(d0/2) = the variance of
    # e_g - trigamma(d/2); s0^2 = exp(mean of e_g + digamma(d0/2) - log(d0/2)), solved by bisection.
    variances, d = np.array([0.1, 0.3, 0.5, 0.9, 2.0, 4.5, 7.0]), 4
    e = np.log(variances) - special.digamma(d / 2) + math.log(d / 2)
    target = e.var(ddof=1) - special.polygamma(1, d / 2)
    half = optimize.brentq(lambda x: special.polygamma(1, x) - target, 1e-3, 1e6)
    centre = math.exp(e.mean() + special.digamma(half) - math.log(half))
    found = statistics.prior(variances, np.full(7, float(d)))
    assert found == pytest.approx((2 * half, centre), rel=1e-6)


def test_prior_is_the_one_that_variances_were_drawn_from() -> None:
    random = np.random.default_rng(0)
    true = 5 * 2.0 / random.chisquare(5, 20_000)  # scaled inverse chi-square: d0 = 5, s0^2 = 2
    variances = true * random.chisquare(3, 20_000) / 3
    assert statistics.prior(variances, np.full(20_000, 3.0)) == pytest.approx((5, 2), rel=0.06)


def test_prior_of_equal_variances_is_the_pooled_one() -> None:
    found = statistics.prior(np.array([1.0, 1.1, 0.9]), np.array([2.0, 2.0, 4.0]))
    assert found == (math.inf, pytest.approx((2 * 1.0 + 2 * 1.1 + 4 * 0.9) / 8))


def test_a_noisy_row_is_not_hidden_and_a_lucky_one_not_trusted() -> None:
    values = noise(8, 3)
    values[1] = [-10.0, 0.0, 10.0]
    values[2] = values[3:].mean(axis=0) + values[0].mean()  # follows the seeds: hardly any noise
    found = statistics.judge(table(values), to_first(table(values))).differences
    halves = {row: each.high - each.mean for (row, _), each in found.items()}
    usual = np.median(list(halves.values()))
    assert halves["r1"] > 4 * usual  # its own variance
    assert halves["r2"] > 0.7 * usual
    lone = statistics.paired(*(table(values)[row] for row in ("r2", "r0")))
    assert halves["r2"] > 2 * (lone.high - lone.mean)


def test_missing_values_are_fitted_by_least_squares() -> None:
    values = table(noise(5, 4) + 50)
    del values["r1"][2], values["r4"][0], values["r0"][3]
    found = statistics.judge(values, to_first(values)).differences
    # A second route: dummies for rows and for seeds but the first.
    cells = [(row, seed, v) for row, own in enumerate(values.values()) for seed, v in own.items()]
    dummies = [[*np.eye(5)[row], *np.eye(4)[seed][1:]] for row, seed, _ in cells]
    fit = np.linalg.lstsq(dummies, np.array([v for *_, v in cells]))[0]
    for place, each in enumerate(found.values(), start=1):
        assert each.mean == pytest.approx(fit[place] - fit[0], abs=1e-6)
    assert [each.n for each in found.values()] == [2, 3, 3, 2]
    assert statistics.judge(values, to_first(values)).freedom == 17 - 8


def test_one_shared_seed_gives_no_interval_and_none_no_difference() -> None:
    values = table(noise(4, 3))
    values["r1"] = {0: 1.0, 7: 2.0}
    values["r2"] = {8: 1.0, 9: 2.0}
    values["r3"] = {}
    values["r4"] = by_seed([5.0, 4.0, 7.0])
    found = statistics.judge(values, to_first(values)).differences
    one = found["r1", "r0"]
    assert (one.mean, one.low, one.n) == (pytest.approx(1.0 - values["r0"][0]), None, 1)
    assert found["r2", "r0"] is None
    assert found["r3", "r0"] is None
    assert found["r4", "r0"].low < found["r4", "r0"].high
    single = {label: by_seed([1.0]) for label in "abc"}
    assert statistics.judge(single, [("a", "b")]).differences["a", "b"].low is None


def test_rows_without_noise_differ_by_what_they_differ() -> None:
    values = table(np.array([[0.1, 0.7, 0.4], [0.1, 0.7, 0.4], [1.1, 1.7, 1.4]]))
    found = statistics.judge(values, to_first(values)).differences
    assert found["r1", "r0"] == Difference(0.0, 0.0, 0.0, 3, paired=True)
    assert (found["r2", "r0"].low, found["r2", "r0"].high) == (1.0, 1.0)


def test_order_of_a_pair_turns_the_sign_alone_and_digits_repeat() -> None:
    values = table(noise(6, 3))
    there = statistics.judge(values, [("r1", "r0"), ("r2", "r0")]).differences["r1", "r0"]
    back = statistics.judge(values, [("r0", "r1"), ("r0", "r2")]).differences["r0", "r1"]
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    again = statistics.judge(values, [("r1", "r0"), ("r2", "r0")]).differences["r1", "r0"]
    assert again == there


def test_repeated_measurements_share_their_noise() -> None:
    theirs = table(noise(6, 3) * 9)
    shift = np.random.default_rng(5).standard_normal((6, 3)) / 10
    ours = {
        label: {seed: value + shift[row, seed] for seed, value in own.items()}
        for row, (label, own) in enumerate(theirs.items())
    }
    ours["r5"] = {7: 1.0, 8: 2.0}
    found = statistics.repeated(ours, theirs)
    assert not found["r5"].paired  # Welch: no equal seeds
    for row in range(5):
        assert found[f"r{row}"].mean == pytest.approx(shift[row].mean())
    # five rows with 2 degrees of freedom, 1 % each: between Student's t with 10 and with 4
    error = math.sqrt(shift[:5].var(axis=1, ddof=1).mean() / 3)
    widths = [(found[f"r{row}"].high - found[f"r{row}"].mean) / error for row in range(5)]
    assert np.median(widths) == pytest.approx(3.2, abs=0.6)
    same = statistics.repeated(theirs, theirs)
    assert same["r0"] == Difference(0.0, 0.0, 0.0, 3, paired=True)


@pytest.fixture(scope="module")
def simulate() -> Callable[..., dict[str, float]]:
    """`simulate` of scripts/simulate_judgement.py."""
    spec = importlib.util.spec_from_file_location("sim", ROOT / "scripts/simulate_judgement.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.simulate


# The script's figures with 1,000 tables, -+ 4 standard errors of 200 tables.
@pytest.mark.parametrize("kind", ["equal", "4x apart", "one row 4x", "reference 4x"])
def test_errors_and_power_by_simulation(
    kind: str, simulate: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "POINTS", 2**11)
    statistics._draws.cache_clear()
    found = simulate(8, 3, kind, 200)
    statistics._draws.cache_clear()
    assert found["errors"] <= 5 + 4 * math.sqrt(5 * 95 / 200)
    assert found["errors_t"] > 1.5 * found["errors"]  # what a table of plain t intervals would do
    assert found["power"] > (1.5 if kind == "one row 4x" else 2) * found["power_bonferroni"]
