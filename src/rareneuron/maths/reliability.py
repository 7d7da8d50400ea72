"""Would the measurement come out the same with other text, or by another way of measuring?

Contexts are split into halves at random, since contexts are what was sampled. All of this may hold of a random model,
too. Oracles: tests/maths/test_reliability.py, loops over splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rareneuron.errors import NotMeasured
from rareneuron.maths.groups import top_neurons
from rareneuron.maths.ranks import spearman

SPLITS = 99  # of the contexts into halves
LEAST_TO_HALVE = 4  # contexts, two a half
FEWEST_NEURONS = 4  # for Fisher's interval, whose error is 1/√(n − 3)
LARGEST = 1 - 1e-12  # correlation that has a finite arctanh
SPEARMAN = 1.06  # variance of Fisher's z of a rank correlation, over that of Pearson's (Fieller)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def rank_correlation(a: Float[np.ndarray, " neuron"], b: Float[np.ndarray, " neuron"]) -> float:
    """Return Spearman's ρ over neurons; NaN where all values of `a` or of `b` are equal, which ranks nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return spearman(a, b)


def overlap(a: Int[np.ndarray, " member"], b: Int[np.ndarray, " other"]) -> float:
    """Return the neurons in both sets, of those in either (Jaccard)."""
    both = len(np.intersect1d(a, b))
    return both / (len(a) + len(b) - both)


def split_half(
    abs_sums: Float[np.ndarray, "context neuron"], rng: np.random.Generator, n_splits: int = SPLITS
) -> Estimate:
    """Return the reliability of mean |Δ|: Spearman's ρ between halves of the contexts, corrected to full length.

    `abs_sums` are |Δ| summed over the tokens of each context, in nats. The correction is Spearman and Brown's,
    2ρ / (1 + ρ). Median and middle 95 % over splits.
    """
    found = []
    for half in halves(len(abs_sums), rng, n_splits):
        rho = repeatable(abs_sums[half].sum(0), abs_sums[~half].sum(0))
        found.append(2 * rho / (1 + rho) if rho > 0 else rho)  # below 0 there is nothing to correct
    return middle(np.array(found))


def group_stability(
    sums: Float[np.ndarray, "context neuron"],
    abs_sums: Float[np.ndarray, "context neuron"],
    size: int,
    rng: np.random.Generator,
    n_splits: int = SPLITS,
) -> Estimate:
    """Return the share of a group's `size` neurons that both halves of the contexts choose.

    `sums` and `abs_sums` are Δ and |Δ| summed over the tokens of each context. A group needs the sign of Δ, too, which
    mean |Δ| doesn't know. Of boosting and suppressing the group that keeps less; median and middle 95 % over splits.
    """
    both = np.stack([sums, abs_sums])
    found = []
    for half in halves(len(sums), rng, n_splits):
        totals = [both[:, rows].sum(1) for rows in (half, ~half)]
        one, other = (top_neurons(delta, absolute, size) for delta, absolute in totals)
        found.append([len(np.intersect1d(a, b)) / size for a, b in zip(one, other, strict=True)])
    shares = np.array(found)
    return middle(shares[:, shares.mean(0).argmin()])


def group_certainty(
    means: Float[np.ndarray, "2 neuron"],
    errors: Float[np.ndarray, "2 neuron"],
    size: int,
    rng: np.random.Generator,
    n_draws: int = SPLITS,
) -> Estimate:
    """Return the share of a group that would be chosen again, were the true effects others within estimates' errors.

    `means` are estimated mean Δ and |Δ|, `errors` the standard deviations of what is left open about them. Of boosting
    and suppressing the group that keeps less; median and middle 95 % over draws.
    """
    groups = top_neurons(means[0], means[1], size)
    found = []
    for _ in range(n_draws):
        delta, absolute = means + rng.standard_normal(means.shape) * errors
        again = top_neurons(delta, absolute, size)
        found.append([len(np.intersect1d(a, b)) / size for a, b in zip(groups, again, strict=True)])
    shares = np.array(found)
    return middle(shares[:, shares.mean(0).argmin()])


def rank_agreement(a: Float[np.ndarray, " neuron"], b: Float[np.ndarray, " neuron"]) -> Estimate:
    """Return Spearman's ρ of two measurements of the same neurons, with Fisher's 95 % interval over neurons."""
    rho, n = repeatable(a, b), len(a)
    if n < FEWEST_NEURONS:
        raise NotMeasured(f"{n} neurons are too few for an interval of a rank correlation. Rank a whole layer.")
    z, error = np.arctanh(min(rho, LARGEST)), 1.96 * SPEARMAN / np.sqrt(n - 3)
    return Estimate(value=rho, low=float(np.tanh(z - error)), high=float(np.tanh(z + error)))


def halves(n_contexts: int, rng: np.random.Generator, n_splits: int) -> Iterator[Bool[np.ndarray, " context"]]:
    """Yield random splits: True for the contexts of one half, which is at most half of them."""
    if n_contexts < LEAST_TO_HALVE:
        raise NotMeasured(f"{n_contexts} contexts are too few to be halved. Analyse more tokens.", argument="n_tokens")
    for _ in range(n_splits):
        yield rng.permutation(n_contexts) < n_contexts // 2


def repeatable(a: Float[np.ndarray, " neuron"], b: Float[np.ndarray, " neuron"]) -> float:
    """Return the rank correlation of effects that do rank the neurons."""
    rho = rank_correlation(a, b)
    if np.isnan(rho):
        raise NotMeasured("All neurons have the same effect, so there is no ranking that could be repeated.")
    return rho


def middle(draws: Float[np.ndarray, " split"]) -> Estimate:
    """Return the median of the draws and the middle 95 % of them."""
    low, value, high = np.quantile(draws, [0.025, 0.5, 0.975])
    return Estimate(value=float(value), low=float(low), high=float(high))
