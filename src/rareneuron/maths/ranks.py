"""Spearman's rank correlation in numpy alone, since `scipy.stats` takes a second to import. Oracle: that of scipy."""

import numpy as np
from jaxtyping import Float, Shaped


def average_ranks(values: Shaped[np.ndarray, " value"]) -> Float[np.ndarray, " value"]:
    """Ranks from 1, smallest first; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def spearman(first: Shaped[np.ndarray, " value"], second: Shaped[np.ndarray, " value"]) -> float:
    """Pearson's correlation of the ranks; both must hold different values."""
    ranks = np.column_stack([average_ranks(first), average_ranks(second)])
    return float(np.corrcoef(ranks, rowvar=False)[0, 1])


def spearman_if_wrong(rare: Float[np.ndarray, " neuron"], common: Float[np.ndarray, " neuron"], share: float) -> float:
    """Rank correlation of mean effects at rare targets with themselves, were a share of these targets common ones.

    Effects of single targets aren't kept, so a wrong target has the mean effects of common ones: (1 - w) a + w c.
    """
    return spearman(rare, (1 - share) * rare + share * common)
