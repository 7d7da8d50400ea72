"""Kinks of a slope: the fit and the score against scipy's optimiser; planted ones found, smooth curves left alone."""

import numpy as np
import pytest
from scipy.optimize import minimize

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.kink import FIRST_RANK, UPPER, design, largest_scores, slope_discontinuity, smooth_fit, spacings
from rareneuron.maths.nulls import FAMILIES, uniform_order_statistics

N = 1024
U = np.log(np.arange(1, N))


def sample(kappa, rng):
    """Log values of a sorted sample whose log-log slope is κ(r): its normalised spacings are exponential."""
    return -np.concatenate([[0.0], np.cumsum(rng.standard_exponential(N - 1) * kappa / np.arange(1, N))])


def p_of(y, rng, n_draws=199):
    return max(test.p for test in slope_discontinuity(y, rng, n_draws))


def test_fit_and_score_are_those_of_the_likelihood():
    rng = np.random.default_rng(0)
    y = sample(np.where(U < 5, 0.4, 1.2), rng)
    of = design(N)
    rank = np.arange(FIRST_RANK, int(N * UPPER))
    D = rank * (y[rank - 1] - y[rank])
    np.testing.assert_allclose(spacings(y[None])[0], D, rtol=1e-12)
    u = np.log(rank)
    powers = np.stack([np.ones_like(u), u, u**2, u**3], 1) / [1, 6, 36, 216]

    def loss(b, kinked=0.0):
        eta = powers @ b + kinked
        return (eta + D * np.exp(-eta)).sum()

    def gradient(b):
        return powers.T @ (1 - D * np.exp(-(powers @ b)))

    slow = minimize(loss, np.zeros(4), method="BFGS", jac=gradient, options={"gtol": 1e-8, "maxiter": 5000})
    eta = powers @ slow.x
    # The fit ends where the likelihood, about 100, gains less than 1e-10 of itself: √(2 · 1e-8) in log κ.
    np.testing.assert_allclose(smooth_fit(D[None], of.smooth)[0], eta, atol=3e-4)
    scores = []
    for place in of.place:
        hinge = np.maximum(u - place, 0)
        beyond = hinge - powers @ np.linalg.lstsq(powers, hinge, rcond=None)[0]
        slope = (loss(slow.x, -1e-5 * beyond) - loss(slow.x, 1e-5 * beyond)) / 2e-5  # of the likelihood in θ, at 0
        scores.append(slope / np.sqrt(beyond @ beyond))  # over its standard error
    assert max(scores) > 3, "the case is too tame to tell right from wrong"
    np.testing.assert_allclose(largest_scores(D[None], of)[0][0], max(scores), rtol=1e-3)


def test_scale_and_location_drop_out():
    y = sample(np.where(U < 5, 0.4, 1.2), np.random.default_rng(1))
    found = [largest_scores(spacings(z[None]), design(N))[0][0] for z in (y, 3 * y + 2)]
    assert np.isclose(*found)


@pytest.mark.slow
def test_a_planted_kink_is_found():
    """A slope that grows from 0.4 to 2 at log rank 5, as a curve that begins to fall fast does."""
    rng = np.random.default_rng(2)
    assert sum(p_of(sample(np.where(U < 5, 0.4, 2.0), rng), rng) <= 0.01 for _ in range(10)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "power law", "gamma", "soft bend"])
def test_smooth_curves_have_none(name):
    """12 samples each; at 5 % more than 3 have a chance of 0.2 %."""
    rng = np.random.default_rng(3)

    def drawn():
        if name in FAMILIES:
            return FAMILIES[name].log_quantile(uniform_order_statistics(1, N, rng))[0]
        if name == "gamma":
            return -np.sort(-np.log(rng.gamma(2, size=N)))
        return sample(np.full(N - 1, 0.4) if name == "power law" else 0.3 * np.exp(0.04 * U**2), rng)

    assert sum(p_of(drawn(), rng, n_draws=99) <= 0.05 for _ in range(12)) <= 3


def test_ties_and_short_curves():
    rng = np.random.default_rng(4)
    assert 0 < p_of(np.round(sample(np.full(N - 1, 0.4), rng), 2), rng) <= 1
    with pytest.raises(TooFewNeurons, match="whole layer"):
        slope_discontinuity(-np.arange(20.0), rng)
