"""From tests to verdicts: `supported`, `not supported`, `inconclusive`.

A hypothesis may rest on several tests (two groups, two kinds of random groups, several matrices): then it needs all of
them, and its p is the largest (intersection-union). Holm corrects over the table. "Not supported" says that these data
don't show it though they could have, not that it is false; that they could have is shown by the smallest effect that
the tests would have found (`maths.power`), which must not be larger than the effect of interest.
Oracle: tests/maths/test_claims.py, every branch of the rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rareneuron.errors import Unavailable
from rareneuron.maths.claims import Claim, Comparison, Hypothesis, Verdict
from rareneuron.maths.power import MARGIN, POWER, Over, contexts_needed, critical_p, power_of_each, relative_error
from rareneuron.maths.significance import LEVEL, finite, holm

LIMITS = {  # what makes small effects hard to find
    "contexts": "What limits it is how much contexts differ; more text would narrow it.",
    "groups": "What limits it is how much random groups differ, which more text doesn't change.",
    "samples": "What limits it is how much samples of as many neurons differ, which more text doesn't change.",
    "steps": "What limits it is how much walks of as many steps differ, which more text doesn't change.",
}


def judge(evidence: Sequence[tuple[Hypothesis, Sequence[Comparison] | Unavailable]]) -> tuple[Claim, ...]:
    """Return the verdict on each hypothesis, given its tests, or the reason why there are none."""
    weakest = [None if isinstance(tests, Unavailable) else weakest_of(tests) for _, tests in evidence]
    tested = [k for k, test in enumerate(weakest) if test is not None]
    adjusted = dict(zip(tested, holm(np.array([test.p for test in weakest if test is not None])), strict=True))
    out = []
    for k, (hypothesis, tests) in enumerate(evidence):
        if isinstance(tests, Unavailable) or weakest[k] is None:
            out.append(untested_claim(hypothesis, tests.why if isinstance(tests, Unavailable) else ""))
            continue
        seen = seen_by(hypothesis, tests, len(tested))
        out.append(verdict_of(hypothesis, with_power(tests, len(tested)), float(adjusted[k]), seen))
    return tuple(out)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the tests of a claim would have found."""

    could: bool  # whether every test can give a p that Holm accepts
    p: float  # that it asks for, before correction
    detectable: float  # by all tests together; NaN where it isn't known
    contexts: int | None  # needed for the effect that matters, where more text would do
    tokens: int | None
    over: Over | None  # what limits it


def seen_by(hypothesis: Hypothesis, tests: Sequence[Comparison], n_tested: int) -> Seen:
    """Return what a claim's tests would have found together, with Holm's hardest level for this many claims.

    Tests of one group's statistic against several nulls share its errors; the others must find it at once.
    """
    critical = [critical_p(test.least_p, n_tested) for test in tests]
    power = power_of_each(len({(test.group, test.statistic, test.over) for test in tests}))
    sizes = [detectable_by(test, p, power) for test, p in zip(tests, critical, strict=True)]
    largest = int(np.argmax(np.nan_to_num(sizes, nan=np.inf)))
    contexts = tokens = None
    missed = [k for k, size in enumerate(sizes) if not size <= hypothesis.smallest]
    if missed and hypothesis.smallest > 0 and all(tests[k].n_contexts and np.isfinite(sizes[k]) for k in missed):
        needed = [(contexts_needed(tests[k].n_contexts or 0, sizes[k], hypothesis.smallest), k) for k in missed]
        contexts, k = max(needed)
        n_tokens = tests[k].n_tokens
        tokens = None if n_tokens is None else int(np.ceil(n_tokens * contexts / (tests[k].n_contexts or 1)))
    return Seen(
        could=bool(np.isfinite(critical).all()),
        p=float(min(critical)),
        detectable=float(sizes[largest]),
        contexts=contexts,
        tokens=tokens,
        over=tests[largest].over,
    )


def with_power(tests: Sequence[Comparison], n_tested: int) -> tuple[Comparison, ...]:
    """Return the tests with the effect that each finds by itself in 80 % of cases."""
    sizes = [detectable_by(test, critical_p(test.least_p, n_tested), POWER) for test in tests]
    return tuple(replace(test, noise=None, detectable=size) for test, size in zip(tests, sizes, strict=True))


def detectable_by(test: Comparison, p: float, power: float) -> float:
    """Return the smallest effect that a test finds at this p with this power; NaN where nothing is known of it."""
    return np.nan if test.noise is None or np.isnan(p) else test.noise.detectable(p, power)


