"""Does a number rise or fall over the steps of a training? Two tests of Kendall's τ against the order of the steps.

`trend` takes every order of the values as equally likely, `drift` takes the values for a walk, whose steps are as
likely down as up. Oracles: tests/maths/test_trend.py, every order and every walk.
"""

import numpy as np
from jaxtyping import Float

from rareneuron.errors import InvalidConfig
from rareneuron.maths.significance import LEVEL

ROUNDED = 12  # decimals to which sums of steps are equal
EXACT_STEPS = 33  # of a trend; above, the normal approximation, whose p is within 0.015


def trend(values: Float[np.ndarray, " step"]) -> tuple[float, float]:
    """Return Kendall's τ_b of values against their order, and its two-sided p; NaN where all are equal.

    Exact up to 33 values, with equal ones too: under the null every order of the values is as likely, and inversions
    of a multiset's orders are counted by its q-multinomial coefficient.
    """
    n = len(values)
    if not np.isfinite(values).all():
        raise InvalidConfig(
            f"{int((~np.isfinite(values)).sum())} of {n} values are not finite, so they have no order. Leave them out."
        )
    if n < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    if n > EXACT_STEPS:
        from scipy.stats import kendalltau  # rarely needed, and a second to import

        found = kendalltau(np.arange(n), values)
        return float(found.statistic), float(found.pvalue)
    later = np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)]
    pairs, inversions = int(np.abs(later).sum()), int((later < 0).sum())
    counts = inversion_counts(np.unique(values, return_counts=True)[1].tolist(), pairs)
    p = 2 * sum(counts[: min(inversions, pairs - inversions) + 1]) / sum(counts)
    return float(later.sum() / np.sqrt(pairs * len(later))), min(1.0, p)


def drift(
    values: Float[np.ndarray, " step"], rng: np.random.Generator, *, n_draws: int = 4095
) -> tuple[float, float, float]:
    """Return Kendall's τ_b against order, its p (one-sided, upwards), and the least p that these values can have.

    Under the null each step is as likely down as up, by as much: a random walk, since checkpoints follow from one
    another and wander without any cause. (Were they independent, p would be too large.) All signs of the steps that
    aren't 0 where they are few, else `n_draws` of them. NaN, 1, 1 where all values are equal.
    """
    steps = np.diff(values)
    moves = steps[steps != 0]
    if not len(moves):
        return np.nan, 1.0, 1.0
    if 2 ** len(moves) <= n_draws + 1:
        signs = 1 - 2 * (np.arange(2 ** len(moves))[:, None] >> np.arange(len(moves)) & 1)
        signs = signs[1:]  # without the one that changes nothing, which is counted below
    else:
        signs = rng.choice([-1, 1], (n_draws, len(moves)))
    paths = np.zeros((len(signs), len(values)))
    paths[:, 1:][:, steps != 0] = signs * moves
    paths = np.round(paths.cumsum(1), ROUNDED)
    drawn, found = concordance(paths), concordance(np.round(values - values[0], ROUNDED)[None])[0]
    p = float(1 + (drawn >= found).sum()) / (1 + len(signs))
    return trend(values)[0], p, 1 / (1 + len(signs))


def concordance(paths: Float[np.ndarray, "path step"]) -> Float[np.ndarray, " path"]:
    """Return pairs in order less pairs against it, over the root of the pairs that differ: τ_b but for a constant."""
    first, second = np.triu_indices(paths.shape[1], 1)
    sign = np.sign(paths[:, second] - paths[:, first])
    return np.asarray(sign.sum(1) / np.sqrt(np.maximum(np.abs(sign).sum(1), 1)))


def inversion_counts(ties: list[int], most: int) -> list[int]:
    """Count the orders with 0 … `most` inversions when `ties` are equal: [n]! / Π [m]!, [j] = 1 − q^j."""
    counts = [1] + [0] * most
    for j in range(1, sum(ties) + 1):
        for i in range(most, j - 1, -1):
            counts[i] -= counts[i - j]
    for j in [j for m in ties for j in range(1, m + 1)]:
        for i in range(j, most + 1):
            counts[i] += counts[i - j]
    return counts


def onset(p: Float[np.ndarray, " step"], level: float = LEVEL) -> int | None:
    """Return the index of the first step from which on every p is at most `level`; None where the last one isn't.

    Steps are not corrected for one another. A p that is NaN counts as above the level.
    """
    late = len(p) - int(np.cumprod((p <= level)[::-1]).sum())
    return late if late < len(p) else None
