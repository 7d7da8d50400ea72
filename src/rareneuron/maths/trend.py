"""Does a number rise or fall over the steps of a training? Two tests of Kendall's τ against the order of the steps.

`trend` takes every order of the values as equally likely, `drift` takes the values for a walk, whose steps are as
likely down as up. Oracles: tests/maths/test_trend.py, every order and every walk.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig
from rareneuron.maths.significance import LEVEL

ROUNDED = 12  # decimals to which sums of steps are equal
CHANCES = np.linspace(0.5, 1, 51)  # of a step upwards
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
    moves = np.diff(values)[np.diff(values) != 0]
    if not len(moves):
        return np.nan, 1.0, 1.0
    drawn = null_concordance(values, rng, n_draws)
    found = concordance(np.round(values - values[0], ROUNDED)[None])[0]
    p = float(1 + (drawn >= found).sum()) / (1 + len(drawn))
    return trend(values)[0], p, 1 / (1 + len(drawn))


def null_concordance(
    values: Float[np.ndarray, " step"], rng: np.random.Generator, n_draws: int
) -> Float[np.ndarray, " walk"]:
    """Return the concordance of walks that go up or down as often, by as much as the values do."""
    moves = np.diff(values)[np.diff(values) != 0]
    if 2 ** len(moves) <= n_draws + 1:
        signs = 1 - 2 * (np.arange(2 ** len(moves))[:, None] >> np.arange(len(moves)) & 1)
        signs = signs[1:]  # without the one that changes nothing, which is counted beside them
    else:
        signs = rng.choice([-1, 1], (n_draws, len(moves)))
    return concordance(walks(values, signs * np.sign(moves).astype(np.int64)))


def walks(values: Float[np.ndarray, " step"], signs: Int[np.ndarray, "walk move"]) -> Float[np.ndarray, "walk step"]:
    """Return the walks whose steps are as large as those of the values, and go where the signs say."""
    steps = np.diff(values)
    paths = np.zeros((len(signs), len(values)))
    paths[:, 1:][:, steps != 0] = signs * np.abs(steps[steps != 0])
    return np.round(paths.cumsum(1), ROUNDED)


@dataclass(frozen=True)
class WalkNoise:
    """How τ of walks strays that tend upwards: each step goes up with the same chance, whatever those before it did."""

    null: Float[np.ndarray, " null_walk"]  # concordance
    tau: Float[np.ndarray, "chance walk"]  # of walks with some chance of a step up, from 1/2 to 1
    concordance: Float[np.ndarray, "chance walk"]

    def detectable(self, p: float, power: float) -> float:
        """Return the mean τ of the walks with the smallest chance that gives at most this p with this power."""
        beyond = len(self.null) - np.searchsorted(np.sort(self.null), self.concordance)
        found = ((1 + beyond) / (1 + len(self.null)) <= p).mean(1) >= power
        return float(self.tau[found.argmax()].mean()) if found.any() else np.nan


def walk_noise(values: Float[np.ndarray, " step"], rng: np.random.Generator, *, n_draws: int = 1000) -> WalkNoise:
    """Return the noise of `drift` for steps as large as those of the values, which must not all be equal."""
    n_moves = int((np.diff(values) != 0).sum())
    rising = np.concatenate(
        [[0.0], np.abs(np.diff(values)).cumsum()]
    )  # so that the null lacks the walk that only rises
    null, uniform = null_concordance(rising, rng, 4095), rng.random((n_draws, n_moves))
    of_chance = [concordance(walks(values, np.where(uniform < chance, 1, -1))) for chance in CHANCES]
    n_pairs = len(values) * (len(values) - 1) / 2
    return WalkNoise(null, np.array(of_chance) / np.sqrt(n_pairs), np.array(of_chance))


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
