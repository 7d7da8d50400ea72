"""Effects of the size that a test says it would find are found as often as it says."""

from dataclasses import replace

import numpy as np
import pytest

from rareneuron.errors import Unavailable
from rareneuron.maths.claims import Hypothesis, against_groups, bootstrap_test
from rareneuron.maths.power import (
    MARGIN,
    POWER,
    Quantiles,
    contexts_needed,
    critical_p,
    power_of_each,
    quantiles_of,
    quantiles_of_null,
    relative_error,
)
from rareneuron.maths.significance import LEVEL, against_null, tail
from rareneuron.maths.trend import drift, walk_noise
from rareneuron.maths.verdicts import judge

CLAIMED = Hypothesis(name="claimed", title="It is so", source="Table 0", smallest=0.1)
KEPT_SINCE = ("null_lowest", "null_q01", "null_q20", "null_q80", "null_q99", "null_highest")
OTHERS = 4  # claims of the same table


def found(p, least_p, n_tests):
    """The rule: whether a p is small enough where every other claim's is smaller still, and not too close to call."""
    return p * n_tests * (1 + MARGIN * relative_error(p, least_p)) <= LEVEL


@pytest.mark.parametrize("n_draws", [99, 400, 999, 1999])
@pytest.mark.parametrize("n_tests", [1, 2, 15, 40])
def test_the_level_is_the_largest_p_that_the_rule_accepts(n_draws, n_tests):
    least = 1 / (1 + n_draws)
    p, accepted = critical_p(least, n_tests), [k * least for k in range(1, n_draws) if found(k * least, least, n_tests)]
    assert p == max(accepted, default=np.nan) or (np.isnan(p) and not accepted)


def test_quantiles_are_read_where_they_are_known_and_normal_between_and_beyond():
    p = np.array([0.001, 0.025, 0.2, 0.8, 0.975, 0.999])
    z = np.array([-3.0902, -1.96, -0.8416, 0.8416, 1.96, 3.0902])
    normal = Quantiles(probability=tuple(p), value=tuple(5 + 2 * z))
    for probability, score in ((0.001, -3.0902), (0.1, -1.2816), (0.5, 0.0), (0.0005, -3.2905), (0.995, 2.5758)):
        assert normal.at(probability) == pytest.approx(5 + 2 * score, abs=2e-3)
        assert normal.turned().at(1 - probability) == pytest.approx(-5 - 2 * score, abs=2e-3)
    drawn = quantiles_of(np.arange(99.0)[::-1])
    assert (drawn.at(0.01), drawn.at(0.5), drawn.at(0.99)) == pytest.approx((0, 49, 98))
    assert not Quantiles(probability=(0.1, 0.9), value=(1.0, 1.0)).known


def skewed(rng, *shape):
    """Sums of few lognormal numbers: such as the effects of neurons are."""
    return rng.lognormal(0, 1, (*shape, 5)).mean(-1)


def counted(rng, *shape):
    """Whole numbers, such as effective dimensions."""
    return np.round(rng.normal(size=shape))


def share_found(sample, above, n_tests, size=None, n_nulls=120):
    """How often a group is found whose statistic is moved by the detectable size, or by another one of the draws."""
    rng, draws, sign, shares = np.random.default_rng(0), 999, 1 if above else -1, []
    for _ in range(n_nulls):
        drawn, critical = np.sort(sample(rng, draws)), critical_p(1 / (1 + draws), n_tests)
        null, step = against_null(0.0, drawn), float(sample is counted)
        of = against_groups(null, "x", "g", "uniform", above=above, step=step).noise.detectable(critical, POWER)
        values = sample(rng, 200) + sign * (np.ceil(of) if step else of if size is None else size(drawn))
        beyond = draws - np.searchsorted(drawn, values) if above else np.searchsorted(drawn, values, "right")
        shares.append(((1 + beyond) / (1 + draws) <= critical).mean())
    return np.mean(shares)


@pytest.mark.slow  # a simulation
@pytest.mark.parametrize("n_tests", [1, OTHERS, 15])
@pytest.mark.parametrize("above", [True, False])
def test_a_group_with_the_detectable_effect_is_found_in_four_of_five_cases(above, n_tests):
    assert abs(share_found(skewed, above, n_tests) - POWER) < 0.05  # 0.015 is its error
    assert share_found(counted, above, n_tests) >= POWER - 0.01


def test_standard_deviations_would_not_do():
    assert abs(share_found(skewed, True, 15, size=lambda drawn: (3.09 + 0.84) * drawn.std()) - POWER) > 0.2


def resampled(rng, effect, n_contexts=60, n_draws=499):
    """A test of one ratio over contexts whose sums are skewed."""
    tokens = rng.integers(1, 8, n_contexts)
    sums = np.stack([rng.gamma(0.5 * tokens) - 0.5 * tokens + effect * tokens, tokens], 1)
    return bootstrap_test(
        "x", None, sums, lambda t: t[:, 0] / t[:, 1], rng, n_draws=n_draws, n_tokens=int(tokens.sum())
    )


@pytest.mark.slow  # a simulation
def test_an_effect_over_contexts_of_the_detectable_size_is_found_in_four_of_five_cases():
    rng = np.random.default_rng(0)
    critical = critical_p(1 / 500, OTHERS)
    effect = float(np.mean([resampled(rng, 0.0).noise.detectable(critical, POWER) for _ in range(100)]))
    hits = np.mean([resampled(rng, effect).p <= critical for _ in range(400)])
    assert -0.07 < hits - POWER < 0.1  # 0.02 is its error; of sums skewed to the right more are found
    assert np.mean([resampled(rng, effect / 2).p <= critical for _ in range(100)]) < 0.5


