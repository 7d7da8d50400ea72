r"""Does the slope of a rank curve have a kink that smooth curves lack (Fig. 2a, "second-order phase transition")?

Normalised spacings D_r = r (y_r − y_{r+1}) of a sample are independent and exponential with mean κ(r) (Rényi). A smooth
curve is log κ(u), a cubic in u = log rank; a kink at c adds θ (u − c)₊, θ > 0: the first derivative of y stays
continuous, the second jumps, and the curve begins to fall faster. The statistic is the largest score of θ over c in
standard errors, the cubic being fitted by maximum likelihood (a gamma regression with log link: weights are all 1).
Samples of the fitted smooth curve, and half-normal, exponential and lognormal ones, pass through the same; location
and scale of y drop out. Domain: the larger half of the effects. Further right κ of any density that isn't 0 at 0
diverges, which is no kink, and would drown every other one. Oracle: tests/maths/test_kink.py, scipy on the likelihood.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.claims import Comparison, against_groups
from rareneuron.maths.nulls import FAMILIES, uniform_order_statistics
from rareneuron.maths.significance import against_null
from rareneuron.maths.spacings import FIRST_RANK, TINY, exponential_log_likelihood, normalised_spacings

UPPER = 0.5  # share of the ranks that are looked at
DEGREE = 3  # of log κ(u): level, steepening, two bends
CLEAR = 0.5  # log rank kept between a kink and either end
GRID = 0.1  # log rank between candidates
ITERATIONS, HALVINGS = 50, 20
CONVERGED, ROUNDING = 1e-10, 1e-13  # of the likelihood


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is fitted to curves of n neurons, and what a kink at each place adds beyond it."""

    smooth: Float[np.ndarray, "spacing degree"]  # orthonormal
    place: Float[np.ndarray, " place"]  # log rank
    kink: Float[np.ndarray, "spacing place"]  # orthogonal to `smooth`, of length 1


@lru_cache(maxsize=4)
def design(n: int) -> Design:
    """Return the design for curves of n neurons; the first ranks, a handful of neurons, are left out."""
    u = np.log(np.arange(FIRST_RANK, int(n * UPPER)))
    if len(u) < 2 or np.ptp(u) < 4 * CLEAR:
        raise TooFewNeurons(f"A curve of {n} neurons is too short to tell a kink from noise. Rank a whole layer.")
    smooth = np.linalg.qr(np.vander(2 * (u - u[0]) / np.ptp(u) - 1, DEGREE + 1))[0]
    place = np.arange(u[0] + CLEAR, u[-1] - CLEAR, GRID)
    kink = np.maximum(u[:, None] - place, 0)
    kink -= smooth @ (smooth.T @ kink)
    return Design(smooth=smooth, place=place, kink=kink / np.linalg.norm(kink, axis=0))


def spacings(y: Float[np.ndarray, "curve rank"]) -> Float[np.ndarray, "curve spacing"]:
    """Return D_r at the ranks of the design; ties get the least slope there is."""
    return np.maximum(normalised_spacings(y, FIRST_RANK, int(y.shape[1] * UPPER)), TINY)


def smooth_fit(D: Float[np.ndarray, "curve spacing"], smooth: np.ndarray) -> Float[np.ndarray, "curve spacing"]:
    """Fit log κ by maximum likelihood: scoring steps (the information is the identity), halved where they overshoot."""
    eta = np.log(D.mean(1, keepdims=True)) + np.zeros_like(D)
    value = exponential_log_likelihood(D, eta)
    for _ in range(ITERATIONS):
        step = ((D * np.exp(-eta) - 1) @ smooth) @ smooth.T
        size = np.ones(len(D))
        for _ in range(HALVINGS):
            worse = ~(exponential_log_likelihood(D, eta + size[:, None] * step) >= value - ROUNDING * np.abs(value))
            if not worse.any():
                break
            size[worse] /= 2
        eta = eta + np.where(worse, 0, size)[:, None] * step
        before, value = value, exponential_log_likelihood(D, eta)
        if (value - before <= CONVERGED * np.abs(value)).all():
            break
    return eta


def largest_scores(
    D: Float[np.ndarray, "curve spacing"], of: Design
) -> tuple[Float[np.ndarray, " curve"], Float[np.ndarray, "curve spacing"]]:
    """Return the statistic of each curve, and the smooth curve fitted to it."""
    eta = smooth_fit(D, of.smooth)
    return ((D * np.exp(-eta) - 1) @ of.kink).max(1), eta


def slope_discontinuity(
    y: Float[np.ndarray, " rank"], rng: np.random.Generator, n_draws: int = 600
) -> list[Comparison]:
    """Test the curve's largest kink against those of smooth curves of as many neurons."""
    of = design(len(y))
    value, eta = largest_scores(spacings(y[None]), of)
    samples = {"fitted smooth": np.exp(eta) * rng.standard_exponential((n_draws, eta.shape[1]))}
    for name, family in FAMILIES.items():
        samples[name] = spacings(family.log_quantile(uniform_order_statistics(n_draws, len(y), rng)))
    tests = []
    for name, D in samples.items():
        found = against_null(float(value[0]), largest_scores(D, of)[0])
        test = against_groups(found, "largest score of a kink in the slope", "all neurons", name, above=True)
        tests.append(replace(test, null=f"{name} samples", over="samples"))
    return tests
