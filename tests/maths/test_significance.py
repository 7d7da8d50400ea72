"""Errors, intervals and tests against slow code, and against what they are for.

Of every test: a planted difference is found in 9 of 10 cases, and nothing in 93-97 % of cases where nothing is.
"""

from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from rareneuron.errors import InvalidConfig
from rareneuron.maths.significance import (
    ClusteredMean,
    against_null,
    bootstrap_interval,
    drift,
    holm,
    sums_by_context,
    trend,
)
from tests import oracles


def clustered(values, context, splits):
    """Stream the contexts in as many calls as `splits` says."""
    mean = ClusteredMean(values.shape[1])
    for contexts in np.array_split(np.unique(context), splits):
        chosen = np.isin(context, contexts)
        _, row = np.unique(context[chosen], return_inverse=True)
        sums = sums_by_context(torch.from_numpy(values[chosen]), torch.from_numpy(row), len(contexts))
        mean.add(sums, torch.from_numpy(np.bincount(row)))
    return mean


def test_mean_and_error_agree_with_a_loop_however_they_stream():
    rng = np.random.default_rng(0)
    context = np.sort(rng.integers(0, 12, 90))
    values = rng.normal(size=(90, 3)) + rng.normal(size=12)[context][:, None]
    for splits in (1, 3, 12):
        found = clustered(values, context, splits)
        for i in range(3):
            # sums of squares in float64: relative rounding
            assert np.isclose(found.mean[i], values[:, i].mean(), rtol=1e-12)
            truth = oracles.clustered_standard_error(values[:, i], context)
            assert np.isclose(found.standard_error[i], truth, rtol=1e-9)


def test_clustering_matters_and_covers():
    """95 % intervals cover the truth in 92-98 % of draws; errors that ignore contexts cover far less often."""
    rng = np.random.default_rng(1)
    context = np.repeat(np.arange(60), 10)
    covered = naive = 0
    for _ in range(300):
        values = (rng.normal(size=60)[context] + 0.5 * rng.normal(size=600))[:, None]
        found = clustered(values, context, 1)
        covered += abs(found.mean[0]) < 2 * found.standard_error[0]
        naive += abs(found.mean[0]) < 2 * values.std() / np.sqrt(600)
    assert 0.92 < covered / 300 < 0.985
    assert naive / 300 < 0.6


def test_one_context_says_nothing_about_the_error():
    found = clustered(np.ones((4, 2)), np.zeros(4, int), 1)
    assert np.isnan(found.standard_error).all()


# --- a value among null draws -------------------------------------------------------------------------------------


def test_against_null_counts_draws():
    draws = np.arange(1, 200) / 10
    found = against_null(19.5, draws)
    assert (found.p_above, found.p_below, found.p) == (6 / 200, 196 / 200, 12 / 200)  # 19.5 ... 19.9; itself among them
    assert (found.null_mean, found.n_draws) == (draws.mean(), 199)
    assert found.effect_size == (19.5 - draws.mean()) / draws.std(ddof=1)
    assert np.isclose((draws < found.null_low).mean(), 0.025, atol=1 / 199)
    assert np.isclose((draws > found.null_high).mean(), 0.025, atol=1 / 199)
    assert against_null(100.0, draws).p == 2 / 200  # never 0
    equal = against_null(1.0, np.ones(99))
    assert equal.p == 1
    assert np.isnan(equal.effect_size)


@pytest.mark.parametrize("n", [1, 98])
def test_no_p_value_from_a_few_draws(n):
    with pytest.raises(InvalidConfig, match=f"{n} null draws were given.*--n-random"):
        against_null(0.0, np.zeros(n))


def test_against_null_is_calibrated_and_has_power():
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(1000, 199))  # skewed: nothing is assumed about the shape
    null = [against_null(value, drawn) for value, drawn in zip(rng.exponential(size=1000), draws, strict=True)]
    for side in ("p", "p_above", "p_below"):
        assert 0.03 <= np.mean([getattr(found, side) <= 0.05 for found in null]) <= 0.07
    assert np.mean([against_null(5.0 + value, draws[0]).p <= 0.05 for value in rng.exponential(size=100)]) >= 0.9


# --- bootstrap over contexts --------------------------------------------------------------------------------------


