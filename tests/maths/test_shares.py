"""Shares of groups against loops; a planted mechanism is seen, none is not, and p keeps its promise."""

import numpy as np
import pytest

from rareneuron.maths.shares import group_share, share_tests
from tests.maths.test_specificity import N_CONTEXTS, N_NEURONS, SIZE, groups_of


def sums_of(rng, share=0.2, of=(), planted=0.2):
    """|Δ| without a mechanism and with it, per context, where the neurons `of` have another share of it."""
    whole = rng.exponential(size=(N_CONTEXTS, N_NEURONS)) + 0.1
    shares = np.full(N_NEURONS, share) + 0.05 * rng.standard_normal(N_NEURONS)
    shares[list(of)] += planted - share
    return whole * (1 - shares + 0.3 * rng.standard_normal(whole.shape)), whole


def test_a_share_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    rest, whole = sums_of(rng)
    groups = np.stack([rng.choice(N_NEURONS, SIZE, replace=False) for _ in range(4)])
    weights = rng.multinomial(N_CONTEXTS, np.full(N_CONTEXTS, 1 / N_CONTEXTS), size=3).astype(float)
    slow = [
        [
            1
            - sum(w[c] * rest[c, i] for c in range(N_CONTEXTS) for i in group)
            / sum(w[c] * whole[c, i] for c in range(N_CONTEXTS) for i in group)
            for group in groups
        ]
        for w in weights
    ]
    np.testing.assert_allclose(group_share(rest, whole, groups, weights), slow, rtol=1e-12)
    assert np.ptp(slow) > 0.01, "the case is too tame to tell right from wrong"


def test_a_group_without_effects_has_no_share():
    nothing = np.zeros((2, 3))
    assert np.isnan(group_share(nothing, nothing, np.array([[0, 1]]), np.ones((1, 2)))).all()


@pytest.mark.parametrize(("planted", "seen"), [(0.2, False), (0.5, True)])
def test_a_planted_mechanism_is_seen_in_every_test_of_its_group_and_none_in_none(planted, seen):
    rng = np.random.default_rng(1)
    tests = share_tests(*sums_of(rng, of=range(SIZE), planted=planted), groups_of(rng), "share", rng)
    boosting, suppressing = tests[:3], tests[3:]
    assert all(test.p <= 0.01 for test in boosting) == seen
    assert any(test.p > 0.05 for test in suppressing)
    assert boosting[0].value == pytest.approx(planted, abs=0.06)
    assert boosting[0].effect == pytest.approx(planted - 0.2, abs=0.06)
    assert tests[2].statistic == "share, less that of matched groups"
