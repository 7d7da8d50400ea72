"""Means clustered by context against a loop, however they stream and from however many parts they are put together."""

import numpy as np
import torch

from rareneuron.maths.clustered import ClusteredMean, sums_by_context
from rareneuron.maths.significance import t_quantile
from tests import oracles


def clustered(values, context, splits):
    """Stream the contexts in as many calls as `splits` says."""
    mean = ClusteredMean(values.shape[1])
    for contexts in np.array_split(np.unique(context), splits):
        chosen = np.isin(context, contexts)
        _, row = np.unique(context[chosen], return_inverse=True)
        sums = sums_by_context(torch.from_numpy(values[chosen]), torch.from_numpy(row), len(contexts))
        mean.add(sums, torch.from_numpy(np.bincount(row)))
    return mean


def test_mean_and_error_agree_with_a_loop_however_they_stream():
    rng = np.random.default_rng(0)
    context = np.sort(rng.integers(0, 12, 90))
    values = rng.normal(size=(90, 3)) + rng.normal(size=12)[context][:, None]
    for splits in (1, 3, 12):
        found = clustered(values, context, splits)
        for i in range(3):
            # sums of squares in float64: relative rounding
            assert np.isclose(found.mean[i], values[:, i].mean(), rtol=1e-12)
            truth = oracles.clustered_standard_error(values[:, i], context)
            assert np.isclose(found.standard_error[i], truth, rtol=1e-9)


def test_clustering_matters_and_covers():
    """95 % intervals cover the truth in 92-98 % of draws; errors that ignore contexts cover far less often."""
    rng = np.random.default_rng(1)
    context = np.repeat(np.arange(60), 10)
    covered = naive = 0
    for _ in range(300):
        values = (rng.normal(size=60)[context] + 0.5 * rng.normal(size=600))[:, None]
        found = clustered(values, context, 1)
        covered += abs(found.mean[0]) < 2 * found.standard_error[0]
        naive += abs(found.mean[0]) < 2 * values.std() / np.sqrt(600)
    assert 0.92 < covered / 300 < 0.985
    assert naive / 300 < 0.6


def test_with_ten_contexts_t_covers_and_a_normal_distribution_does_not():
    """4,000 neurons of 10 contexts: a share of 95 % is known to 0.35 points, and 1.96 errors hold 92 % (t of 9)."""
    rng = np.random.default_rng(4)
    context = np.repeat(np.arange(10), 8)
    values = rng.normal(size=(10, 4000))[context] + rng.normal(size=(80, 4000))
    found = clustered(values, context, 1)
    size = np.abs(found.mean) / found.standard_error
    assert 0.94 < (size < t_quantile(10)).mean() < 0.96
    assert (size < 1.96).mean() < 0.93


def test_one_context_says_nothing_about_the_error():
    found = clustered(np.ones((4, 2)), np.zeros(4, int), 1)
    assert np.isnan(found.standard_error).all()


def test_parts_put_together_have_the_same_bits_as_one_mean_over_all_contexts():
    rng = np.random.default_rng(2)
    values, context = rng.normal(size=(90, 3)), np.repeat(np.arange(10), 9)
    whole, parts = clustered(values, context, 10), ClusteredMean(3)
    for c in range(10):  # one context a part, as the whole was streamed
        parts.absorb(clustered(values[context == c], context[context == c], 1).arrays())
    assert (parts.mean == whole.mean).all()
    assert (parts.standard_error == whole.standard_error).all()
    assert parts.n_tokens == whole.n_tokens == 90
    assert parts.n_contexts == whole.n_contexts == 10
    # A part that is left out is seen.
    fewer = ClusteredMean(3)
    fewer.absorb(clustered(values[context < 9], context[context < 9], 1).arrays())
    assert (fewer.mean != whole.mean).all()


def test_arrays_hold_everything_that_a_mean_is_made_of():
    mean = clustered(np.random.default_rng(3).normal(size=(12, 2)), np.repeat(np.arange(4), 3), 2)
    arrays = mean.arrays()
    assert arrays.keys() == vars(mean).keys()
    again = ClusteredMean(2)
    again.absorb(arrays)
    assert {k: v.tolist() for k, v in again.arrays().items()} == {k: v.tolist() for k, v in arrays.items()}