def contexts(rng, columns, n=80):
    """Sums and sizes of contexts whose tokens move together; the mean per token of every column is 1."""
    n_tokens = rng.integers(1, 20, n)
    return n_tokens[:, None] * (1 + rng.normal(size=(n, columns))), n_tokens


def test_bootstrap_intervals_cover_and_those_over_tokens_do_not():
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(20):
        sums, n_tokens = contexts(rng, 50)
        low, high = bootstrap_interval(sums, n_tokens, rng, n_draws=500)
        covered += ((low <= 1) & (high >= 1)).sum()
        spread = 1.96 / np.sqrt(n_tokens.sum())  # as if tokens were independent
        naive += (np.abs(sums.sum(0) / n_tokens.sum() - 1) < spread).sum()
    assert 0.93 <= covered / 1000 <= 0.97  # a difference is found where there is none in 3-7 %
    assert naive / 1000 < 0.7


def test_bootstrap_agrees_with_a_loop_for_any_statistic():
    sums, n_tokens = contexts(np.random.default_rng(0), 2, n=30)
    picked = np.random.default_rng(1)
    drawn = []
    for _ in range(4000):
        rows = picked.integers(0, 30, 30)
        total = sums[rows].sum(0)
        drawn.append((total[0] - total[1]) / n_tokens[rows].sum())
    found = bootstrap_interval(
        sums, n_tokens, np.random.default_rng(2), lambda total, tokens: (total[:, 0] - total[:, 1]) / tokens,
        n_draws=4000, level=0.9,
    )  # fmt: skip
    assert found.shape == (2,)
    np.testing.assert_allclose(
        found, np.quantile(drawn, [0.05, 0.95]), atol=0.15 * np.std(drawn)
    )  # 3 errors, 2 x 4,000 draws
    again = bootstrap_interval(sums, n_tokens, np.random.default_rng(2))
    assert (again == bootstrap_interval(sums, n_tokens, np.random.default_rng(2))).all()


def test_bootstrap_finds_a_difference():
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(*contexts(rng, 1), rng, n_draws=500)[0, 0] > 0.5 for _ in range(100)]
    assert np.mean(found) >= 0.9  # the truth, 1, is four standard errors away from 0.5


def test_one_context_cannot_be_resampled():
    with pytest.raises(InvalidConfig, match="1 contexts can't be resampled"):
        bootstrap_interval(np.ones((1, 2)), np.array([3]), np.random.default_rng(0))


# --- against null draws -------------------------------------------------------------------------------------------


def test_what_is_not_a_number_speaks_for_nothing():
    draws = np.random.default_rng(0).normal(size=199)
    for value in (np.nan, np.inf, -np.inf):
        found = against_null(value, draws)
        assert np.isnan(found.effect_size)
    assert (against_null(np.nan, draws).p_above, against_null(np.nan, draws).p_below) == (1, 1)
    assert against_null(np.inf, draws).p_above == 1 / 200
    partly = against_null(9.0, np.concatenate([draws, np.full(10, np.nan), [np.inf]]))
    assert partly.p_above == 12 / 211  # ten and the infinite one count as extreme
    assert np.isclose(partly.null_mean, draws.mean())
    nothing = against_null(1.0, np.full(99, np.nan))
    assert (nothing.p_above, nothing.p_below) == (1, 1)
    assert np.isnan(nothing.null_mean)


# --- many tests ---------------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example():
    # sorted .005 .01 .03 .04 times 4 3 2 1, and never below the one before
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02], rtol=1e-12)
    assert (holm(np.array([0.9, 0.8])) == 1).all()
    assert holm(np.array([0.03]))[0] == 0.03


def test_holm_errs_in_one_table_of_twenty_and_bonferroni_finds_less():
    rng = np.random.default_rng(0)
    p = rng.random((2000, 12))
    assert 0.03 <= np.mean([holm(row).min() <= 0.05 for row in p]) <= 0.07
    assert np.mean(p.min(1) <= 0.05) > 0.4  # without it
    p[:, :8] *= 0.005  # eight true effects, two of a size that only a step-down correction finds
    assert np.mean([(holm(row)[8:] <= 0.05).any() for row in p]) <= 0.07
    adjusted = np.array([(holm(row)[:8] <= 0.05).mean() for row in p])
    assert adjusted.mean() > (p[:, :8] * 12 <= 0.05).mean()


