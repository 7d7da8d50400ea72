"""Samples without phases: each family's own, fitted to a curve. Oracles: scipy's distributions, and fresh samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rareneuron.maths.nulls import FAMILIES, fitted_samples

SAMPLES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "half-normal": lambda rng, shape: np.log(np.abs(rng.standard_normal(shape))),
    "exponential": lambda rng, shape: np.log(rng.exponential(1, shape)),
    "lognormal": lambda rng, shape: rng.normal(0, 1.5, shape),
}
DISTRIBUTIONS = {"half-normal": stats.halfnorm(), "exponential": stats.expon(), "lognormal": stats.lognorm(1.5)}


def curve_of(family: str, n: int = 400) -> np.ndarray:
    """Sorted log effects drawn from a family."""
    return -7 - np.sort(-SAMPLES[family](np.random.default_rng(1), (1, n)))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_band_holds_samples_of_its_family_and_no_others(family: str) -> None:
    rng = np.random.default_rng(1)
    of = {name: -7 - np.sort(-draw(rng, (200, 400)), axis=1) for name, draw in SAMPLES.items()}
    y = of[family][0]
    drawn = fitted_samples(y, 400, np.random.default_rng(0))[family]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    for name, fresh in of.items():
        fresh = y.mean() + (y.std() / fresh.std() if family == "lognormal" else 1) * (fresh - fresh.mean())
        inside = ((low <= fresh) & (fresh <= high)).mean()
        if name == family:
            assert 0.93 < inside < 0.97  # 95 % at every rank, give or take what 400 draws leave open
        else:
            assert inside < 0.7, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_lies_on_its_distributions_quantiles(family: str) -> None:
    """Up to the fitted scale, or for the lognormal the shape, a sample is that of its family at some probabilities."""
    drawn = fitted_samples(curve_of(family), 3, np.random.default_rng(0))
    q = np.random.default_rng(0).standard_exponential((3, 401)).cumsum(1)
    q = q[:, :-1] / q[:, -1:]
    expected = np.log(DISTRIBUTIONS[family].isf(q))
    ratio = (drawn[family] - drawn[family].mean()).ravel() / (expected - expected.mean()).ravel()
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert family == "lognormal" or ratio[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_sorted_and_fitted(family: str) -> None:
    y = curve_of("lognormal")
    drawn = fitted_samples(y, 50, np.random.default_rng(0))[family]
    assert drawn.shape == (50, 400)
    assert (np.diff(drawn, axis=1) <= 0).all()
    assert drawn.mean() == pytest.approx(y.mean())
    assert (drawn.std() == pytest.approx(y.std(), rel=0.05)) == (family == "lognormal"), "only its spread is fitted"


def test_the_generator_decides_the_samples() -> None:
    y = curve_of("exponential")
    first, again, other = (fitted_samples(y, 5, np.random.default_rng(seed))["exponential"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
