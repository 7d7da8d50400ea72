"""Groups: membership by sign and size, disjointness, seeds, matching."""

import numpy as np
import pytest

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.groups import (
    matched_groups,
    matched_pairs,
    neuron_groups,
    spread_from_outside,
    top_neurons,
)
from rareneuron.maths.significance import against_null


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
            delta, absolute, size=30, n_draws=200, covariate=absolute, matched_on="x", rng=np.random.default_rng(seed)
        )

    first = groups(1)
    assert first.random.shape == (200, 30)
    assert not np.isin(first.random, np.concatenate([first.boosting, first.suppressing])).any()
    others = {"boosting": first.suppressing, "suppressing": first.boosting}
    for role, drawn in first.matched.items():
        assert drawn.shape == (200, 30)
        assert not np.isin(drawn, others[role]).any()
    for drawn in (first.random, first.matched_random):
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


def test_pairs_are_disjoint_match_either_group_and_let_neurons_change_sides():
    rng = np.random.default_rng(0)
    covariate = rng.exponential(size=1000)
    order = np.argsort(-covariate)
    first, second, pool = order[20:60], order[100:140], np.r_[order[:20], order[60:100], order[140:]]
    pairs = matched_pairs(first, second, pool, covariate, 200, rng)
    assert pairs.shape == (200, 80)
    assert all(len(set(pair)) == 80 for pair in pairs)
    for drawn, group in zip(np.split(pairs, 2, axis=1), (first, second), strict=True):
        assert abs(covariate[drawn].mean() - covariate[group].mean()) < 0.05 * covariate[group].mean()
    assert covariate[first].mean() > 1.4 * covariate[second].mean()  # they don't look alike
    close = matched_pairs(order[::2][:20], order[1::2][:20], order[40:], covariate, 50, rng)  # same strata
    assert 0.3 < np.isin(close[:, :20], order[1::2][:20]).mean() < 0.6


def pair_rejected(draw_pairs, n_layers=100):
    """How often two groups seem alike, chosen by the covariate that all neurons agree by, and dealt out by a coin."""
    hits = 0
    for seed in range(n_layers):
        rng = np.random.default_rng(seed)
        covariate = rng.normal(size=100)
        chosen = rng.permutation(np.argsort(-(covariate + 0.3 * rng.normal(size=100)))[:30])
        first, second, pool = chosen[:15], chosen[15:], np.setdiff1d(np.arange(100), chosen)
        direction = np.exp(covariate / 2)[:, None] + rng.normal(size=(100, 4))

        def alike(a, b, direction=direction):
            return (direction[a].mean(-2) * direction[b].mean(-2)).sum(-1)

        draws = alike(*np.split(draw_pairs(first, second, pool, covariate, 199, rng), 2, axis=1))
        hits += against_null(float(alike(first, second)), draws).p_above <= 0.05
    return hits / n_layers


def one_by_one(first, second, pool, covariate, n_draws, rng):
    """Pairs as one would draw them first: each group's own matched draw, which never holds neurons of the other."""
    return np.hstack([matched_groups(group, pool, covariate, n_draws, rng) for group in (first, second)])


@pytest.mark.slow
def test_pairs_err_as_often_as_they_say():
    assert pair_rejected(matched_pairs) <= 0.15  # 5 %, and what strata of 20 of 100 neurons leave unmatched
    assert pair_rejected(one_by_one, n_layers=30) > 0.4  # negative control


def rejected(draw_groups, correlation, n_layers=400):
    """How often the mean of pure noise over a group of the largest differs from its matched draws at 5 %."""
    hits = 0
    for seed in range(n_layers):
        rng = np.random.default_rng(seed)
        covariate = rng.normal(size=1024)
        chosen_by = correlation * covariate + np.sqrt(1 - correlation**2) * rng.normal(size=1024)
        order = np.argsort(-chosen_by)
        members, pool, noise = order[:50], order[100:], rng.normal(size=1024)
        draws = draw_groups(members, pool, covariate, 119, rng)  # 3 of 120 on either side are 5 %
        hits += against_null(noise[members].mean(), noise[draws].mean(1)).p <= 0.05
    return hits / n_layers


def nearest_neighbours(members, pool, covariate, n_draws, rng):
    """Matching as one would do it first: each member gives its place to one of its 20 nearest."""
    nearest = np.argsort(np.abs(covariate[members][:, None] - covariate[pool]), axis=1)
    draws = np.empty((n_draws, len(members)), dtype=int)
    for draw in draws:
        free = np.ones(len(pool), bool)
        for place in rng.permutation(len(members)):
            chosen = rng.choice(nearest[place][free[nearest[place]]][:20])
            free[chosen], draw[place] = False, pool[chosen]
    return draws


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0, 0.7, 0.97])
def test_matched_draws_vary_as_much_as_groups_do(correlation):
    rate = rejected(matched_groups, correlation)
    assert 0.02 <= rate <= 0.08  # 5 %, within three standard errors of 400 layers; less where draws tie with the group


@pytest.mark.slow
def test_the_check_sees_draws_that_repeat_their_neurons():
    assert rejected(nearest_neighbours, 0.97, n_layers=60) > 0.2


@pytest.mark.parametrize("size", [150, 201])
def test_a_group_that_cannot_be_filled_is_refused(size):
    delta, absolute = effects()
    with pytest.raises(TooFewNeurons, match=r"neurons or fewer|too small"):
        neuron_groups(delta, absolute, size=size, rng=np.random.default_rng(0))


def test_no_neuron_of_a_sign_is_refused():
    with pytest.raises(TooFewNeurons, match="0 suppressing"):
        top_neurons(np.ones(10), np.ones(10), 2)


@pytest.mark.parametrize("pool", [60, 100, 1000])
def test_a_group_from_outside_strays_more_than_draws_that_share_a_pool(pool):
    rng, size, repeats = np.random.default_rng(0), 20, 3000
    values = rng.standard_normal((repeats, pool + size))
    draws = np.stack([rng.choice(pool, size, replace=False) for _ in range(400)])
    about = values[:, :pool].mean(1)
    outside = values[:, pool:].mean(1) - about
    inside = np.concatenate([values[:40][:, draw].mean(1) - about[:40] for draw in draws])
    assert outside.std() / inside.std() == pytest.approx(spread_from_outside(draws), rel=0.05)


def test_draws_that_are_all_the_same_show_nothing():
    with pytest.raises(TooFewNeurons, match="same 3 neurons"):
        spread_from_outside(np.array([[0, 1, 2], [2, 0, 1]]))
