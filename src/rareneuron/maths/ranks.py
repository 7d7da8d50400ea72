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
