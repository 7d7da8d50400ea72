r"""Is a difference smaller than a margin? Two one-sided tests, which must both say so (TOST, Schuirmann 1987).

A claim of absence can't be supported by a difference that isn't significant: few data never show one. Here the margin
m is stated before the data; one test is of $E \ge m$, the other of $E \le -m$, each at the level by itself, and p is
the larger one. Errors are those of random groups or of resampled contexts, as in `maths.claims`.
Oracle: tests/maths/test_equivalence.py, loops; at the margin's edge 3 to 7 % are supported at 5 %.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from rareneuron.maths.claims import Comparison, resampled
from rareneuron.maths.power import Quantiles, quantiles_of
from rareneuron.maths.significance import against_null, expanded_levels


@dataclass(frozen=True, kw_only=True)
class AbsenceNoise:
    """How an estimate of no difference strays; `detectable` is the smallest margin that it is shown to stay within."""

    high: Quantiles  # of the estimate, from the upper margin's test
    low: Quantiles  # of the estimate with its sign turned, from the lower one's
    estimate: Quantiles

    def detectable(self, p: float, power: float) -> float:
        """Return the smallest margin within which no difference at all is shown to lie at this p with this power."""
        if not self.estimate.known:
            return np.nan
        missed = (1 - power) / 2  # on either side
        above = self.estimate.at(1 - missed) - self.high.at(p)
        below = self.estimate.turned().at(1 - missed) - self.low.at(p)
        return max(above, below)


def widened(draws: Float[np.ndarray, " draw"], factor: float) -> Float[np.ndarray, " draw"]:
    """Return draws that stray from their mean by `factor` times as much; what isn't a number doesn't count in it."""
    known = draws[np.isfinite(draws)]
    middle = known.mean() if len(known) else 0.0
    return np.asarray(middle + factor * (draws - middle))


def within_margin_of_groups(
    value: float, draws: Float[np.ndarray, " draw"], statistic: str, group: str, null: str, margin: float
) -> Comparison:
    """Return the test that a group's statistic is less than the margin off the mean of random groups'.

    Where the group's statistic has errors that random groups lack, they must be added to the draws.
    """
    found, known = against_null(value, draws), draws[np.isfinite(draws)]
    too_high, too_low = against_null(value, draws + margin).p_below, against_null(value, draws - margin).p_above
    around = quantiles_of(known - found.null_mean)
    return of_difference(
        value=value,
        null_mean=found.null_mean,
        ends=(value - found.null_high, value - found.null_low),
        spread=float(known.std(ddof=1)),
        margin=margin,
        statistic=statistic,
        group=group,
        null=null,
        p=max(too_high, too_low),
        least_p=1 / (1 + len(draws)),
        over="groups",
        noise=AbsenceNoise(high=around, low=around.turned(), estimate=around),
    )


def within_margin_over_contexts(
    statistic: str,
    group: str | None,
    sums: Float[np.ndarray, "context column"],
    ratio: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    margin: float,
    *,
    n_draws: int = 1999,
    n_tokens: int | None = None,
) -> Comparison:
    """Return the test that a statistic is less than the margin off 0, contexts resampled as by `bootstrap_test`."""
    value, draws = resampled(sums, ratio, rng, n_draws)
    low, high = np.quantile(draws, expanded_levels(len(sums)))
    error = quantiles_of(draws - value)
    return of_difference(
        value=value,
        null_mean=0.0,
        ends=(float(low), float(high)),
        spread=float(draws.std(ddof=1)),
        margin=margin,
        statistic=statistic,
        group=group,
        null="no difference, contexts resampled",
        p=float(1 + max((draws >= margin).sum(), (draws <= -margin).sum())) / (1 + n_draws),
        least_p=1 / (1 + n_draws),
        over="contexts",
        n_contexts=len(sums),
        n_tokens=n_tokens,
        noise=AbsenceNoise(high=error.turned(), low=error, estimate=error),
    )


def of_difference(
    *, value: float, null_mean: float, ends: tuple[float, float], spread: float, margin: float, **known: Any
) -> Comparison:
    """Return a test whose effect is what the difference leaves of the margin, with the interval of that."""
    nearest = 0.0 if ends[0] <= 0 <= ends[1] else min(map(abs, ends))
    effect = margin - abs(value - null_mean)
    return Comparison(
        value=value,
        null_mean=null_mean,
        effect=effect,
        effect_low=margin - max(map(abs, ends)),
        effect_high=margin - nearest,
        effect_size=effect / spread if spread > 0 else np.nan,
        margin=margin,
        **known,
    )
