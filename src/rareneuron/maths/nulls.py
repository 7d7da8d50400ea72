r"""Samples that look like "plateau, power law, decay" in log-log to the eye, and aren't.

A rank curve enters only through statistics that ignore location and slope of y = log|Δ|, so a family's fitted scale
and, for lognormal and Weibull, its fitted shape drop out: one null serves every lognormal, and the exponential serves
every Weibull. Uniform order statistics come from exponential sums (Rényi), already sorted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special

from rareneuron.maths.spacings import TINY, Line, normalised_spacings


@dataclass(frozen=True, kw_only=True)
class Family:
    """A distribution of |Δ|, as functions of the upper tail probability q."""

    log_quantile: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]  # −d log quantile / d log q, up to a factor


def normal_density(z: np.ndarray) -> np.ndarray:
    """Return the density of the standard normal."""
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def half_normal_slope(q: np.ndarray) -> np.ndarray:
    """Return q / (2 z φ(z)), with z the half-normal's quantile and φ the normal density."""
    z = -special.ndtri(q / 2)
    return q / (2 * z * normal_density(z))


FAMILIES = {
    "half-normal": Family(log_quantile=lambda q: np.log(-special.ndtri(q / 2)), slope=half_normal_slope),
    "exponential": Family(log_quantile=lambda q: np.log(-np.log(q)), slope=lambda q: -1 / np.log(q)),
    "lognormal": Family(log_quantile=lambda q: -special.ndtri(q), slope=lambda q: q / normal_density(special.ndtri(q))),
}


def uniform_order_statistics(n_draws: int, n: int, rng: np.random.Generator) -> Float[np.ndarray, "draw rank"]:
    """Draw uniform numbers, smallest first in every draw."""
    sums = np.cumsum(rng.standard_exponential((n_draws, n + 1)), axis=1)
    return sums[:, :-1] / sums[:, -1:]


def fitted_samples(
    y: Float[np.ndarray, " rank"], n_draws: int, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "draw rank"]]:
    """Return sorted samples of log|Δ| from each family, as long as `y` and fitted to it.

    A family's scale is fitted by the mean of `y`, the lognormal's shape by the standard deviation of `y` too; the other
    two have no shape. All families get the same uniform numbers, so they differ in shape alone.
    """
    q = uniform_order_statistics(n_draws, len(y), rng)
    out = {}
    for name, family in FAMILIES.items():
        sample = family.log_quantile(q)
        out[name] = y.mean() + (y.std() if name == "lognormal" else 1) * (sample - sample.mean())
    return out


def lift_removed(
    y: Float[np.ndarray, " rank"], line: Line, n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw rank"]:
    """Draw samples of the curve with its line continued to rank 1: what it would be without a plateau."""
    n = len(y)
    rank = np.arange(1, n + 1)
    population = np.where(rank < line.first, line.at(rank), y)
    drawn = n * uniform_order_statistics(n_draws, n, rng)
    values = np.where(drawn < 1, line.at(drawn), np.interp(np.log(drawn), np.log(rank), population))
    return -np.sort(-values, axis=1)


def log_likelihood_ratio(y: Float[np.ndarray, " rank"], line: Line, family: Family) -> float:
    """Return the log likelihood of a power law less a family's, for the middle's spacings; both have a free factor."""
    rank = np.arange(line.first, line.last)
    D = normalised_spacings(y, line.first, line.last)
    shape = family.slope(rank / len(y))
    means = np.maximum([D.mean(), (D / shape).mean()], TINY)
    return float(len(D) * (np.log(means[1]) - np.log(means[0])) + np.log(shape).sum())
