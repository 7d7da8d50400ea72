"""How many clusters a group's neurons form, by D = 1 - |ρ| (Eq. 5), for many groups at once.

A tree is not built: the nearest two are merged again and again, up to the threshold. Oracle: scipy's `linkage`.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import pdist, squareform

from rareneuron.maths import Definitions

Linkage = Literal["ward", "average"]


THRESHOLD = {"paper": 0.5, "released": 5.0}  # where the cluster tree is cut


def clusters(
    correlation: Float[np.ndarray, "draw size size"], definitions: Definitions
) -> dict[str, Int[np.ndarray, " draw"]]:
    """Return the numbers of clusters of the neurons that vary, by D = 1 - |ρ| (Eq. 5).

    Ward presumes Euclidean distances, which D is not; average linkage doesn't. The released scripts take D's rows for
    points. Neither tree has inversions, so merges up to the threshold are those that come first.
    """
    varies = ~np.isnan(np.diagonal(correlation, axis1=1, axis2=2))
    distance = 1 - np.abs(correlation)
    if definitions == "released":
        between_rows = [squareform(pdist(D[np.ix_(some, some)])) for D, some in zip(distance, varies, strict=True)]
        for D, some, found in zip(distance, varies, between_rows, strict=True):
            D[np.ix_(some, some)] = found
    linkages: tuple[Linkage, ...] = ("ward", "average") if definitions == "paper" else ("ward",)
    return {f"clusters_{how}": n_clusters(distance, varies, how, THRESHOLD[definitions]) for how in linkages}


def n_clusters(
    distance: Float[np.ndarray, "draw size size"], varies: Bool[np.ndarray, "draw size"], how: Linkage, threshold: float
) -> Int[np.ndarray, " draw"]:
    """Count the clusters of each draw once its nearest two are merged again and again, up to the threshold.

    Distances to a merged cluster follow from those to its parts (Lance and Williams).
    """
    n_draws, size = varies.shape
    D = np.where(varies[:, :, None] & varies[:, None, :], distance, np.inf)
    D[:, np.arange(size), np.arange(size)] = np.inf
    n, left, draw = np.ones((n_draws, size)), varies.sum(1), np.arange(n_draws)
    while len(draw):
        first, second = np.divmod(D.reshape(len(D), -1).argmin(1), size)
        row = np.arange(len(D))
        near = D[row, first, second] <= threshold
        if not near.all():
            D, n, draw, first, second, row = D[near], n[near], draw[near], first[near], second[near], row[: near.sum()]
        left[draw] -= 1
        apart, of_first, of_second = D[row, first, second][:, None], n[row, first][:, None], n[row, second][:, None]
        to_first, to_second = D[row, first], D[row, second]
        if how == "ward":
            squares = (n + of_first) * to_first**2 + (n + of_second) * to_second**2 - n * apart**2
            merged = np.sqrt(squares / (n + of_first + of_second))
        else:
            merged = (of_first * to_first + of_second * to_second) / (of_first + of_second)
        merged[row, first] = merged[row, second] = np.inf
        D[row, first], D[row, :, first] = merged, merged
        D[row, second] = D[row, :, second] = np.inf
        n[row, first] += n[row, second]
    return left
