"""How sure a number is: errors and intervals over contexts, tests between groups and over steps, Holm.

Tokens of one context aren't independent. Contexts are the units that were sampled, so contexts are what the standard
error clusters by and what the bootstrap resamples. Sums stream: nothing here grows with the number of tokens. Each
test is shown to find what is planted, and nothing more often than it says (tests/maths/test_significance.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import kendalltau
from torch import Tensor

from rareneuron.errors import InvalidConfig

FEWEST_DRAWS = 99
ROUNDED = 12  # decimals to which sums of steps are equal
EXACT_STEPS = 33  # of a trend; above, the normal approximation, whose p is within 0.015


class ClusteredMean:
    r"""Mean over tokens per neuron, with its standard error clustered by context.

    With $S_c$ the sum over context c and $n_c$ its tokens, the mean is $\theta = \sum S_c / \sum n_c$ and
    $\mathrm{SE}^2 = \frac{C}{C-1} \sum_c (S_c - \theta n_c)^2 / n^2$. Only five sums are kept, in float64.
    """

    def __init__(self, n_neurons: int, device: torch.device | str = "cpu") -> None:
        zero = torch.zeros(n_neurons, dtype=torch.float64, device=device)
        self._sum, self._square, self._cross = zero, zero.clone(), zero.clone()
        self._sizes_squared = 0.0
        self.n_tokens = self.n_contexts = 0

    def add(self, sums: Float[Tensor, "context neuron"], sizes: Int[Tensor, " context"]) -> None:
        """Add whole contexts: their sums over tokens and their numbers of tokens (contexts of none count as none)."""
        sums, n = sums.double(), sizes.double()
        self._sum = self._sum + sums.sum(0)
        self._square = self._square + sums.square().sum(0)
        self._cross = self._cross + n @ sums
        self._sizes_squared += n.square().sum().item()
        self.n_tokens += int(sizes.sum())
        self.n_contexts += int((sizes > 0).sum())

    @property
    def mean(self) -> Float[np.ndarray, " neuron"]:
        """θ per neuron."""
        return (self._sum / self.n_tokens).cpu().numpy()

    @property
    def standard_error(self) -> Float[np.ndarray, " neuron"]:
        """Standard error of θ; NaN with fewer than two contexts, where nothing can be said."""
        if self.n_contexts < 2:
            return np.full(len(self._sum), np.nan)
        mean = self._sum / self.n_tokens
        squares = self._square - 2 * mean * self._cross + mean.square() * self._sizes_squared
        factor = self.n_contexts / (self.n_contexts - 1)
        return (factor * squares.clamp_min(0)).sqrt().div(self.n_tokens).cpu().numpy()


def sums_by_context(
    values: Float[Tensor, "token neuron"], row: Int[Tensor, " token"], n_contexts: int
) -> Float[Tensor, "context neuron"]:
    """Sum the tokens of each context, in float64."""
    out = torch.zeros(n_contexts, values.shape[1], dtype=torch.float64, device=values.device)
    return out.index_add_(0, row, values.double())


@dataclass(frozen=True, kw_only=True)
class AgainstNull:
    """A statistic beside its distribution over null draws, which pass through the same computation."""

    value: float
    null_mean: float
    null_low: float  # 2.5 % of the draws lie below
    null_high: float  # and 2.5 % above
    effect_size: float  # (value − null_mean) / standard deviation of the draws; NaN where they don't differ
    p_above: float  # of a draw at least as high
    p_below: float  # of a draw at least as low
    n_draws: int

    @property
    def p(self) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(self.p_above, self.p_below))


def against_null(value: float, draws: Float[np.ndarray, " draw"]) -> AgainstNull:
    """One-sided p-values, (1 + draws at least as extreme) / (1 + draws): never 0, valid for any number of draws.

    What is not a number never speaks for anything: such a draw counts as extreme, and such a value has p = 1.
    """
    if len(draws) < FEWEST_DRAWS:
        raise InvalidConfig(
            f"{len(draws)} null draws were given, and a p-value from fewer than {FEWEST_DRAWS} cannot come near 5 %. "
            "Draw more random groups (--n-random)."
        )
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    mean, spread = (float(known.mean()), float(known.std(ddof=1))) if len(known) > 1 else (np.nan, np.nan)
    return AgainstNull(
        value=value,
        null_mean=mean,
        null_low=float(low),
        null_high=float(high),
        effect_size=(value - mean) / spread if spread > 0 and np.isfinite(value) else np.nan,
        p_above=float(1 + (~(draws < value)).sum()) / (1 + len(draws)),
        p_below=float(1 + (~(draws > value)).sum()) / (1 + len(draws)),
        n_draws=len(draws),
    )


def bootstrap_interval(
    sums: Float[np.ndarray, "context column"],
    n_tokens: Int[np.ndarray, " context"],
    rng: np.random.Generator,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    *,
    level: float = 0.95,
    n_draws: int = 2000,
) -> Float[np.ndarray, "2 *statistic"]:
    """Percentile interval when contexts are resampled: lower and upper end of the mean per token in each column.

    Another `statistic` takes the totals [draw, column] and the tokens [draw] of the resampled contexts, such as
    `lambda totals, tokens: (totals[:, 0] - totals[:, 1]) / tokens` for a difference.
    """
    n = len(sums)
    if n < 2:
        raise InvalidConfig(
            f"{n} contexts can't be resampled: every draw would be the same and the interval of no width. Analyse more "
            "contexts (--n-tokens)."
        )
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(np.float64)
    totals, tokens = weights @ sums, weights @ n_tokens
    drawn = totals / tokens[:, None] if statistic is None else statistic(totals, tokens)
    return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p-values adjusted for their number; rejecting those ≤ 5 % errs once or more in at most 5 % of tables."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def trend(values: Float[np.ndarray, " step"]) -> tuple[float, float]:
    """Kendall's τ_b of values against their order, and its two-sided p; NaN where all are equal.

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
    """Kendall's τ_b against order, its p (one-sided, upwards), and the least p that these values can have.

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
    """Pairs in order less pairs against it, over the root of the pairs that differ: τ_b but for a constant."""
    first, second = np.triu_indices(paths.shape[1], 1)
    sign = np.sign(paths[:, second] - paths[:, first])
    return np.asarray(sign.sum(1) / np.sqrt(np.maximum(np.abs(sign).sum(1), 1)))


def inversion_counts(ties: list[int], most: int) -> list[int]:
    """Orders with 0 … `most` inversions, of values of which `ties` are equal: [n]! / Π [m]!, each [j] a 1 − q^j."""
    counts = [1] + [0] * most
    for j in range(1, sum(ties) + 1):
        for i in range(most, j - 1, -1):
            counts[i] -= counts[i - j]
    for j in [j for m in ties for j in range(1, m + 1)]:
        for i in range(j, most + 1):
            counts[i] += counts[i - j]
    return counts
