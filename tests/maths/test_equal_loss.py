"""Weights at equal loss against a loop over bins; what follows the loss alone shows no difference under them."""

from itertools import pairwise

import numpy as np
import pytest

from rareneuron.maths.equal_loss import LOSS_BINS, effective_number, weights_at_equal_loss


def test_equal_loss_weighs_common_tokens_like_rare_ones():
    rng = np.random.default_rng(0)
    rare, common = rng.normal(8, 2, 4000), rng.normal(5, 2, 4000)
    at_rare, at_common = weights_at_equal_loss(rare, common)
    assert np.isclose(at_rare.sum(), 1)
    assert np.isclose(at_common.sum(), 1)
    assert abs(rare.mean() - common.mean()) > 2  # what there is to correct
    assert abs(at_rare @ rare - at_common @ common) < 0.25  # bins have a width
    # An effect that follows the loss alone shows no difference at equal loss, a lift by half does.
    assert abs((at_rare @ rare) / (at_common @ common) - 1) < 0.05
    assert abs((at_rare @ (1.5 * rare)) / (at_common @ common) - 1.5) < 0.07


def test_rare_tokens_without_common_ones_of_their_loss_are_left_out():
    at_rare, at_common = weights_at_equal_loss(np.array([1.0, 50, 51, 52, 53]), np.linspace(0, 2, 30))
    assert at_rare.tolist() == [1, 0, 0, 0, 0]
    assert np.isclose(at_common.sum(), 1)


def weights_in_a_loop(rare, common):
    """Bin by bin: the rare tokens' share of the bins that both have, spread over each kind's tokens there."""
    every = np.sort(np.concatenate([rare, common]))
    edges = [-np.inf, *np.quantile(every, np.arange(1, LOSS_BINS) / LOSS_BINS), np.inf]
    out = np.zeros(len(rare)), np.zeros(len(common))
    shared = 0
    for low, high in pairwise(edges):
        inside = [np.flatnonzero((low <= loss) & (loss < high)) for loss in (rare, common)]
        if len(inside[0]) and len(inside[1]):
            shared += len(inside[0])
            for weights, rows in zip(out, inside, strict=True):
                weights[rows] = len(inside[0]) / len(rows)
    return [weights / max(1, shared) for weights in out]


@pytest.mark.parametrize("apart", [0.0, 2.0, 30.0])
def test_weights_agree_with_a_loop_over_bins(apart):
    rng = np.random.default_rng(0)
    rare, common = rng.normal(6 + apart, 1, 60), rng.normal(6, 1, 40)
    expected = weights_in_a_loop(rare, common)
    for found, slow in zip(weights_at_equal_loss(rare, common), expected, strict=True):
        np.testing.assert_allclose(found, slow, rtol=1e-12)  # sums of at most 100 shares
    assert len({*expected[0], *expected[1]}) > 3 or apart == 30, "the case is too tame to tell right from wrong"


def test_the_effective_number_counts_tokens_of_equal_weight():
    assert effective_number(np.array([2.0, 2.0, 0.0])) == 2
    assert effective_number(np.array([9.0, 1e-9])) == pytest.approx(1)
    assert effective_number(np.zeros(3)) == 0
