"""How sure a number is: tests against null draws, intervals over contexts, and Holm's correction for many tests.

Tokens of one context aren't independent. Contexts are the units that were sampled, so contexts are what the bootstrap
resamples. Each test is shown to find what is planted, and nothing more often than it says
(tests/maths/test_significance.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, stdtrit

from rareneuron.errors import InvalidConfig

LEVEL = 0.05  # at which a p-value speaks
Z = 1.959964  # standard deviations to either end of a normal 95 % interval
FEWEST_DRAWS = 99  # of a null
TAIL = 0.001  # of the draws of a null, whose quantile is kept: p-values after Holm are decided there
FEWEST_CONTEXTS = 40  # behind an interval or a verdict; with fewer, p is too small too often (docs/contexts.md)


@dataclass(frozen=True, kw_only=True)
class AgainstNull:
    """A statistic beside its distribution over null draws, which pass through the same computation."""

    value: float
    null_mean: float
    null_low: float  # 2.5 % of the draws lie below
    null_high: float  # and 2.5 % above
    null_lowest: float = np.nan  # 0.1 % of the draws lie below; the lowest of fewer than 999
    null_q01: float = np.nan
    null_q20: float = np.nan
    null_q80: float = np.nan
    null_q99: float = np.nan
    null_highest: float = np.nan  # NaN, like the other five, in runs of versions that didn't keep them
    effect_size: float  # (value − null_mean) / standard deviation of the draws; NaN where they don't differ
    p_above: float  # of a draw at least as high
    p_below: float  # of a draw at least as low
    n_draws: int

    @property
    def p(self) -> float:
        """Two-sided p-value."""
        return min(1.0, 2 * min(self.p_above, self.p_below))


def against_null(value: float, draws: Float[np.ndarray, " draw"]) -> AgainstNull:
    """Return one-sided p-values, (1 + draws at least as extreme) / (1 + draws): never 0, valid for any number of draws.

    What is not a number never speaks for anything: such a draw counts as extreme, and such a value has p = 1.
    """
    if len(draws) < FEWEST_DRAWS:
        raise InvalidConfig(
            f"{len(draws)} null draws were given, and a p-value from fewer than {FEWEST_DRAWS} cannot come near 5 %. "
            "Draw more random groups.",
            argument="n_draws",
        )
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    mean, spread = (float(known.mean()), float(known.std(ddof=1))) if len(known) > 1 else (np.nan, np.nan)
    further = (tail(len(draws)), 0.01, 0.2, 0.8, 0.99, 1 - tail(len(draws)))
    quantiles = np.quantile(known, further, method="weibull") if len(known) else np.full(6, np.nan)
    return AgainstNull(
        value=value,
        null_mean=mean,
        null_low=float(low),
        null_high=float(high),
        null_lowest=float(quantiles[0]),
        null_q01=float(quantiles[1]),
        null_q20=float(quantiles[2]),
        null_q80=float(quantiles[3]),
        null_q99=float(quantiles[4]),
        null_highest=float(quantiles[5]),
        effect_size=(value - mean) / spread if spread > 0 and np.isfinite(value) else np.nan,
        p_above=float(1 + (~(draws < value)).sum()) / (1 + len(draws)),
        p_below=float(1 + (~(draws > value)).sum()) / (1 + len(draws)),
        n_draws=len(draws),
    )


def tail(n_draws: int) -> float:
    """Return the probability of the outermost quantile that is kept: `TAIL`, or that of the lowest of fewer draws."""
    return max(TAIL, 1 / (n_draws + 1))


def t_quantile(n_contexts: int, level: float = 0.95) -> float:
    """Return how many clustered standard errors from a mean over contexts its interval ends: Student's t.

    With 10 contexts 2.26, where a normal distribution has 1.96 and its interval holds the truth in 92 % of cases; NaN
    for a single context.
    """
    return float(stdtrit(n_contexts - 1, (1 + level) / 2))


def expanded_levels(n_contexts: int, level: float = 0.95) -> tuple[float, float]:
    """Return the quantiles of draws over resampled contexts between which a percentile interval lies.

    Draws vary less than the estimate, by √((n − 1)/n), and have normal tails; t's are put in their place (Hesterberg
    2015, "What teachers should know about the bootstrap", expanded percentile interval). With 400 contexts 2.46 % for
    2.5 %, with 10 contexts 0.86 %.
    """
    tail = float(ndtr(-np.sqrt(n_contexts / (n_contexts - 1)) * t_quantile(n_contexts, level)))
    return tail, 1 - tail


def few_contexts(n_contexts: int) -> str | None:
    """Return what to know about any number from fewer than `FEWEST_CONTEXTS` contexts; None where there are enough."""
    if n_contexts >= FEWEST_CONTEXTS:
        return None
    behind = "1 context stands" if n_contexts == 1 else f"{n_contexts} contexts stand"
    return (
        f"Only {behind} behind these numbers, and {FEWEST_CONTEXTS} are needed: other text may say otherwise, and "
        "intervals are themselves uncertain"
    )


def bootstrap_interval(
    sums: Float[np.ndarray, "context column"],
    n_tokens: Int[np.ndarray, " context"],
    rng: np.random.Generator,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    *,
    level: float = 0.95,
    n_draws: int = 2000,
) -> Float[np.ndarray, "2 *statistic"]:
    """Return an expanded percentile interval over resampled contexts: both ends of the mean per token in each column.

    Another `statistic` takes the totals [draw, column] and the tokens [draw] of the resampled contexts, such as
    `lambda totals, tokens: (totals[:, 0] - totals[:, 1]) / tokens` for a difference.
    """
    n = len(sums)
    if n < 2:
        raise InvalidConfig(
            f"{n} contexts can't be resampled: every draw would be the same and the interval of no width. Analyse "
            "tokens of more contexts.",
            argument="n_tokens",
        )
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float64)
    totals, tokens = weights @ sums, weights @ n_tokens
    drawn = totals / tokens[:, None] if statistic is None else statistic(totals, tokens)
    return np.quantile(drawn, expanded_levels(n, level), axis=0)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjust p-values for their number; rejecting those ≤ 5 % errs once or more in at most 5 % of tables."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def finite(value: float) -> float | None:
    """Return the value as a float, or None if it isn't finite: JSON has no word for that."""
    return float(value) if np.isfinite(value) else None
