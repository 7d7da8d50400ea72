"""Trends over steps against every order and every walk; both are calibrated, and see what is planted."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.stats import kendalltau

from rareneuron.errors import InvalidConfig
from rareneuron.maths.trend import drift, onset, trend

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


@pytest.mark.slow
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


# --- since when ---------------------------------------------------------------------------------------------------


def first_of_the_last_run(p, level):
    """Look at every step whether it and all later ones are at the level."""
    for step in range(len(p)):
        if all(later <= level for later in p[step:]):
            return step
    return None


def test_the_onset_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(200):
        p = rng.choice([0.01, 0.05, 0.051, 0.5, np.nan], rng.integers(0, 7), p=[0.4, 0.3, 0.1, 0.1, 0.1])
        expected.append(first_of_the_last_run(p, 0.05))
        assert onset(p) == expected[-1]
    assert {None, 0, 1, 2, 3} <= set(expected), "the case is too tame to tell right from wrong"
    assert onset(np.array([0.2, 0.1]), level=0.15) == 1
