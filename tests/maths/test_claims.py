"""Verdicts: the rule, in every branch; what a planted effect and noise get."""

from dataclasses import replace

import numpy as np
import pytest

from rareneuron.errors import InvalidConfig, Unavailable
from rareneuron.maths.claims import (
    Check,
    Comparison,
    Hypothesis,
    against_groups,
    bootstrap_test,
)
from rareneuron.maths.power import GroupNoise, Quantiles
from rareneuron.maths.significance import FEWEST_CONTEXTS, against_null
from rareneuron.maths.verdicts import judge

CLAIMED = Hypothesis(name="claimed", title="It is so", source="Table 0", smallest=0.1)


def noise(spread):
    """Normal errors."""
    return GroupNoise(null=Quantiles(probability=(0.025, 0.975), value=(-1.96 * spread, 1.96 * spread)))


def made(p=0.001, effect=0.5, least_p=0.0005, spread=0.02, **other):
    return Comparison(
        statistic="ρ",
        group="boosting",
        value=0.7,
        null="uniform random groups",
        null_mean=0.2,
        effect=effect,
        effect_low=0.3,
        effect_high=0.7,
        effect_size=5.0,
        p=p,
        least_p=least_p,
        **{"over": "groups", "noise": noise(spread)} | other,
    )


@pytest.mark.parametrize(
    ("test", "verdict", "word"),
    [
        (made(), "supported", "every null"),
        (made(effect=0.05), "inconclusive", "smaller than what matters"),
        (made(p=0.03), "inconclusive", "not after correction"),
        (made(p=0.3), "not supported", "though they could have"),
        (made(p=0.3, spread=0.03), "inconclusive", "could have missed it"),
        (made(p=0.3, noise=None), "inconclusive", "isn't known"),
        (made(p=0.3, least_p=0.02), "inconclusive", "too few draws"),
        (made(p=0.004, least_p=0.001), "inconclusive", "too close to call"),
        (made(p=0.004, least_p=0.00001), "supported", "every null"),
    ],
)
def test_the_rule(test, verdict, word):
    others = [(replace(CLAIMED, name=f"other {k}"), [made(p=0.9)]) for k in range(9)]
    claim = judge([(CLAIMED, [test]), *others])[0]
    assert claim.verdict == verdict
    assert word in claim.sentence
    assert claim.p == test.p
    assert claim.p_holm >= claim.p


def test_all_tests_of_a_claim_must_hold_and_the_weakest_speaks():
    good, bad = made(), replace(made(p=0.4), null="matched random groups")
    assert judge([(CLAIMED, [good, good])])[0].verdict == "supported"
    claim = judge([(CLAIMED, [good, bad])])[0]
    assert claim.verdict == "not supported"
    assert claim.detectable <= CLAIMED.smallest
    assert claim.null == "matched random groups"


def test_what_could_not_be_tested_is_inconclusive_and_leaves_the_family_as_it_is():
    claims = judge(
        [(CLAIMED, [made(p=0.02)]), (replace(CLAIMED, name="other"), Unavailable("There is no such group."))]
    )
    assert claims[1].verdict == "inconclusive"
    assert claims[1].sentence == "There is no such group."
    assert claims[1].p is None
    assert claims[0].p_holm == 0.02  # of one test


def test_lower_is_told_as_lower():
    draws = np.random.default_rng(0).normal(5, 1, 999)
    test = against_groups(against_null(1.0, draws), "d_eff", "boosting", "uniform", above=False)
    assert test.effect > 0
    claim = judge([(CLAIMED, [test])])[0]
    assert claim.verdict == "supported"
    assert claim.effect < 0
    assert claim.effect_low < claim.effect < claim.effect_high < 0
    assert claim.effect_size < 0
    wrong_side = against_groups(against_null(9.0, draws), "d_eff", "boosting", "uniform", above=False)
    claim = judge([(replace(CLAIMED, smallest=4.0), [wrong_side])])[0]
    assert claim.verdict == "not supported"
    assert claim.effect > 0
    assert 2 < claim.detectable < 4  # counted in the claimed direction; the draws have a standard deviation of 1


