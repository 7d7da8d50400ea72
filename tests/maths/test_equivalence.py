"""A difference within a margin is found where there is none, and at the margin's edge no more often than p says."""

from dataclasses import replace

import numpy as np
import pytest

from rareneuron.errors import InvalidConfig
from rareneuron.maths.claims import Hypothesis
from rareneuron.maths.equivalence import widened, within_margin_of_groups, within_margin_over_contexts
from rareneuron.maths.power import POWER, critical_p
from rareneuron.maths.verdicts import judge

ABSENT = Hypothesis(name="absent", title="It is not so", source="beyond the paper", smallest=0.1, absence=True)


def beside(value, draws, margin):
    return within_margin_of_groups(value, draws, "Q", "boosting", "matched random groups", margin)


def over(sums, margin, rng, n_draws=299):
    return within_margin_over_contexts("d", None, sums, lambda t: t[:, 0] / t[:, 1], rng, margin, n_draws=n_draws)


def test_both_sides_agree_with_loops():
    rng = np.random.default_rng(0)
    for value in (-0.3, 0.0, 0.4, 2.0):
        draws = rng.gamma(2, 0.1, 199)
        high = 1 + sum(d + 0.5 <= value for d in draws)
        low = 1 + sum(d - 0.5 >= value for d in draws)
        found = beside(value, draws, 0.5)
        assert found.p == max(high, low) / 200
        assert found.effect == pytest.approx(0.5 - abs(value - draws.mean()))
        assert found.effect_low <= found.effect <= found.effect_high <= 0.5
    sums = np.stack([rng.normal(0.05, 1, 60), np.full(60, 2.0)], 1)
    found = over(sums, 0.2, np.random.default_rng(3))
    weights = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=299)
    drawn = [sum(w * s for w, s in zip(row, sums[:, 0], strict=True)) / 120 for row in weights]
    assert found.p == (1 + max(sum(d >= 0.2 for d in drawn), sum(d <= -0.2 for d in drawn))) / 300


def test_draws_are_widened_about_the_mean_of_those_that_are_numbers():
    found = widened(np.array([1.0, 3.0, np.nan, np.inf]), 2.0)
    np.testing.assert_array_equal(found, [0.0, 4.0, np.nan, np.inf])
    assert np.isnan(widened(np.full(3, np.nan), 2.0)).all()


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize("side", [1, -1])
def test_at_the_margins_edge_the_level_is_kept_and_no_difference_is_found(side):
    """Random groups of skewed statistics."""
    rng, draws, margin = np.random.default_rng(0), 199, 0.5

    def shares(shift, scale, repeats=100):
        p = []
        for k in range(repeats):
            drawn = rng.gamma(4, scale, draws) if k % 5 == 0 else drawn
            p.append(beside(rng.gamma(4, scale) + shift, drawn, margin).p)
        return np.mean(np.array(p) <= 0.05)

    assert 0.03 <= shares(side * margin, 0.05, 700) <= 0.07
    assert shares(0.0, 0.05) >= 0.9  # a standard deviation of 0.1
    assert shares(0.0, 0.3) <= 0.1, "few data would show an absence"


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize("side", [1, -1])
def test_over_contexts_too(side):
    rng, margin = np.random.default_rng(0), 0.3

    def share(shift, n, repeats):
        p = []
        for _ in range(repeats):
            tokens = rng.integers(1, 6, n)
            p.append(over(np.stack([rng.normal(shift * tokens, np.sqrt(tokens)), tokens], 1), margin, rng).p)
        return np.mean(np.array(p) <= 0.05)

    assert 0.03 <= share(side * margin, 80, 600) <= 0.07
    assert share(0.0, 80, 60) >= 0.9
    with pytest.raises(InvalidConfig, match="too few"):
        over(np.ones((39, 2)), margin, rng)


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize("n_tests", [1, 15])
def test_the_smallest_margin_is_shown_in_four_of_five_cases_where_nothing_differs(n_tests):
    rng, draws = np.random.default_rng(0), 999
    critical, shown = critical_p(1 / (1 + draws), n_tests), []
    for _ in range(60):
        drawn = rng.gamma(4, 0.05, draws)
        margin = beside(0.0, drawn, 1.0).noise.detectable(critical, POWER)
        values = rng.gamma(4, 0.05, 200)
        high = (1 + (drawn + margin <= values[:, None]).sum(1)) / (1 + draws)
        low = (1 + (drawn - margin >= values[:, None]).sum(1)) / (1 + draws)
        shown.append((np.maximum(high, low) <= critical).mean())
    assert POWER - 0.03 < np.mean(shown) < POWER + 0.12  # the wider side is what both sides get
    found = []
    for _ in range(100):
        sums = np.stack([rng.normal(size=80), np.ones(80)], 1)
        margin = over(sums, 1.0, rng).noise.detectable(critical_p(1 / 300, 2), POWER)
        again = over(np.stack([rng.normal(size=80), np.ones(80)], 1), margin, rng)
        found.append(again.p <= critical_p(1 / 300, 2))
    assert POWER - 0.12 < np.mean(found) < POWER + 0.12


def test_verdicts_on_absences():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0.3, 0.01, 999), rng.normal(0.3, 0.2, 999)
    claim = judge([(ABSENT, [beside(0.29, narrow, 0.1)])])[0]
    assert claim.verdict == "supported"
    assert "smaller than the margin" in claim.sentence
    assert "a difference of -0.0" in claim.sentence
    assert claim.effect == pytest.approx(0.09, abs=0.002)  # and not turned, though the value is lower
    assert claim.detectable < 0.1
    there = judge([(ABSENT, [beside(0.5, narrow, 0.1)])])[0]
    assert there.verdict == "not supported"
    assert there.effect < 0
    unclear = judge([(ABSENT, [beside(0.29, wide, 0.1)])])[0]
    assert unclear.verdict == "inconclusive"
    assert "0.1 is asked for" in unclear.sentence
    one_side = judge([(ABSENT, [beside(0.29, narrow, 0.1), replace(beside(0.5, narrow, 0.1), null="other")])])[0]
    assert (one_side.verdict, one_side.null) == ("not supported", "other")
