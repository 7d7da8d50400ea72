"""Rank correlation against scipy's."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from rareneuron.maths.ranks import average_ranks, spearman, spearman_if_wrong


@pytest.mark.parametrize("decimals", [8, 1, 0])  # few decimals: many ties
@pytest.mark.parametrize("n", [2, 9, 300])
def test_rank_correlation_is_that_of_scipy(n, decimals):
    rng = np.random.default_rng([n, decimals])
    first = np.concatenate([[0.0, 9.0], rng.standard_normal(n - 2)]).round(decimals)
    second = np.concatenate([[5.0, 7.0], first[2:] ** 2 + rng.standard_normal(n - 2)]).round(decimals)
    assert (average_ranks(first) == rankdata(first)).all()
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, rel=1e-14)


def test_ranks_alone_count():
    values = np.array([3.0, 1.0, 2.0, 7.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(values, np.array([3.0, 1.0, 7.0, 2.0])) < 0.9  # it can tell


def test_a_ranking_moves_with_the_share_of_wrong_targets():
    """Against targets that are exchanged one by one: 2,000 of 20,000 rare targets turn out to be common ones."""
    rng = np.random.default_rng(0)
    size = rng.lognormal(sigma=0.5, size=(2, 300))  # of a neuron's effects at rare targets, at common ones
    rare, common = (np.abs(rng.normal(size=(20_000, 300))) * s for s in size)
    exchanged = np.concatenate([common[:2_000], rare[2_000:]])
    found = spearman_if_wrong(rare.mean(0), common.mean(0), 0.1)
    assert found < 0.999, "the case is too tame to tell right from wrong"
    # 0.1 % of noise in each mean moves few ranks.
    np.testing.assert_allclose(found, spearman(rare.mean(0), exchanged.mean(0)), atol=2e-4)
    assert spearman_if_wrong(rare.mean(0), common.mean(0), 0.0) == pytest.approx(1)
