"""The released scripts' numbers against a slow program that reads like their description, and what they can't say."""

import numpy as np
import pytest
from scipy import stats

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.rank_curve import rank_curve
from rareneuron.maths.released import DECAY_START, PLATEAU_END, released_phases

N = 600
RANK = np.arange(1, N + 1)
PLANTED = np.exp(-3 - 0.4 * np.log(RANK) + 0.8 * (RANK <= 20) - np.maximum(RANK / 250 - 1, 0))


def least_squares(points):
    """Slope and intercept of y = a + b x, from the normal equations."""
    x, y = zip(*points, strict=True)
    rows = np.stack([np.ones(len(x)), x], axis=1)
    intercept, slope = np.linalg.solve(rows.T @ rows, rows.T @ np.array(y))
    return slope, intercept


def released(effects):
    """Least squares of log|Δ| on log rank: over ranks i + 1 … 6i at every i, over log ranks 3.5–4.5 and 4.8–5.2."""
    points = [(np.log(k), np.log(effect)) for k, effect in enumerate(sorted(effects, reverse=True), start=1)]
    slopes = []
    for i in range(1, len(points)):
        inside = [points[rank - 1] for rank in range(i + 1, 6 * i + 1) if rank <= len(points)]
        if len(inside) >= 2:
            slopes.append(-least_squares(inside)[0])
    slope, beta = least_squares([(u, y) for u, y in points if 3.5 <= u <= 4.5])
    late, beta_late = least_squares([(u, y) for u, y in points if 4.8 <= u <= 5.2])
    deviation = [y - (beta + slope * u) for u, y in points]
    return {
        "kappa": -slope,
        "beta": beta,
        "kappa_late": -late,
        "beta_late": beta_late,
        "slope": slopes,
        "deviation": deviation,
    }


def test_released_numbers_are_those_of_the_description():
    noisy = PLANTED * np.random.default_rng(0).gamma(400, 1 / 400, N)
    found = released_phases(rank_curve(noisy))
    for name, expected in released(noisy.tolist()).items():
        # Normal equations of two nearly equal log ranks lose half the digits.
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=1e-6, err_msg=name)
    assert len(found.slope) == N - 2
    assert np.ptp(found.slope) > 0.5, "the case is too tame to tell right from wrong"


def test_boundaries_are_where_log_rank_passes_3_5_and_5_5():
    found = released_phases(rank_curve(PLANTED))
    assert np.log(found.plateau_end) < 3.5 < np.log(found.plateau_end + 1)
    assert np.log(found.decay_start - 1) < 5.5 < np.log(found.decay_start)


@pytest.mark.parametrize("family", [stats.halfnorm, stats.expon, stats.lognorm(1)])
def test_curves_without_phases_have_the_same_boundaries(family):
    found = released_phases(rank_curve(family.isf((RANK - 0.5) / N)))
    assert (found.plateau_end, found.decay_start) == (PLATEAU_END, DECAY_START)
    assert not hasattr(found, "outcome")


@pytest.mark.parametrize("n", [600, 601, 605, 606])
def test_the_slope_is_marked_where_its_fit_is_cut_off(n):
    first = released_phases(rank_curve(1 / np.arange(1, n + 1))).truncated_from
    assert 6 * (first - 1) <= n < 6 * first


def test_zeros_are_left_out():
    with_zeros = released_phases(rank_curve(np.concatenate([PLANTED, np.zeros(50)])))
    assert with_zeros.n_neurons == N
    np.testing.assert_array_equal(with_zeros.slope, released_phases(rank_curve(PLANTED)).slope)


def test_a_curve_that_ends_before_the_decay_is_refused():
    assert released_phases(rank_curve(PLANTED[:DECAY_START])).n_neurons == DECAY_START
    with pytest.raises(TooFewNeurons, match="begins at rank 245"):
        released_phases(rank_curve(PLANTED[: DECAY_START - 1]))
