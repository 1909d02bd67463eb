"""Intervals that cover what they promise, tests and effect sizes worked by hand, rankings that know their doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medcyclegan.evaluation import statistics
from medcyclegan.evaluation.statistics import holm, mean_interval, paired_difference, ranking


def coverage(seed: int, kind: str) -> float:
    """Part of 1,000 cohorts of 30 whose interval holds the true mean."""
    random = np.random.default_rng(seed)
    covered = 0
    for cohort in range(1000):
        if kind == "normal":
            values, truth = random.normal(60, 12, 30), 60.0
        else:  # skewed, as errors in HU are
            values, truth = random.lognormal(math.log(60), 0.3, 30), 60 * math.exp(0.045)
        found = mean_interval(values, resamples=2000, seed=cohort)
        covered += found.low <= truth <= found.high
    return covered / 1000


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_interval_covers_the_truth_as_often_as_it_says(kind: str) -> None:
    assert 0.93 <= coverage(1, kind) <= 0.97


def test_it_is_the_bca_interval_of_scipy_but_for_the_small_cohort() -> None:
    """With the tail that is not widened the limits are scipy's, up to the draws."""
    values = np.random.default_rng(5).gamma(2, 30, 30)
    n = values.size
    # the confidence whose widened tail is 2.5 %
    tail = stats.t.sf(-stats.norm.ppf(0.025) / math.sqrt(n / (n - 1)), n - 1)
    found = mean_interval(values, confidence=1 - 2 * tail, resamples=100_000)
    draws = np.random.default_rng(9)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=draws).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)
    widened = mean_interval(values)
    assert widened.low < found.low and widened.high > found.high
    assert mean_interval(values) == widened


@pytest.mark.parametrize("kind", ["skewed", "biased"])
def test_the_limits_are_efrons_to_the_last_digit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Efron 1987: alpha' = Phi(z0 + (z0 + z) / (1 - a (z0 + z))), each step from the draws themselves.

    The mean has hardly any bias of its own, so the draws of the second kind are shifted: z0 then counts twice.
    """
    values = [3.0, 5.0, 6.0, 8.0, 9.0, 14.0, 40.0]
    draws = np.random.default_rng(1).choice(values, (4000, 7)).mean(axis=1)
    if kind == "biased":
        draws = draws - 2.5
    monkeypatch.setattr(statistics, "_resampled_means", lambda x, resamples, seed: draws)
    n, mean = 7, sum(values) / 7
    z0 = stats.norm.ppf(sum(1.0 if d < mean else 0.5 if d == mean else 0.0 for d in draws) / 4000)
    assert abs(z0) > (0.5 if kind == "biased" else 0.02)
    # The influence of patient i by leaving it out (equation 6.6 and its jackknife form).
    left_out = [(sum(values) - v) / (n - 1) for v in values]
    influence = [sum(left_out) / n - m for m in left_out]
    a = sum(u**3 for u in influence) / (6 * sum(u**2 for u in influence) ** 1.5)
    assert a > 0.1
    z = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)
    expected = [np.quantile(draws, stats.norm.cdf(z0 + (z0 + side) / (1 - a * (z0 + side)))) for side in (-z, z)]
    found = mean_interval(values, resamples=4000)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)


def test_no_interval_without_enough_patients_or_numbers() -> None:
    few = mean_interval([1, 2, 3, 4])
    assert math.isnan(few.low) and few.reason == "an interval needs at least 5 cases"
    assert mean_interval([1, 2, 3, 4, math.inf]).reason == "a value is not finite"
    alike = mean_interval([3.0] * 6)
    assert (alike.low, alike.high, alike.reason) == (3, 3, None)


def test_holm_worked_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = holm([0.02, math.nan, 0.6])
    assert with_gap[0] == pytest.approx(0.04) and math.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.6)
    assert holm([0.9, 0.8]) == [1, 1]


def test_paired_difference_worked_by_hand() -> None:
    a = np.array([10.0, 10, 10, 10, 10, 10])
    b = a + np.array([-1.0, -2, -3, -4, -5, 6])
    found = paired_difference(a, b, "lower")
    assert found.difference == -1.5 and found.n == 6
    assert found.win_rate == pytest.approx(5 / 6)
    # ranks 1 to 5 speak for B and rank 6 against it
    assert found.effect_size == pytest.approx((15 - 6) / 21)
    # of the 64 signs, those with a sum of ranks of at most 6 on one side: 14 of them (1, 2, 3, 4, 5, 6, 1+2, ...)
    at_most = sum(
        sum(rank for rank, sign in zip(range(1, 7), np.binary_repr(i, 6), strict=True) if sign == "1") <= 6
        for i in range(64)
    )
    assert found.p_value == pytest.approx(2 * at_most / 64)
    other = paired_difference(a, b, "higher")
    assert (other.win_rate, other.effect_size) == (pytest.approx(1 / 6), pytest.approx(-9 / 21))
    assert found.interval.low < -1.5 < found.interval.high


def test_signed_scores_are_compared_by_magnitude_and_ties_count_half() -> None:
    found = paired_difference([-10.0, 10, 5, -5], [1.0, -1, 5, 5], "zero")
    assert found.difference == -4.5  # |b| - |a|: -9, -9, 0, 0
    assert found.win_rate == 0.75
    same = paired_difference([1.0, 2], [1.0, 2], "lower")
    assert math.isnan(same.p_value) and same.reason == "no patient differs" and same.effect_size == 0


def test_what_cannot_be_compared_is_refused() -> None:
    for a, b, better in (([1.0], [1.0, 2], "lower"), ([], [], "lower"), ([1.0], [math.nan], "lower"), ([1], [2], "up")):
        with pytest.raises(ValueError):
            paired_difference(a, b, better)  # type: ignore[arg-type]


def test_a_clear_ranking_is_firm_and_a_close_one_is_not() -> None:
    random = np.random.default_rng(0)
    base = random.normal(60, 15, (12, 2))
    clear = np.stack([base + 20, base, base + 10])
    found = ranking(clear)
    assert found.order == (1, 2, 0)
    assert found.rank.tolist() == [3, 1, 2] and found.mean_rank.tolist() == [3, 1, 2]
    assert found.kept.tolist() == [1, 1, 1] and found.best.tolist() == [0, 1, 0]
    assert found.kendall_tau == 1
    close = np.stack([base, base + random.normal(0, 1, base.shape), base + 30])
    unsure = ranking(close)
    assert unsure.rank[2] == 3 and unsure.kept[2] == 1
    assert unsure.kept[0] < 1 and unsure.kendall_tau < 1 and unsure.rank_low[0] < unsure.rank_high[0]
    tied = ranking(np.zeros((2, 4, 1)))
    assert tied.rank.tolist() == [1.5, 1.5] and tied.best.tolist() == [1, 1]
    with pytest.raises(ValueError):
        ranking(np.zeros((1, 4, 1)))
