"""Influence of heads against loops; no routing is shown where there is none, and never where some was planted."""

import numpy as np
import pytest

from rareneuron.maths.routing import Influence, routing_tests
from tests.maths.test_specificity import N_CONTEXTS, N_NEURONS, SIZE, groups_of

MARGIN = 0.1


def influence_of(rng, lift=0.0, lifted=()):
    """Influence by context, on the neurons `lifted` larger at rare targets by a factor of exp(lift)."""
    size = rng.exponential(size=N_NEURONS) + 0.2
    n_rare, n_common = rng.integers(5, 15, N_CONTEXTS), rng.integers(5, 15, N_CONTEXTS)
    rare, common = (
        size * n[:, None] * rng.uniform(0.8, 1.2, (N_CONTEXTS, N_NEURONS)) for n in (1.5 * n_rare, n_common)
    )
    rare[:, list(lifted)] *= np.exp(lift)
    return Influence(rare=rare, common=common, n_rare=n_rare, n_common=n_common)


def ratio_in_a_loop(found, group, weights):
    totals = {}
    for kind in ("rare", "common"):
        total = sum(weights[c] * getattr(found, kind)[c, i] for c in range(N_CONTEXTS) for i in group)
        totals[kind] = total / sum(weights[c] * getattr(found, f"n_{kind}")[c] for c in range(N_CONTEXTS))
    return np.log(totals["rare"] / totals["common"])


def test_the_ratio_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    found = influence_of(rng, 0.4, range(9))
    groups = np.stack([rng.choice(N_NEURONS, SIZE, replace=False) for _ in range(4)])
    weights = rng.multinomial(N_CONTEXTS, np.full(N_CONTEXTS, 1 / N_CONTEXTS), size=3).astype(float)
    slow = [[ratio_in_a_loop(found, group, row) for group in groups] for row in weights]
    np.testing.assert_allclose(found.log_ratio(groups, weights), slow, rtol=1e-12)
    assert np.ptp(slow) > 0.05, "the case is too tame to tell right from wrong"


@pytest.mark.parametrize(("lift", "absent"), [(0.0, True), (0.02, True), (MARGIN, False), (-0.2, False), (0.3, False)])
def test_an_absence_is_shown_inside_the_margin_alone(lift, absent):
    rng = np.random.default_rng(1)
    tests = routing_tests(influence_of(rng, lift, range(SIZE)), groups_of(rng), "1.h2", MARGIN, rng)
    boosting, suppressing = tests[:3], tests[3:]
    assert all(test.p <= 0.01 for test in boosting) == absent
    assert all(test.p <= 0.01 for test in suppressing)
    assert boosting[0].value == pytest.approx(np.log(1.5) + lift, abs=0.03)
    assert boosting[2].value == pytest.approx(lift, abs=0.03)
    assert "head 1.h2" in boosting[0].statistic
    assert boosting[0].noise.detectable(0.05, 0.8) < MARGIN


def test_a_head_that_reaches_no_neuron_has_no_ratio():
    nothing = np.zeros((2, 3))
    found = Influence(rare=nothing, common=nothing, n_rare=np.ones(2, int), n_common=np.ones(2, int))
    assert np.isnan(found.log_ratio(np.array([[0, 1]]), np.ones((1, 2)))).all()
