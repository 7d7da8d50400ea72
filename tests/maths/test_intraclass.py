"""Correlations over pairs against loops over all pairs; what is planted in types or contexts is found there."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import rankdata

from rareneuron.maths.intraclass import PairedTokens, type_correlations


def tokens(rng, n=60, n_types=12, n_contexts=9):
    return rng.integers(n_types, size=n) * 7, rng.integers(n_contexts, size=n) + 100


def by_pairs(x, same, other, weights):
    w = weights
    mean = (w * x).sum() / w.sum()
    variance = (w * (x - mean) ** 2).sum() / w.sum()
    pairs = [(s, t) for s, t in combinations(range(len(x)), 2) if same[s] == same[t] and other[s] != other[t]]
    n = sum(w[s] * w[t] for s, t in pairs)
    return sum(w[s] * w[t] * (x[s] - mean) * (x[t] - mean) for s, t in pairs) / n / variance


@pytest.mark.parametrize("by", ["type", "context"])
def test_agrees_with_a_loop_over_pairs(by):
    rng = np.random.default_rng(0)
    kind, context = tokens(rng)
    x = rng.standard_normal((60, 3)) + 5.0
    x[:, 1] += kind
    found = PairedTokens(kind, context)
    weights = np.stack([np.ones(len(found.contexts)), rng.multinomial(9, np.full(9, 1 / 9)).astype(float)])
    place = np.searchsorted(found.contexts, context)
    same, other = (kind, context) if by == "type" else (context, kind)
    slow = [[by_pairs(column, same, other, w[place]) for column in x.T] for w in weights]
    np.testing.assert_allclose(found.correlations(x, weights, by), slow, rtol=1e-9, atol=1e-12)


def test_what_is_planted_is_found_where_it_is():
    rng = np.random.default_rng(1)
    kind, context = tokens(rng, 400, 40, 30)
    of_type, of_context = rng.standard_normal(300), rng.standard_normal(200)
    noise = rng.standard_normal(400)
    x = np.stack([of_type[kind] + 0.5 * noise, of_context[context] + 0.5 * noise, noise], 1)
    found = PairedTokens(kind, context)
    once = np.ones((1, len(found.contexts)))
    by_type, by_context = (found.correlations(x, once, by)[0] for by in ("type", "context"))
    assert by_type[0] > 0.6 > 0.2 > abs(by_type[1:]).max()
    assert by_context[1] > 0.6 > 0.2 > abs(by_context[[0, 2]]).max()


def test_pairs_are_counted():
    rng = np.random.default_rng(3)
    kind, context = tokens(rng)
    pairs = list(combinations(range(60), 2))
    found = PairedTokens(kind, context)
    assert found.n_pairs() == sum(kind[s] == kind[t] and context[s] != context[t] for s, t in pairs)
    assert found.n_pairs("context") == sum(kind[s] != kind[t] and context[s] == context[t] for s, t in pairs)


def test_all_neurons_at_once_are_each_by_itself():
    rng = np.random.default_rng(4)
    kind, context = tokens(rng)
    effects = rng.standard_normal((60, 5)).round(1) + kind[:, None]
    effects[:, 3] = 7.0  # never changes
    found = PairedTokens(kind, context)
    at_once, ranks = type_correlations(found, effects)
    np.testing.assert_array_equal(ranks, rankdata(effects, axis=0))
    one_by_one = found.correlations(ranks, np.ones((1, len(found.contexts))))[0]
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-9)
    assert np.isnan(at_once[3])
    assert np.isfinite(at_once[:3]).all()


def test_a_correlation_of_ranks_doesnt_hang_on_one_token():
    rng = np.random.default_rng(2)
    kind, context = tokens(rng, 400, 40, 30)
    planted = rng.standard_normal(300)[kind][:, None] + 0.5 * rng.standard_normal((400, 2))
    spoiled = planted.copy()
    spoiled[7] = 1e4
    found = PairedTokens(kind, context)
    (clean, ranks), (beside_one, _) = type_correlations(found, planted), type_correlations(found, spoiled)
    np.testing.assert_allclose(np.sort(ranks, 0), np.arange(1, 401)[:, None] + [0, 0])
    np.testing.assert_allclose(beside_one, clean, atol=0.03)
    assert clean.min() > 0.6
    by_size = found.correlations(spoiled, np.ones((1, len(found.contexts))))[0]
    assert abs(by_size).max() < 0.1, "the case is too tame: sizes keep their correlation"


def test_types_that_never_return_have_no_correlation():
    found = PairedTokens(np.arange(5), np.array([0, 0, 1, 1, 2]))
    assert found.n_pairs() == 0
    assert np.isnan(found.correlations(np.arange(5.0)[:, None], np.ones((1, 3)))).all()
