"""Hypotheses and their verdicts: `supported`, `not supported`, `inconclusive`.

A hypothesis has one direction and a smallest effect of interest, both fixed before data are seen (docs/claims.md). It
may rest on several tests (two groups, two kinds of random groups, several matrices): then it needs all of them, and its
p is the largest (intersection-union). Holm corrects over the table. "Not supported" says that these data don't show it
though they could have, not that it is false.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rareneuron.errors import InvalidConfig, Unavailable
from rareneuron.maths.significance import FEWEST_CONTEXTS, LEVEL, AgainstNull, expanded_levels, finite, holm
from rareneuron.shown import Shown

Verdict = Literal["supported", "not supported", "inconclusive"]

MARGIN = 1.96  # standard errors by which p must stay below LEVEL after Holm, were the null drawn again


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A finding as it is claimed, before any data are seen."""

    name: str
    title: str  # the finding as a sentence
    source: str  # where the paper says so, or "beyond the paper"
    smallest: float  # effect of interest, in the statistic's unit and the claimed direction


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test of a hypothesis. `effect` is counted in the claimed direction: above 0 speaks for it."""

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


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A hypothesis with what the data say. Numbers are those of its weakest test, None where there is none.

    `effect` and `effect_size` keep the statistic's own sign: value less the null's mean.
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


def judge(evidence: Sequence[tuple[Hypothesis, Sequence[Comparison] | Unavailable]]) -> tuple[Claim, ...]:
    """Return the verdict on each hypothesis, given its tests, or the reason why there are none."""
    weakest = [None if isinstance(tests, Unavailable) else weakest_of(tests) for _, tests in evidence]
    tested = [k for k, test in enumerate(weakest) if test is not None]
    adjusted = dict(zip(tested, holm(np.array([test.p for test in weakest if test is not None])), strict=True))
    out = []
    for k, (hypothesis, tests) in enumerate(evidence):
        test = weakest[k]
        if isinstance(tests, Unavailable) or test is None:
            out.append(untested_claim(hypothesis, tests.why if isinstance(tests, Unavailable) else ""))
            continue
        least = max(other.least_p for other in tests)
        claim = verdict_of(
            hypothesis,
            test,
            float(adjusted[k]),
            least_effect=min(other.effect for other in tests),
            could=least * len(tested) <= LEVEL,
        )
        out.append(replace(claim, tests=tuple(tests)))
    return tuple(out)


def weakest_of(tests: Sequence[Comparison]) -> Comparison:
    """Return the test with the largest p; of equal ones, the smallest effect."""
    return max(tests, key=lambda test: (test.p, -test.effect))


def verdict_of(hypothesis: Hypothesis, test: Comparison, p_holm: float, *, least_effect: float, could: bool) -> Claim:
    """Apply the rule of docs/claims.md, in its order. The effect must be large enough in every test."""
    verdict: Verdict = "inconclusive"
    if p_holm <= LEVEL < p_holm * (1 + MARGIN * relative_error(test)):
        why = "too close to call: other draws of the null could give a p on the other side of what Holm asks for"
    elif p_holm <= LEVEL and least_effect >= hypothesis.smallest:
        verdict, why = "supported", "against every null, with an effect of the size asked for"
    elif p_holm <= LEVEL:
        why = f"the effect is there and smaller than what matters ({hypothesis.smallest:g})"
    elif test.p <= LEVEL:
        why = "p is small by itself and not after correction for the number of claims"
    elif not could:
        why = "there are too few draws or steps for this test to say yes"
    else:
        verdict, why = "not supported", "these data don't show it, though they could have"
    against = f", {test.null} {test.null_mean:.3g}" if np.isfinite(test.null_mean) else f" ({test.null})"
    of = "" if test.group is None else f" of {test.group}"
    sentence = f"{test.statistic}{of}: {test.value:.3g}{against}; p {test.p:.2g}, after Holm {p_holm:.2g}: {why}."
    numbers = {name: getattr(test, name) for name in ("effect", "effect_low", "effect_high", "effect_size")}
    if (test.value - test.null_mean) * test.effect < 0:  # it is claimed to be lower
        numbers = own_sign(test)
    return Claim(
        name=hypothesis.name,
        title=hypothesis.title,
        source=hypothesis.source,
        statistic=test.statistic,
        group=test.group,
        value=finite(test.value),
        null=test.null,
        null_mean=finite(test.null_mean),
        effect=finite(numbers["effect"]),
        effect_low=finite(numbers["effect_low"]),
        effect_high=finite(numbers["effect_high"]),
        effect_size=finite(numbers["effect_size"]),
        p=test.p,
        p_holm=p_holm,
        verdict=verdict,
        sentence=sentence[0].upper() + sentence[1:] if sentence[0].isascii() else sentence,  # κ is not Κ
    )


def relative_error(test: Comparison) -> float:
    """Return the binomial standard error of p, over p, if the null were drawn again; 0 where no draw lay beyond."""
    beyond = round(test.p / test.least_p) - 1
    return 0.0 if beyond <= 0 else float(np.sqrt((1 - test.p) * test.least_p / test.p))


def own_sign(test: Comparison) -> dict[str, float]:
    """Return the effect as value less null, for a claim that the value is lower."""
    return {
        "effect": -test.effect,
        "effect_low": -test.effect_high,
        "effect_high": -test.effect_low,
        "effect_size": -test.effect_size,
    }


def untested_claim(hypothesis: Hypothesis, reason: str) -> Claim:
    """Return an inconclusive claim that says why there are no tests."""
    return Claim(
        name=hypothesis.name,
        title=hypothesis.title,
        source=hypothesis.source,
        statistic=None,
        group=None,
        value=None,
        null=None,
        null_mean=None,
        effect=None,
        effect_low=None,
        effect_high=None,
        effect_size=None,
        p=None,
        p_holm=None,
        verdict="inconclusive",
        sentence=reason,
    )


def against_groups(found: AgainstNull, statistic: str, group: str, null: str, *, above: bool) -> Comparison:
    """Return the test of a group's statistic against random groups; its interval is value less 95 % of the draws."""
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
    )


def bootstrap_test(
    statistic: str,
    group: str | None,
    sums: Float[np.ndarray, "context column"],
    ratio: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    *,
    n_draws: int = 1999,
) -> Comparison:
    """Test that a statistic is above 0 by a bootstrap over contexts; `ratio` takes totals [draw, column] of their sums.

    With fewer than 40 contexts its p is too small too often (at 20, 0.9 % of nulls have p below 0.0033): refused.
    """
    n = len(sums)
    if n < FEWEST_CONTEXTS:
        raise InvalidConfig(
            f"{n} contexts are too few for resampling them to give a p-value; {FEWEST_CONTEXTS} are enough. Analyse "
            "more tokens of more text.",
            argument="n_tokens",
        )
    value = float(ratio(sums.sum(0, keepdims=True))[0])
    draws = ratio(rng.multinomial(n, np.full(n, 1 / n), size=n_draws) @ sums)
    low, high = np.quantile(draws, expanded_levels(n))
    spread = float(draws.std(ddof=1))
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
        p=float(1 + (draws <= 0).sum()) / (1 + n_draws),
        least_p=1 / (1 + n_draws),
    )
