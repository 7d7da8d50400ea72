"""Reliability between halves of the contexts against loops; what repeats is seen to, and noise is seen not to."""

import numpy as np
import pytest

from rareneuron.errors import NotMeasured
from rareneuron.maths.reliability import (
    SPLITS,
    group_certainty,
    group_stability,
    overlap,
    rank_agreement,
    rank_correlation,
    split_half,
)


def test_overlap_is_the_share_in_both_of_those_in_either():
    assert overlap(np.array([1, 2, 3]), np.array([3, 4])) == 1 / 4


def ranks(values):
    """Rank from 0; of equal values the mean of their ranks."""
    return np.array([np.mean([*np.flatnonzero(np.sort(values) == value)]) for value in values])


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def sums_of(noise, n_contexts=30, n_neurons=40, seed=0):
    """Effects per context of neurons that differ by what noise hides; the second half of them suppress."""
    rng = np.random.default_rng(seed)
    effect = rng.exponential(size=n_neurons) * np.where(np.arange(n_neurons) < n_neurons // 2, 1, -1)
    sums = effect + noise * rng.normal(size=(n_contexts, n_neurons))
    return sums, np.abs(sums)


def test_rank_correlation_agrees_with_ranks_correlated_in_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 30).astype(float)
    assert rank_correlation(a, b) == pytest.approx(pearson(ranks(a), ranks(b)), abs=1e-12)
    assert rank_correlation(a, a + 7) == pytest.approx(1)
    assert np.isnan(rank_correlation(a, np.ones(30)))


@pytest.mark.parametrize("noise", [0.3, 3.0, 100.0])
def test_split_half_agrees_with_a_loop(noise):
    _, abs_sums = sums_of(noise)
    rng, corrected = np.random.default_rng(1), []
    for _ in range(SPLITS):
        order = rng.permutation(len(abs_sums))
        first = [row for row, place in enumerate(order) if place < len(order) // 2]
        second = [row for row, place in enumerate(order) if place >= len(order) // 2]
        totals = [np.array([sum(abs_sums[row, i] for row in rows) for i in range(40)]) for rows in (first, second)]
        rho = pearson(*(ranks(total) for total in totals))
        corrected.append(rho if rho <= 0 else 2 * rho / (1 + rho))
    found = split_half(abs_sums, np.random.default_rng(1))
    expected = np.quantile(corrected, [0.5, 0.025, 0.975])
    np.testing.assert_allclose([found.value, found.low, found.high], expected, atol=1e-9)


def test_split_half_tells_what_repeats_from_noise():
    assert split_half(sums_of(0.1)[1], np.random.default_rng(0)).low > 0.9
    noise = np.abs(np.random.default_rng(5).normal(size=(60, 200)))
    found = split_half(noise, np.random.default_rng(0))
    assert found.low < 0.1 < 0.9 < split_half(noise + np.arange(200), np.random.default_rng(0)).low


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_group_stability_agrees_with_a_loop(noise):
    sums, abs_sums = sums_of(noise)
    rng, kept = np.random.default_rng(1), {"boosting": [], "suppressing": []}
    for _ in range(SPLITS):
        order, chosen = rng.permutation(len(sums)), []
        for inside in (order < len(order) // 2, order >= len(order) // 2):
            delta, size = sums[inside].sum(0), abs_sums[inside].sum(0)
            by_size = sorted(range(40), key=lambda i: -size[i])
            signs = {
                "boosting": [i for i in by_size if delta[i] > 0],
                "suppressing": [i for i in by_size if delta[i] < 0],
            }
            chosen.append({role: set(neurons[:5]) for role, neurons in signs.items()})
        for role, shares in kept.items():
            shares.append(len(chosen[0][role] & chosen[1][role]) / 5)
    least = min(kept.values(), key=np.mean)
    found = group_stability(sums, abs_sums, 5, np.random.default_rng(1))
    assert [found.value, found.low, found.high] == pytest.approx(np.quantile(least, [0.5, 0.025, 0.975]))
    assert 0 < found.value < 1 or noise == 0.3, "the case is too tame to tell right from wrong"


def test_agreement_of_two_measurements_covers_the_truth():
    """Fisher's interval holds the ρ of the population in 93-97 % of samples."""
    rng, covered = np.random.default_rng(0), 0
    rho = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of normal pairs whose correlation is 0.6
    for _ in range(400):
        a = rng.normal(size=60)
        found = rank_agreement(a, 0.6 * a + 0.8 * rng.normal(size=60))
        covered += found.low <= rho <= found.high
    assert 0.925 <= covered / 400 <= 0.975
    assert rank_agreement(a, a).high <= 1


def test_what_cannot_be_repeated_is_not_measured():
    rng = np.random.default_rng(0)
    with pytest.raises(NotMeasured, match="3 contexts are too few"):
        split_half(np.ones((3, 5)), rng)
    with pytest.raises(NotMeasured, match="3 contexts are too few"):
        group_stability(np.ones((3, 5)), np.ones((3, 5)), 2, rng)
    with pytest.raises(NotMeasured, match="same effect"):
        split_half(np.ones((8, 5)), rng)
    with pytest.raises(NotMeasured, match="3 neurons are too few"):
        rank_agreement(np.arange(3.0), np.arange(3.0))


def test_groups_are_as_certain_as_the_estimates_they_come_from():
    rng = np.random.default_rng(0)
    absolute = np.sort(np.exp(rng.standard_normal(400)))
    means = np.stack([absolute * rng.choice([-0.5, 0.5], 400), absolute])
    exact = group_certainty(means, np.zeros_like(means), 20, rng)
    assert (exact.value, exact.low) == (1.0, 1.0)
    rough = group_certainty(means, 0.1 * means[[1, 1]], 20, rng)
    noise = group_certainty(means, 10 * means[[1, 1]], 20, rng)
    assert 0.5 < rough.low <= rough.value < 1
    assert noise.value < 0.3
