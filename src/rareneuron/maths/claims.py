"""Hypotheses, the tests that they rest on, and claims, which are hypotheses with verdicts (`maths.verdicts`).

A hypothesis has one direction and a smallest effect of interest, both fixed before data are seen (docs/claims.md). A
test stands against random groups, or resamples contexts. Its errors stay with it, since they say which effects it would
have found (`maths.power`). Oracle: tests/maths/test_claims.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rareneuron.errors import InvalidConfig
from rareneuron.maths.power import GroupNoise, Noise, Over, context_noise, quantiles_of_null
from rareneuron.maths.significance import FEWEST_CONTEXTS, AgainstNull, expanded_levels
from rareneuron.shown import Shown

Verdict = Literal["supported", "not supported", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A finding as it is claimed, before any data are seen."""

    name: str
    title: str  # the finding as a sentence
    source: str  # where the paper says so, or "beyond the paper"
    smallest: float  # effect of interest, in the statistic's unit and the claimed direction; of an absence, its margin
    absence: bool = False  # whether it says that a difference is smaller than the margin (`maths.equivalence`)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test of a hypothesis. `effect` is counted in the claimed direction: above 0 speaks for it.

    Of an absence it is what the difference leaves of the margin, and `detectable` is a margin.
    """

    statistic: str
    group: str | None
    value: float
    null: str
    null_mean: float
    effect: float
    effect_low: float
    effect_high: float
    effect_size: float  # in standard deviations of the null or of the bootstrap; NaN where there is none
    p: float  # one-sided
    least_p: float  # that the test can give: 1 / (1 + draws) where there are draws
    margin: float | None = None  # of an absence
    over: Over | None = None  # what its errors come from
    n_contexts: int | None = None  # that were resampled
    n_tokens: int | None = None  # rare ones in them
    noise: Noise | None = None  # its errors; not kept once `detectable` is known
    detectable: float = np.nan  # effect that it finds in 80 % of cases at the level of its table; NaN: not known


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A hypothesis with what the data say. Numbers are those of its weakest test, None where there is none.

    `effect` and `effect_size` keep the statistic's own sign: value less the null's mean. Of an absence they are what is
    left of its margin.
    """

    name: str
    title: str
    source: str
    statistic: str | None
    group: str | None
    value: float | None
    null: str | None
    null_mean: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    effect_size: float | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    sentence: str
    tests: tuple[Comparison, ...] = ()  # all that the claim rests on, the weakest among them
    smallest: float | None = None  # effect that matters; in the claimed direction, like the following
    detectable: float | None = None  # effect that all tests together find in at least 80 % of cases
    detectable_p: float | None = None  # at this p before correction
    contexts_needed: int | None = None  # for the effect that matters; None where more text wouldn't do, or isn't needed
    tokens_needed: int | None = None  # rare ones in them


@dataclass(frozen=True, kw_only=True)
class Check:
    """A property of the measurement, with its interval and what is asked of it. It may hold of a random model, too."""

    name: str
    title: str
    value: float | None
    low: float | None
    high: float | None
    at_least: float
    sentence: str

    @property
    def holds(self) -> bool | None:
        """Whether the lower end of the interval reaches what is asked; None where it could not be measured."""
        return None if self.low is None else self.low >= self.at_least


@dataclass(frozen=True, kw_only=True)
class Claims(Shown):
    """All claims of a run, Holm over `claims`, and checks of the measurement beside them."""

    claims: tuple[Claim, ...]
    checks: tuple[Check, ...]
    step: int | None

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return one row for each claim and each check."""
        rows = [(c.title, c.effect, ends_of(c.effect_low, c.effect_high), c.p_holm, c.verdict) for c in self.claims]
        holds = {True: "holds", False: "does not hold", None: "not measured"}
        checks = [(c.title, c.value, ends_of(c.low, c.high), None, holds[c.holds]) for c in self.checks]
        return ["", "effect", "95 %", "p, Holm", "verdict"], [*rows, *checks]


def ends_of(low: float | None, high: float | None) -> tuple[float, float] | None:
    """Return both ends of an interval, or None where either is unknown."""
    return None if low is None or high is None else (low, high)


def against_groups(
    found: AgainstNull, statistic: str, group: str, null: str, *, above: bool, step: float = 0.0
) -> Comparison:
    """Return the test of a group's statistic against random groups; its interval is value less 95 % of the draws.

    `step`: by how much values differ at least, where the statistic counts.
    """
    sign = 1 if above else -1
    ends = sorted((sign * (found.value - found.null_high), sign * (found.value - found.null_low)))
    return Comparison(
        statistic=statistic,
        group=group,
        value=found.value,
        null=f"{null} random groups",
        null_mean=found.null_mean,
        effect=sign * (found.value - found.null_mean),
        effect_low=ends[0],
        effect_high=ends[1],
        effect_size=sign * found.effect_size,
        p=found.p_above if above else found.p_below,
        least_p=1 / (1 + found.n_draws),
        over="groups",
        noise=GroupNoise(null=quantiles_of_null(found, above=above), step=step),
    )


def bootstrap_test(
    statistic: str,
    group: str | None,
    sums: Float[np.ndarray, "context column"],
    ratio: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    *,
    n_draws: int = 1999,
    n_tokens: int | None = None,
) -> Comparison:
    """Test that a statistic is above 0 by a bootstrap over contexts; `ratio` takes totals [draw, column] of their sums.

    `n_tokens`: rare tokens in all contexts, to say how many more would be needed. With fewer than 40 contexts its p is
    too small too often (at 20, 0.9 % of nulls have p below 0.0033): refused.
    """
    value, draws = resampled(sums, ratio, rng, n_draws)
    n, known = len(sums), draws[np.isfinite(draws)]
    low, high = np.quantile(known, expanded_levels(n)) if len(known) else (np.nan, np.nan)
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    speaks = (draws > 0) & np.isfinite(value)  # what isn't a number speaks for nothing
    return Comparison(
        statistic=statistic,
        group=group,
        value=value,
        null="no effect, contexts resampled",
        null_mean=0.0,
        effect=value,
        effect_low=float(low),
        effect_high=float(high),
        effect_size=value / spread if spread > 0 else np.nan,
        p=float(1 + (~speaks).sum()) / (1 + n_draws),
        least_p=1 / (1 + n_draws),
        over="contexts",
        n_contexts=n,
        n_tokens=n_tokens,
        noise=context_noise(known - value) if np.isfinite(value) and len(known) == n_draws else None,
    )


def resampled(
    sums: Float[np.ndarray, "context column"],
    ratio: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    n_draws: int,
) -> tuple[float, Float[np.ndarray, " draw"]]:
    """Return a statistic of all contexts, and of resampled ones; refuse fewer than a p-value needs."""
    n = len(sums)
    if n < FEWEST_CONTEXTS:
        raise InvalidConfig(
            f"{n} contexts are too few for resampling them to give a p-value; {FEWEST_CONTEXTS} are enough. Analyse "
            "more tokens of more text.",
            argument="n_tokens",
        )
    value = float(ratio(sums.sum(0, keepdims=True))[0])
    return value, ratio(rng.multinomial(n, np.full(n, 1 / n), size=n_draws) @ sums)
