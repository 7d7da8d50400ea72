"""Sorting, what is refused, and a local slope without artefacts."""

import numpy as np
import pytest
from scipy import stats

from rareneuron.errors import InvalidConfig
from rareneuron.maths.rank_curve import WINDOW, local_slope, participation_ratio, rank_curve
from rareneuron.maths.released import released_phases

N = 2_048
RANK = np.arange(1, N + 1)
HALF_NORMAL = np.log(stats.halfnorm.isf((RANK - 0.5) / N))  # the quantiles themselves: a smooth curve


def kink(u, slope, at):
    """How far the slope's derivative changes across `at`, as a share of itself: 1 where it changes sign."""
    left, right = [
        np.polyfit(u[part], slope[part], 1)[0]
        for part in ((u >= at - 0.1) & (u < at + 1e-9), (u > at - 1e-9) & (u <= at + 0.1))
    ]
    return abs(right - left) / (abs(right) + abs(left))


def test_sorted_from_the_largest_with_ties_in_neuron_order():
    curve = rank_curve(np.array([0.1, 3.0, 0.0, 3.0, 0.2]))
    assert curve.value.tolist() == [3.0, 3.0, 0.2, 0.1, 0.0]
    assert curve.neuron.tolist() == [1, 3, 4, 0, 2]
    assert curve.rank.tolist() == [1, 2, 3, 4, 5]
    assert curve.n_positive == 4


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, -0.1]])
def test_what_is_no_mean_absolute_effect_is_refused(values):
    with pytest.raises(InvalidConfig, match="abs_delta_loss"):
        rank_curve(np.array(values))


def test_slope_of_a_power_law_is_its_exponent_wherever_it_is_defined():
    slope = local_slope(2 - 0.7 * np.log(RANK))
    defined = np.isfinite(slope.kappa)
    np.testing.assert_allclose(slope.kappa[defined], 0.7, atol=1e-12)
    np.testing.assert_allclose(slope.log_rank[defined][[0, -1]], [WINDOW / 2, np.log(N) - 1 - WINDOW / 2], atol=0.051)


def test_slope_is_the_e_fold_difference_of_eq_7_averaged_over_the_window():
    slope = local_slope(HALF_NORMAL)
    u = slope.log_rank[np.isfinite(slope.kappa) & (slope.log_rank > 3)]

    def y(u):
        return np.log(stats.halfnorm.isf((np.exp(u) - 0.5) / N))

    shifts = np.linspace(-WINDOW / 2, WINDOW / 2, 11)
    expected = np.mean([y(u + s) - y(u + s + 1) for s in shifts], axis=0)
    np.testing.assert_allclose(np.interp(u, slope.log_rank, slope.kappa), expected, rtol=2e-3)  # y is interpolated


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_a_curve_too_short_for_eq_7_has_no_slope(n):
    slope = local_slope(-np.arange(float(n)))
    assert slope.kappa.shape == slope.log_rank.shape
    assert np.isnan(slope.kappa).all() == (np.log(n) < 1 + WINDOW)


def test_many_curves_at_once():
    both = local_slope(np.stack([HALF_NORMAL, -0.4 * np.log(RANK)]))
    np.testing.assert_array_equal(both.kappa[0], local_slope(HALF_NORMAL).kappa)


def test_a_smooth_curve_has_no_kink_where_truncation_makes_one():
    at = np.log(N / 6)
    truncated = released_phases(rank_curve(np.exp(HALF_NORMAL))).slope
    u = np.log(np.arange(1, len(truncated) + 1))
    assert kink(u, truncated, at) > 0.5, "the control must show the artefact"
    assert max(kink(u, truncated, place) for place in (at - 1, at - 0.7, at + 0.3)) < 0.2
    slope = local_slope(HALF_NORMAL)
    defined = np.isfinite(slope.kappa) & (slope.log_rank > 3)
    places = slope.log_rank[defined][2:-2]
    assert places[0] < at < places[-1]
    assert max(kink(slope.log_rank, slope.kappa, place) for place in places) < 0.2


def test_participation_ratio_counts_the_neurons_that_carry_the_effect():
    assert participation_ratio(np.array([3.0, 3.0, 0.0, 0.0])) == 2
    assert participation_ratio(np.array([3.0, 0.0])) == 1
    assert np.isnan(participation_ratio(np.zeros(4)))
