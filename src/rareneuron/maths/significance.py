"""How sure a mean over tokens is, when tokens of one context aren't independent.

Contexts are the units that were sampled, so contexts are what the standard error clusters by and what the
bootstrap resamples. Sums stream: nothing here grows with the number of tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import InvalidConfig

FEWEST_DRAWS = 99


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
    """p = (1 + draws at least as extreme) / (1 + draws): never 0, and valid for any number of draws."""
    if len(draws) < FEWEST_DRAWS:
        raise InvalidConfig(
            f"{len(draws)} null draws were given, and a p-value from fewer than {FEWEST_DRAWS} cannot come near 5 %. "
            "Draw more random groups (--n-random)."
        )
    low, high = np.quantile(draws, [0.025, 0.975])
    spread = float(draws.std(ddof=1))
    return AgainstNull(
        value=value,
        null_mean=float(draws.mean()),
        null_low=float(low),
        null_high=float(high),
        effect_size=(value - float(draws.mean())) / spread if spread > 0 else np.nan,
        p_above=float(1 + (draws >= value).sum()) / (1 + len(draws)),
        p_below=float(1 + (draws <= value).sum()) / (1 + len(draws)),
        n_draws=len(draws),
    )
