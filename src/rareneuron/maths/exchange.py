"""Lets items exchange their words at random, within strata of words that are alike.

Every item gives its word to one other item and gets one, so what is swapped in is, stratum by stratum, the same words
as what is swapped out. Whoever scores words by themselves, whatever stands before them, then gains at one item what is
lost at another: the mean difference between originals and swaps is exactly 0, and only what depends on the context is
left. It is an assignment problem with random costs. Oracle: tests/maths/test_exchange.py.
"""

from collections.abc import Sequence, Set

import numpy as np
from jaxtyping import Bool, Int
from scipy.optimize import linear_sum_assignment

NOBODY = -1
TOO_DEAR = 1e3  # costs more than any whole assignment of allowed pairs could save


def exchange(
    stratum: Int[np.ndarray, " item"],
    word: Int[np.ndarray, " item"],
    document: Int[np.ndarray, " item"],
    nearby: Sequence[Set[int]],
    rng: np.random.Generator,
) -> Int[np.ndarray, " item"]:
    """Return for each item the one whose word it gets, or `NOBODY` where the stratum has no other that fits.

    An item gets neither its own word, nor one that stands `nearby` it, nor one of its own document. Items that have
    nobody give their word to nobody either.
    """
    out = np.full(len(stratum), NOBODY)
    for of in np.unique(stratum):
        at = np.flatnonzero(stratum == of)
        while len(at) > 1:
            forbidden = forbidden_pairs(word[at], document[at], [nearby[i] for i in at.tolist()])
            row, column = linear_sum_assignment(rng.random(forbidden.shape) + TOO_DEAR * forbidden)
            fits = ~forbidden[row, column]
            if fits.all():
                out[at] = at[column]
                break
            at = at[fits]
    return out


def forbidden_pairs(
    word: Int[np.ndarray, " item"], document: Int[np.ndarray, " item"], nearby: Sequence[Set[int]]
) -> Bool[np.ndarray, "item item"]:
    """Mark which item (row) must not get which item's word (column)."""
    stands_nearby = np.array([[int(w) in around for w in word] for around in nearby], bool).reshape(len(word), -1)
    return (word[:, None] == word) | (document[:, None] == document) | stands_nearby