@pytest.mark.slow
def test_noise_is_supported_no_more_often_than_holm_allows_and_a_planted_effect_is():
    """200 tables of ten claims of noise; then one of them planted."""
    rng = np.random.default_rng(0)
    hypotheses = [Hypothesis(name=str(k), title="", source="", smallest=0.0) for k in range(10)]
    families, found = 0, 0
    for _ in range(200):
        draws = rng.normal(size=(10, 2, 399))
        values = rng.normal(size=(10, 2))
        for planted in (0.0, 6.0):
            values[0] += planted
            tests = [
                [
                    against_groups(against_null(v, d), "x", "g", "uniform", above=True)
                    for v, d in zip(vs, ds, strict=True)
                ]
                for vs, ds in zip(values, draws, strict=True)
            ]
            verdicts = [c.verdict for c in judge(list(zip(hypotheses, tests, strict=True)))]
            if planted:
                found += verdicts[0] == "supported"
            else:
                families += "supported" in verdicts
    assert families <= 20  # 5 % of 200 are 10, three standard errors more 19; two tests a claim make it far fewer
    assert found >= 180


def test_every_test_needs_an_effect_that_matters():
    """The weakest by p may have a large effect; another's may be too small."""
    small, large = made(p=0.001, effect=0.0001), made(p=0.001 + 1e-9, effect=0.5)
    for tests in ([small, large], [large, small]):
        claim = judge([(CLAIMED, tests)])[0]
        assert claim.verdict == "inconclusive"
        assert claim.p == large.p
    assert judge([(CLAIMED, [large, large])])[0].verdict == "supported"


def test_of_equal_p_the_smaller_effect_speaks():
    uniform, matched = made(effect=0.7), replace(made(effect=0.3), null="matched random groups")
    for tests in ([uniform, matched], [matched, uniform]):
        claim = judge([(CLAIMED, tests)])[0]
        assert claim.null == "matched random groups"
        assert claim.effect == 0.3
        assert [test.null for test in claim.tests] == [test.null for test in tests]


def ratio_of(totals):
    return totals[:, 0] / totals[:, 1]


def test_contexts_resampled_agree_with_a_loop():
    rng = np.random.default_rng(0)
    sums = np.stack([rng.normal(0.1, 1, 50), rng.uniform(1, 2, 50)], 1)
    found = bootstrap_test("x", None, sums, ratio_of, np.random.default_rng(1), n_draws=1999)
    picked = np.random.default_rng(2)
    drawn = []
    for _ in range(4000):
        total = sums[picked.integers(0, 50, 50)].sum(0)
        drawn.append(total[0] / total[1])
    assert found.value == found.effect == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum())
    assert abs(found.p - np.mean(np.array(drawn) <= 0)) < 0.04
    assert np.allclose([found.effect_low, found.effect_high], np.quantile(drawn, [0.025, 0.975]), atol=0.02)


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_what_is_not_a_number_speaks_for_nothing(share):
    """Draws that aren't numbers count against the claim, and a value that isn't one has p = 1."""
    rng = np.random.default_rng(0)
    sums = np.stack([rng.normal(3, 1, 50), np.ones(50)], 1)

    def ratio(totals):
        out = ratio_of(totals)
        out[: round(share * len(out))] = np.nan
        return out

    found = bootstrap_test("x", None, sums, ratio, np.random.default_rng(1), n_draws=399)
    assert found.p == pytest.approx((1 + round(share * 399)) / 400 if share < 1 else 1)
    assert np.isfinite(found.effect_low) == (share < 1)
    assert (found.noise is None) == (share > 0)


def test_too_few_contexts_are_refused_since_their_p_is_too_small():
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidConfig, match="39 contexts are too few"):
        bootstrap_test("x", None, np.ones((39, 2)), ratio_of, rng)
    counts = {}
    for n in (8, FEWEST_CONTEXTS):
        p = []
        for _ in range(1200):
            sums = np.stack([rng.normal(size=n), rng.uniform(1, 2, n)], 1)
            weights = rng.multinomial(n, np.full(n, 1 / n), size=499)
            p.append((1 + (ratio_of(weights @ sums) <= 0).sum()) / 500)
        counts[n] = np.mean(np.array(p) <= 0.05), np.mean(np.array(p) <= 0.0033)
    assert 0.03 <= counts[FEWEST_CONTEXTS][0] <= 0.07
    assert counts[FEWEST_CONTEXTS][1] <= 0.008
    assert counts[8][1] > 0.008, "what the limit is for"


@pytest.mark.parametrize(("low", "holds"), [(0.9, True), (0.7, False), (None, None)])
def test_a_check_holds_where_its_whole_interval_does(low, holds):
    check = Check(name="x", title="", value=0.85, low=low, high=0.95, at_least=0.8, sentence="")
    assert check.holds is holds