def weakest_of(tests: Sequence[Comparison]) -> Comparison:
    """Return the test with the largest p; of equal ones, the smallest effect."""
    return max(tests, key=lambda test: (test.p, -test.effect))


def verdict_of(hypothesis: Hypothesis, tests: tuple[Comparison, ...], p_holm: float, seen: Seen) -> Claim:
    """Return the claim with its verdict, its sentence and the numbers of its weakest test."""
    test = weakest_of(tests)
    verdict, why = rule(hypothesis, tests, p_holm, seen)
    against = f", {test.null} {test.null_mean:.3g}" if np.isfinite(test.null_mean) else f" ({test.null})"
    if test.margin is not None:
        against = f"{against}, a difference of {test.value - test.null_mean:.3g} with a margin of {test.margin:g}"
    of = "" if test.group is None else f" of {test.group}"
    sentence = f"{test.statistic}{of}: {test.value:.3g}{against}; p {test.p:.2g}, after Holm {p_holm:.2g}: {why}."
    if verdict != "supported":
        sentence = f"{sentence} {what_could_be_seen(hypothesis, seen)}"
    numbers = {name: getattr(test, name) for name in ("effect", "effect_low", "effect_high", "effect_size")}
    if test.margin is None and (test.value - test.null_mean) * test.effect < 0:  # it is claimed to be lower
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
        tests=tests,
        smallest=hypothesis.smallest,
        detectable=finite(seen.detectable),
        detectable_p=finite(seen.p),
        contexts_needed=seen.contexts,
        tokens_needed=seen.tokens,
    )


def rule(hypothesis: Hypothesis, tests: Sequence[Comparison], p_holm: float, seen: Seen) -> tuple[Verdict, str]:
    """Apply the rule of docs/claims.md, in its order. The effect must be large enough in every test."""
    test, least_effect = weakest_of(tests), min(test.effect for test in tests)
    if p_holm <= LEVEL < p_holm * (1 + MARGIN * relative_error(test.p, test.least_p)):
        why = "too close to call: other draws of the null could give a p on the other side of what Holm asks for"
    elif p_holm <= LEVEL and hypothesis.absence:
        return "supported", "the difference is smaller than the margin, against every null"
    elif p_holm <= LEVEL and least_effect >= hypothesis.smallest:
        return "supported", "against every null, with an effect of the size asked for"
    elif p_holm <= LEVEL:
        why = f"the effect is there and smaller than what matters ({hypothesis.smallest:g})"
    elif test.p <= LEVEL:
        why = "p is small by itself and not after correction for the number of claims"
    elif not seen.could:
        why = "there are too few draws or steps for this test to say yes"
    elif seen.detectable <= hypothesis.smallest:  # false for NaN
        return "not supported", "these data don't show it, though they could have"
    else:
        why = "these data don't show it, and they could have missed it"
    return "inconclusive", why


def what_could_be_seen(hypothesis: Hypothesis, seen: Seen) -> str:
    """Return what a claim's tests would have found, and what it would take to find the effect that matters."""
    if not seen.could:
        return "No margin would do, however wide." if hypothesis.absence else "No effect would be found, however large."
    if not np.isfinite(seen.detectable):
        return "How large an effect would be found isn't known."
    told = smallest_seen(hypothesis, seen)
    if seen.detectable <= hypothesis.smallest or seen.over is None:
        return told
    if seen.contexts is not None:
        tokens = "" if seen.tokens is None else f" with {seen.tokens:,} rare tokens"
        return f"{told} That would take about {seen.contexts:,} contexts{tokens} in this test."
    return f"{told} {LIMITS[seen.over]}"


def smallest_seen(hypothesis: Hypothesis, seen: Seen) -> str:
    """Return a sentence on the smallest effect that would be found, or the smallest margin that would do."""
    often = f"in {100 * POWER:.0f} % of such runs"
    if hypothesis.absence:
        return (
            f"The smallest margin that no difference at all would be shown to stay within {often} is "
            f"{seen.detectable:.2g}, and {hypothesis.smallest:g} is asked for."
        )
    matters = f"{hypothesis.smallest:g} matters" if hypothesis.smallest > 0 else "any would matter"
    return f"The smallest effect that would be found {often} is {seen.detectable:.2g}, and {matters}."


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
        smallest=hypothesis.smallest,
    )
