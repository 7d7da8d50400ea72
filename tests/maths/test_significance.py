"""Errors, intervals and tests against slow code, and against what they are for.

Of every test: a planted difference is found in 9 of 10 cases, and nothing in 93-97 % of cases where nothing is.
"""

import numpy as np
import pytest

from rareneuron.errors import InvalidConfig
from rareneuron.maths.significance import (
    FEWEST_CONTEXTS,
    against_null,
    bootstrap_interval,
    expanded_levels,
    few_contexts,
    holm,
    t_quantile,
)

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
    with pytest.raises(InvalidConfig, match=f"{n} null draws were given.*more random groups"):
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


def test_with_ten_contexts_expanded_intervals_cover_and_plain_percentiles_do_not():
    """100 statistics of 10 contexts, 30 times: resampling alone forgets how little ten contexts say of their spread."""
    rng = np.random.default_rng(3)
    covered, plain = [], []
    for _ in range(30):
        sums, n_tokens = rng.normal(size=(10, 100)), np.ones(10, int)
        low, high = bootstrap_interval(sums, n_tokens, rng, n_draws=1000)
        covered.append(((low <= 0) & (high >= 0)).mean())
        drawn = rng.multinomial(10, np.full(10, 0.1), size=1000) @ sums / 10
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        plain.append(((low <= 0) & (high >= 0)).mean())
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(plain) < 0.92


def test_t_has_the_degrees_of_freedom_of_the_contexts():
    assert np.isclose(t_quantile(10), 2.262157)
    assert np.isclose(t_quantile(10**6), 1.959964, atol=1e-5)
    assert np.isnan(t_quantile(1))  # nothing is known about the spread
    low, high = expanded_levels(10)
    assert (round(low, 4), round(1 - high, 4)) == (0.0086, 0.0086)


def test_the_warning_counts_the_contexts():
    assert few_contexts(FEWEST_CONTEXTS) is None
    said = few_contexts(7)
    assert said is not None
    assert said.startswith("Only 7 contexts stand behind these numbers, and 40 are needed")
    assert str(few_contexts(1)).startswith("Only 1 context stands")


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
        found, np.quantile(drawn, expanded_levels(30, 0.9)), atol=0.15 * np.std(drawn)
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
