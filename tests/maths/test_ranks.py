"""Rank correlation against scipy's."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from rareneuron.maths.ranks import average_ranks, spearman


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