@pytest.mark.slow  # a simulation
def test_four_times_the_contexts_find_half_the_effect():
    rng = np.random.default_rng(0)
    critical = critical_p(1 / 500, OTHERS)
    few, many = (
        np.mean([resampled(rng, 0.0, n).noise.detectable(critical, POWER) for _ in range(60)]) for n in (60, 240)
    )
    assert few / many == pytest.approx(2, rel=0.1)
    assert contexts_needed(60, float(few), float(many)) == pytest.approx(240, rel=0.2)
    assert contexts_needed(60, 1.0, 2.0) == 15


def test_a_claim_of_both_groups_is_found_in_four_of_five_cases_or_a_little_more():
    """Each group beside two nulls; the errors of both nulls are one group's."""
    rng = np.random.default_rng(0)
    draws, others = 999, [(replace(CLAIMED, name=str(k)), [against(rng, 0.0)]) for k in range(OTHERS - 1)]
    critical, hits = critical_p(1 / (1 + draws), OTHERS), []
    for _ in range(30):
        drawn = {(g, n): rng.gamma(3, size=draws) for g in ("boosting", "suppressing") for n in ("uniform", "matched")}
        nulls = [against_groups(against_null(0.0, d), "x", g, n, above=True) for (g, n), d in drawn.items()]
        judged = judge([(CLAIMED, nulls), *others])[0]
        assert max(test.detectable for test in judged.tests) < judged.detectable  # alone each finds less as often
        values = {group: rng.gamma(3, size=300) + judged.detectable for group in ("boosting", "suppressing")}
        worst = [(1 + (d >= values[group][:, None]).sum(1)) / (1 + draws) for (group, _), d in drawn.items()]
        hits.append((np.max(worst, 0) <= critical).mean())
    assert POWER - 0.03 < np.mean(hits) < POWER + 0.08
    assert power_of_each(1) == pytest.approx(POWER)


def against(rng, value):
    return against_groups(against_null(value, rng.normal(size=999)), "x", "g", "uniform", above=True)


def test_runs_that_kept_fewer_quantiles_are_taken_as_normal_beyond_them():
    draws = np.random.default_rng(0).normal(3, 2, 5000)
    found = against_null(0.0, draws)
    older = replace(found, **dict.fromkeys(KEPT_SINCE, np.nan))
    for above in (True, False):
        new, old = (quantiles_of_null(x, above=above) for x in (found, older))
        for p in (0.002, 0.1, 0.2, 0.9):
            assert old.at(p) == pytest.approx(new.at(p), rel=0.1)


def test_few_draws_keep_their_ends():
    draws = np.random.default_rng(0).normal(size=199)
    found = against_null(0.0, draws)
    assert tail(199) == 1 / 200
    assert (found.null_lowest, found.null_highest) == (draws.min(), draws.max())
    many = np.random.default_rng(0).normal(size=3999)
    assert np.mean(many < against_null(0.0, many).null_lowest) == pytest.approx(0.001, abs=1 / 3999)


def test_a_walk_that_tends_upwards_is_found_as_often_as_it_says():
    rng = np.random.default_rng(0)
    steps = np.array([0.0, 1, 3, 2, 2, 5, 4, 6, 9, 8, 10, 12])
    noise, critical = walk_noise(steps, rng), critical_p(1 / 1025, 2)
    tau = noise.detectable(critical, POWER)
    assert 0.5 < tau <= 1
    chance = np.linspace(0.5, 1, 51)[np.isclose(noise.tau.mean(1), tau)][0]
    hits, size = 0, np.abs(np.diff(steps))
    for _ in range(300):
        walk = np.concatenate([[0.0], (np.where(rng.random(11) < chance, 1, -1) * size).cumsum()])
        hits += drift(walk, rng)[1] <= critical
    assert POWER - 0.08 < hits / 300 < POWER + 0.12  # chances are tried in hundredths
    assert np.isnan(walk_noise(steps[:4], rng).detectable(critical, POWER))  # no walk of so few steps is found


def test_what_is_not_found_says_what_would_be():
    rng = np.random.default_rng(0)
    over_contexts = resampled(rng, -0.1)
    claim = judge([(CLAIMED, [over_contexts])])[0]
    assert claim.verdict == "inconclusive"
    needed = 60 * (claim.detectable / 0.1) ** 2
    assert claim.contexts_needed == int(np.ceil(needed))
    assert claim.tokens_needed == int(np.ceil(over_contexts.n_tokens * claim.contexts_needed / 60))
    assert f"{claim.contexts_needed:,} contexts with {claim.tokens_needed:,} rare tokens" in claim.sentence
    by_groups = judge([(CLAIMED, [against(rng, 0.0)])])[0]
    assert by_groups.verdict == "inconclusive"
    assert by_groups.contexts_needed is None
    assert "more text doesn't change" in by_groups.sentence
    both = judge([(CLAIMED, [over_contexts, against(rng, 0.0)])])[0]
    assert both.contexts_needed is None  # text would help one of its tests alone
    any_size = judge([(replace(CLAIMED, smallest=0.0), [against(rng, 0.0)])])[0]
    assert any_size.verdict == "inconclusive"
    assert "any would matter" in any_size.sentence
    few = judge([(CLAIMED, [replace(against(rng, 0.0), least_p=0.06)])])[0]
    assert "however large" in few.sentence
    untested = judge([(CLAIMED, Unavailable("No groups."))])[0]
    assert (untested.detectable, untested.smallest, untested.sentence) == (None, 0.1, "No groups.")