# --- trend over steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, 1, 2, 3, 3, 3, 0], [5, 4, 4, 1, 1, 2], [0, 0, 0, 1], [1, 3, 2, 4, 6, 5, 7]])
def test_trend_is_exact_with_equal_values_too(values):
    """Against every order of the values."""

    def score(order):
        return sum(np.sign(order[j] - order[i]) for i in range(len(order)) for j in range(i + 1, len(order)))

    scores = np.abs([score(order) for order in permutations(values)])
    tau, p = trend(np.array(values, float))
    assert np.isclose(p, np.mean(scores >= abs(score(values))), rtol=1e-12)
    assert np.isclose(tau, kendalltau(range(len(values)), values).statistic, rtol=1e-12)


@pytest.mark.parametrize("n", [3, 10, 33, 34])
def test_trend_agrees_with_scipy(n):
    values = np.random.default_rng(n).normal(size=n)
    known = kendalltau(range(n), values)  # exact to 33, too
    np.testing.assert_allclose(trend(values), [known.statistic, known.pvalue], rtol=1e-12)
    np.testing.assert_allclose(trend(np.arange(n) * 1.0)[0], 1)


def test_equal_values_have_no_trend():
    assert np.isnan(trend(np.ones(5))).all()
    assert np.isnan(trend(np.ones(1))).all()


def test_trend_is_calibrated_and_has_power():
    rng = np.random.default_rng(0)
    for n in (10, 40):
        assert 0.03 <= np.mean([trend(rng.normal(size=n))[1] <= 0.05 for _ in range(1000)]) <= 0.07
    rising = np.arange(10) / 2
    assert np.mean([trend(rising + rng.normal(size=10))[1] <= 0.05 for _ in range(100)]) >= 0.9


# --- drift of a walk ----------------------------------------------------------------------------------------------


def test_drift_agrees_with_every_sign():
    """The slow way: all walks with these steps, up or down."""
    values = np.array([0.0, 0.2, 0.2, 0.1, 0.5, 0.9, 0.8])
    steps = np.diff(values)
    drawn = []
    for signs in product([1, -1], repeat=len(steps)):
        walk = np.round(np.concatenate([[0], np.cumsum(np.abs(steps) * signs)]), 9)
        pairs = [np.sign(b - a) for a, b in combinations(walk, 2)]
        drawn.append(sum(pairs) / np.sqrt(max(1, np.abs(pairs).sum())))
    pairs = [np.sign(b - a) for a, b in combinations(values, 2)]
    expected = np.mean(np.array(drawn) >= sum(pairs) / np.sqrt(np.abs(pairs).sum()) - 1e-9)
    tau, p, least = drift(values, np.random.default_rng(0))
    assert p == pytest.approx(expected)
    assert least == 1 / 32  # five steps that are not 0
    assert tau == pytest.approx(kendalltau(np.arange(7), values).statistic)


def test_many_steps_are_drawn_and_none_gives_nothing():
    tau, p, least = drift(np.arange(20.0), np.random.default_rng(0))
    assert tau == 1
    assert p == least == 1 / 4096
    tau, p, least = drift(np.zeros(8), np.random.default_rng(0))
    assert np.isnan(tau)
    assert p == least == 1
    assert drift(-np.arange(8.0), np.random.default_rng(0))[1] == 1


@pytest.mark.parametrize("n", [6, 10, 20])
def test_drift_of_walks_is_calibrated_where_a_test_for_exchangeable_steps_is_not(n):
    rng = np.random.default_rng(0)
    walks = rng.normal(size=(600, n)).cumsum(1)
    p = np.array([drift(walk, rng, n_draws=511)[1] for walk in walks])
    assert 0.03 <= np.mean(p <= 0.05) <= 0.07 or n == 6  # whose p are multiples of 1/32
    assert np.mean(p <= 0.05) <= 0.07
    exchangeable = np.array([t[1] for t in map(trend, walks) if t[0] > 0]) / 2
    assert np.sum(exchangeable <= 0.05) / 600 > 0.12
    rises = np.array([drift(rng.normal(1.5, 0.7, n).cumsum(), rng, n_draws=511)[1] for _ in range(100)])
    assert np.mean(rises <= 0.05) >= 0.9


def test_what_has_no_order_is_refused():
    with pytest.raises(InvalidConfig, match="1 of 3 values are not finite"):
        trend(np.array([1.0, np.nan, 2.0]))
