r"""The smallest effect that a test would have found: what "not supported" is worth.

A test at p finds a true effect E with the power $\beta$ if $E = c_p - q_{1-\beta}$: c is the least estimate that it
finds, q a quantile of the estimate's error. Against random groups c is the quantile 1 − p of their statistic; where
contexts are resampled, the resampled error's quantile p with the sign turned. Quantiles, not standard deviations: many
nulls are skewed. Assumed is that an effect moves the statistic and leaves its spread as it is.
Oracle: tests/maths/test_power.py plants effects of this size, and counts; benchmarks/power.py does so at length.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from rareneuron.maths.significance import LEVEL, AgainstNull, tail

POWER = 0.8  # with which the smallest effect is found
MARGIN = 1.96  # standard errors by which p must stay below LEVEL after Holm, were the null drawn again

Over = Literal["contexts", "groups", "samples", "steps"]  # what a test's errors come from


@runtime_checkable
class Noise(Protocol):
    """How a test's estimate strays from the truth."""

    def detectable(self, p: float, power: float) -> float:
        """Return the smallest true effect that gives at most this p with this power; NaN where it isn't known."""


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """A distribution's quantiles at some probabilities, both ascending.

    Between them stands a monotone curve against normal scores, beyond them a normal tail.

    >>> normal = Quantiles(probability=(0.025, 0.975), value=(-1.96, 1.96))
    >>> round(normal.at(0.2), 2)
    -0.84
    """

    probability: tuple[float, ...]
    value: tuple[float, ...]

    def at(self, probability: float) -> float:
        """Return one quantile."""
        z, known = ndtri(probability), ndtri(self.probability)
        if not known[0] <= z <= known[-1]:
            i = 1 if z < known[0] else len(known) - 1
            slope = (self.value[i] - self.value[i - 1]) / (known[i] - known[i - 1])
            return float(self.value[i] + slope * (z - known[i]))
        from scipy.interpolate import PchipInterpolator  # imported where a run is judged, not where it is read

        return float(PchipInterpolator(known, self.value)(z))

    def turned(self) -> "Quantiles":
        """Return those of the distribution with its sign turned."""
        return Quantiles(
            probability=tuple(1 - p for p in reversed(self.probability)), value=tuple(-x for x in reversed(self.value))
        )

    @property
    def known(self) -> bool:
        """Whether the values are numbers, and not all the same."""
        return bool(np.isfinite(self.value).all() and self.value[0] < self.value[-1])


def quantiles_of(draws: Float[np.ndarray, " draw"]) -> Quantiles:
    """Return all quantiles that the draws have: the k-th of n stands for the probability k/(n + 1)."""
    p = np.arange(1, len(draws) + 1) / (len(draws) + 1)
    return Quantiles(probability=tuple(p), value=tuple(np.sort(draws)))


def quantiles_of_null(found: AgainstNull, *, above: bool) -> Quantiles:
    """Return a null's quantiles, less its mean, in the claimed direction.

    Older runs kept the middle 95 % alone; there normal tails are assumed on either side.
    """
    table = {0.025: found.null_low, 0.975: found.null_high}
    if np.isfinite(found.null_lowest):
        ends = tail(found.n_draws)
        table |= {0.2: found.null_q20, 0.8: found.null_q80, ends: found.null_lowest, 1 - ends: found.null_highest}
        table |= {0.01: found.null_q01, 0.99: found.null_q99} if ends < 0.01 else {}
    else:
        table[0.5] = found.null_mean
    p = sorted(table)
    out = Quantiles(probability=tuple(p), value=tuple(table[q] - found.null_mean for q in p))
    return out if above else out.turned()


@dataclass(frozen=True, kw_only=True)
class GroupNoise:
    """A group's statistic strays from its expectation as those of random groups do, or of random samples."""

    null: Quantiles  # of the random groups' statistic less their mean, in the claimed direction
    step: float = 0.0  # of a statistic that counts: it must lie a step beyond what a draw has reached

    def detectable(self, p: float, power: float) -> float:
        """Return the smallest effect found: value less the null's mean."""
        return self.null.at(1 - p) + self.step - self.null.at(1 - power) if self.null.known else np.nan


@dataclass(frozen=True, kw_only=True)
class ContextNoise:
    """An estimate strays from the truth as resampled ones stray from it.

    Where errors are skewed to the left, low estimates come with large errors: one that is z standard errors off has
    errors larger by z · skewness/2 (three times Efron's acceleration). To the right they come with small ones, which
    isn't counted on: such effects are found more often.
    """

    error: Quantiles  # of a resampled estimate less the estimate, in the claimed direction
    skewness: float = 0.0  # of them

    def detectable(self, p: float, power: float) -> float:
        """Return the smallest effect found, p being the share of resampled estimates that aren't above 0."""
        if not self.error.known:
            return np.nan
        larger = max(1.0, 1 + self.skewness / 2 * float(ndtri(1 - power)))
        return -self.error.at(p) * larger - self.error.at(1 - power)


def context_noise(error: Float[np.ndarray, " draw"]) -> ContextNoise:
    """Return the noise of an estimate from resampled estimates less it."""
    spread = float(error.std())
    skewness = float((((error - error.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    return ContextNoise(error=quantiles_of(error), skewness=skewness)


def critical_p(least_p: float, n_tests: int) -> float:
    """Return the largest p of a test that is found whatever the other claims' p: Holm's hardest level, LEVEL / tests.

    Where p comes from draws it must also not be too close to call. `least_p` is 1 over draws and one. NaN where even
    that is too large.

    >>> critical_p(1 / 1000, 1), critical_p(1 / 1000, 16)
    (0.036, 0.001)
    """
    found = np.nan
    for k in range(1, int(LEVEL / (least_p * n_tests)) + 1):
        p = k * least_p
        if p * n_tests * (1 + MARGIN * relative_error(p, least_p)) <= LEVEL:
            found = p
    return found


def relative_error(p: float, least_p: float) -> float:
    """Return the binomial standard error of p, over p, if the null were drawn again; 0 where no draw lay beyond."""
    beyond = round(p / least_p) - 1
    return 0.0 if beyond <= 0 else float(np.sqrt((1 - p) * least_p / p))


def power_of_each(sources: int) -> float:
    """Return the power that each of some sources of error needs, so that all tests agree in `POWER` of cases.

    By Bonferroni, whatever they have in common: independent sources agree in up to a hundredth more.
    """
    return 1 - (1 - POWER) / sources


def contexts_needed(n: int, detectable: float, smallest: float) -> int:
    """Return how many contexts would find the smallest effect that matters, where n find this one: errors fall as 1/√n.

    >>> contexts_needed(100, 0.2, 0.1)
    400
    """
    return int(np.ceil(round(n * (detectable / smallest) ** 2, 6)))
