"""Statistics against hand values, scipy, and properties that must hold for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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
    opposite = {"better": "worse", "worse": "better", "unresolved": "unresolved"}
    assert statistics.verdict(one) == opposite[statistics.verdict(other)]


@quick
@given(ROWS)
def test_row_is_never_better_than_itself(values: list[float]) -> None:
    same = statistics.difference(by_seed(values), by_seed(values))
    assert statistics.verdict(same) == "unresolved"
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
        (interval(1.0, -0.5, 2.5), "unresolved", "cannot tell"),
        (interval(1.0, 0.0, 2.0), "unresolved", "cannot tell"),
        (interval(5.0, -12.4, 22.4), "unresolved", "cannot tell"),
        (interval(0.1, -0.8, 1.0), "unresolved", "agrees"),
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
