"""Specificity against loops over groups, contexts and neurons; a planted preference is seen, none is not."""

import numpy as np
import pytest

from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.specificity import EffectPerMove, specificity_ratio, specificity_tests

N_CONTEXTS, N_NEURONS, SIZE = 60, 60, 6


def sums_of(rng, lift=1.0, lifted=()):
    """|Δ| and moves per context, where the neurons `lifted` have `lift` times the effect for the distance moved."""
    move = rng.exponential(size=(N_CONTEXTS, N_NEURONS)) + 0.1
    per_move = np.ones(N_NEURONS)
    per_move[list(lifted)] = lift
    return EffectPerMove(abs_delta_loss=move * per_move * rng.uniform(0.8, 1.2, move.shape), move=move)


def groups_of(rng, n_draws=199):
    others = np.arange(2 * SIZE, N_NEURONS)
    draws = np.stack([rng.choice(others, SIZE, replace=False) for _ in range(3 * n_draws)])
    return NeuronGroups(
        boosting=np.arange(SIZE),
        suppressing=np.arange(SIZE, 2 * SIZE),
        random=draws[:n_draws],
        matched_random=draws[n_draws:],
        matched_on="move",
    )


def ratio_in_a_loop(rare, common, group, weights):
    totals = {}
    for kind, sums in (("rare", rare), ("common", common)):
        for name in ("abs_delta_loss", "move"):
            table = getattr(sums, name)
            totals[kind, name] = sum(weights[c] * table[c, i] for c in range(N_CONTEXTS) for i in group)
    at_rare = totals["rare", "abs_delta_loss"] / totals["rare", "move"]
    return at_rare / (totals["common", "abs_delta_loss"] / totals["common", "move"])


def test_the_ratio_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    rare, common = sums_of(rng, 2.0, range(9)), sums_of(rng)
    groups = np.stack([rng.choice(N_NEURONS, SIZE, replace=False) for _ in range(4)])
    weights = rng.multinomial(N_CONTEXTS, np.full(N_CONTEXTS, 1 / N_CONTEXTS), size=3).astype(float)
    found = specificity_ratio(rare.stacked(), common.stacked(), groups, weights)
    slow = [[ratio_in_a_loop(rare, common, group, row) for group in groups] for row in weights]
    np.testing.assert_allclose(found, slow, rtol=1e-12)  # sums of a few hundred numbers in float64
    assert np.ptp(slow) > 0.1, "the case is too tame to tell right from wrong"


def test_a_group_that_does_not_move_has_no_ratio():
    still = EffectPerMove(abs_delta_loss=np.zeros((2, 3)), move=np.zeros((2, 3)))
    assert np.isnan(specificity_ratio(still.stacked(), still.stacked(), np.array([[0, 1]]), np.ones((1, 2)))).all()


@pytest.mark.parametrize(("lift", "seen"), [(1.0, False), (1.5, True)])
def test_a_planted_preference_is_seen_in_every_test_of_the_group_and_none_in_none(lift, seen):
    rng = np.random.default_rng(1)
    tests = specificity_tests(sums_of(rng, lift, range(SIZE)), sums_of(rng), groups_of(rng), "S", rng)
    assert [(test.group, test.null) for test in tests] == [
        (role, null)
        for role in ("boosting", "suppressing")
        for null in ("uniform random groups", "matched random groups", "no effect, contexts resampled")
    ]
    boosting, suppressing = tests[:3], tests[3:]
    assert all(test.p <= 0.01 for test in boosting) == seen
    assert any(test.p > 0.05 for test in suppressing)
    assert boosting[0].value == pytest.approx(lift, rel=0.05)
    assert boosting[2].value == pytest.approx(lift - 1, abs=0.05)
    assert tests[2].statistic == "S, less that of matched groups"
