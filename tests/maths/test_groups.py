"""Groups: membership by sign and size, disjointness, seeds, matching."""

import numpy as np
import pytest

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.groups import matched_groups, neuron_groups, top_neurons


def effects(n=400, seed=0):
    rng = np.random.default_rng(seed)
    delta = rng.normal(size=n) * rng.pareto(2, size=n)
    return delta, np.abs(delta) + rng.exponential(0.1, size=n)


def test_top_neurons_are_the_largest_of_their_sign():
    delta, absolute = effects()
    boosting, suppressing = top_neurons(delta, absolute, 20)
    assert (delta[boosting] > 0).all()
    assert (delta[suppressing] < 0).all()
    others = np.setdiff1d(np.flatnonzero(delta > 0), boosting)
    assert absolute[boosting].min() >= absolute[others].max()
    assert (np.diff(absolute[boosting]) <= 0).all()


def test_random_groups_avoid_both_groups_and_repeat_by_seed():
    delta, absolute = effects()

    def groups(seed):
        return neuron_groups(
            delta, absolute, size=30, covariate=absolute, matched_on="x", rng=np.random.default_rng(seed)
        )

    first = groups(1)
    taken = np.concatenate([first.boosting, first.suppressing])
    for drawn in (first.random, first.matched_random):
        assert drawn.shape == (200, 30)
        assert not np.isin(drawn, taken).any()
        assert all(len(set(group)) == 30 for group in drawn)
    assert (groups(1).random == first.random).all()
    assert (groups(2).random != first.random).any()
    assert first.size == 30


def test_matched_groups_match_where_uniform_ones_do_not():
    rng = np.random.default_rng(0)
    covariate = rng.exponential(size=1000)
    members = np.argsort(-covariate)[20:60]  # among the most active
    pool = np.setdiff1d(np.arange(1000), members)
    matched = matched_groups(members, pool, covariate, 100, rng)
    uniform = np.stack([rng.choice(pool, 40, replace=False) for _ in range(100)])
    wanted = covariate[members].mean()
    assert abs(covariate[matched].mean() - wanted) < 0.15 * wanted
    assert abs(covariate[uniform].mean() - wanted) > 0.5 * wanted  # negative control
    assert len(np.unique(matched, axis=0)) > 90  # draws differ


@pytest.mark.parametrize("size", [150, 201])
def test_a_group_that_cannot_be_filled_is_refused(size):
    delta, absolute = effects()
    with pytest.raises(TooFewNeurons, match="--group-size"):
        neuron_groups(delta, absolute, size=size, rng=np.random.default_rng(0))


def test_no_neuron_of_a_sign_is_refused():
    with pytest.raises(TooFewNeurons, match="0 suppressing"):
        top_neurons(np.ones(10), np.ones(10), 2)
