"""Greedy modularity against networkx and a loop; what shuffled graphs keep; planted clusters are not called absent."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest

from rareneuron.maths.equivalence import within_margin_of_groups
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.modularity import (
    NULLS,
    BlockMoments,
    correlation_graphs,
    jackknife_error,
    modularity,
    modularity_of_groups,
    same_strengths,
)
from rareneuron.maths.moments import SecondMoments

SIZE, POOL = 20, 160
MARGIN = 0.1


def activations(rng, strength, n_tokens=600):
    """Neurons that share a weak signal; the first `SIZE` of them fall into two clusters of this strength besides."""
    acts = rng.normal(size=(n_tokens, POOL)) + 0.5 * rng.normal(size=(n_tokens, 1))
    acts[:, : SIZE // 2] += strength * rng.normal(size=(n_tokens, 1))
    acts[:, SIZE // 2 : SIZE] += strength * rng.normal(size=(n_tokens, 1))
    return acts


def groups_of(rng, n_draws=99):
    def drawn():
        return np.stack([rng.choice(np.arange(2 * SIZE, POOL), SIZE, replace=False) for _ in range(n_draws)])

    return NeuronGroups(
        boosting=np.arange(SIZE),
        suppressing=np.arange(SIZE, 2 * SIZE),
        random=drawn(),
        matched_random=np.concatenate([drawn(), drawn()]),
        matched_on="nothing",
    )


def moments_of(acts):
    moments = SecondMoments()
    moments.add(acts)
    return moments


def graphs(acts, *, signed):
    groups = np.arange(acts.shape[1]).reshape(-1, SIZE)
    return correlation_graphs(moments_of(acts).correlation(groups, groups), signed=signed)


def test_without_signs_it_is_the_modularity_that_networkx_finds():
    rng = np.random.default_rng(0)
    acts = np.hstack([activations(rng, strength)[:, :SIZE] for strength in (0.0, 0.3, 0.8, 2.0)])
    weights = graphs(acts, signed=False)
    found = modularity(weights)
    for graph, Q in zip(weights, found, strict=True):
        G = nx.from_numpy_array(graph)
        clusters = nx.community.greedy_modularity_communities(G, weight="weight")
        assert pytest.approx(nx.community.modularity(G, clusters, weight="weight"), abs=1e-12) == Q
    assert found[-1] > 0.3 > 0.2 > found[0]


def by_loops(w):
    """The definition for signed weights, and the greedy search, in loops."""
    plus, minus = np.maximum(w, 0), np.maximum(-w, 0)

    def Q(clusters):
        total = 0.0
        for cluster in clusters:
            for i in cluster:
                for j in cluster:
                    total += w[i, j]
                    total -= plus[i].sum() * plus[j].sum() / plus.sum()
                    total += minus[i].sum() * minus[j].sum() / minus.sum() if minus.any() else 0.0
        return total / np.abs(w).sum()

    clusters = [(i,) for i in range(len(w))]
    while len(clusters) > 1:
        merged = [[*(c for c in clusters if c not in (a, b)), a + b] for a, b in combinations(clusters, 2)]
        best = max(merged, key=Q)
        if Q(best) <= Q(clusters):
            break
        clusters = best
    return Q(clusters)


@pytest.mark.parametrize("signed", [True, False])
def test_with_signs_it_agrees_with_loops(signed):
    rng = np.random.default_rng(1)
    acts = rng.normal(size=(40, 8))
    acts[:, :4] -= 0.8 * rng.normal(size=(40, 1))
    acts[:, 2] *= -1
    weights = np.corrcoef(acts.T) if signed else np.abs(np.corrcoef(acts.T))
    np.fill_diagonal(weights, 0)
    assert modularity(weights[None])[0] == pytest.approx(by_loops(weights), abs=1e-12)


def test_without_signs_nothing_depends_on_what_a_gate_leaves_open_and_constant_neurons_are_alone():
    rng = np.random.default_rng(2)
    acts = activations(rng, 0.7)[:, :SIZE]
    turned = acts * rng.choice([-3.0, 0.2], SIZE)
    assert modularity(graphs(acts, signed=False)) == pytest.approx(modularity(graphs(turned, signed=False)))
    assert abs(modularity(graphs(acts, signed=True)) - modularity(graphs(turned, signed=True)))[0] > 0.01
    acts[:, 3] = 1.0
    assert not graphs(acts, signed=False)[0, 3].any()
    assert modularity(np.zeros((2, 5, 5))).tolist() == [0, 0]


@pytest.mark.parametrize("signed", [True, False])
def test_shuffled_graphs_keep_strengths_of_either_sign_and_lose_clusters(signed):
    rng = np.random.default_rng(3)
    weights = graphs(activations(rng, 1.0)[:, :SIZE], signed=signed)[0]
    drawn = same_strengths(weights, 50, rng)
    for sign in (1, -1):
        kept = np.maximum(sign * drawn, 0).sum(-1)
        assert np.allclose(kept, np.maximum(sign * weights, 0).sum(-1), rtol=0.02, atol=0.02)
    assert np.allclose(drawn, drawn.transpose(0, 2, 1))
    assert not np.allclose(drawn[0], drawn[1])
    assert modularity(drawn).max() < modularity(weights[None])[0] - 0.1


def blocks_of(acts, context):
    blocks = BlockMoments(np.arange(2 * SIZE))
    for part in np.array_split(np.arange(len(acts)), 3):
        blocks.add(acts[part], context[part])
    return blocks


def test_the_error_over_contexts_agrees_with_leaving_them_out():
    rng = np.random.default_rng(5)
    acts, context = activations(rng, 0.6), np.arange(600) // 15  # 40 contexts, two in a block
    group = np.array([3, 0, 17, 11, 12])
    found = blocks_of(acts + 50, context).without_each(group)
    slow = [np.corrcoef(acts[context % 20 != block][:, group].T) for block in range(20)]
    assert np.allclose(found, slow, atol=1e-10)
    Q = [modularity(correlation_graphs(rho[None], signed=False))[0] for rho in slow]
    assert jackknife_error(np.array(Q)) == pytest.approx(np.sqrt(19 * np.var(Q)))
    few = BlockMoments(np.arange(4))
    few.add(acts[:30], context[:30])
    assert few.without_each(np.arange(3)).shape == (2, 3, 3)  # blocks without tokens aren't left out
    assert np.isnan(jackknife_error(np.ones(1)))


def absences(rng, strength):
    acts = activations(rng, strength)
    blocks = blocks_of(acts, np.arange(len(acts)))
    found = modularity_of_groups(moments_of(acts), blocks, groups_of(rng), rng, signed=False)
    p = []
    for role in ("boosting", "suppressing"):
        error = found[f"{role} error"][0]
        for null in NULLS:
            draws = found[f"{role} {null}"] + error * rng.standard_normal(len(found[f"{role} {null}"]))
            p.append(within_margin_of_groups(float(found[role][0]), draws, "Q", role, null, MARGIN).p)
    return max(p)


@pytest.mark.slow  # a simulation
def test_planted_clusters_are_not_called_absent_and_their_absence_is_seen():
    """At the margin's edge: benchmarks/clustering.py."""
    rng = np.random.default_rng(4)
    none = [absences(rng, 0.0) <= 0.05 for _ in range(12)]
    clustered = [absences(rng, 1.2) <= 0.05 for _ in range(6)]
    assert np.mean(none) >= 0.9
    assert not any(clustered)
