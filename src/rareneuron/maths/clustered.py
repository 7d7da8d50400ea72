"""Means over tokens whose standard errors are clustered by context, streamed.

Tokens of one context aren't independent, so the error comes from the spread between contexts. Only sums are kept:
nothing here grows with the number of tokens. Oracle: tests/oracles.py, a loop over contexts.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class ClusteredMean:
    r"""Mean over tokens per neuron, with its standard error clustered by context.

    With $S_c$ the sum over context c and $n_c$ its tokens, the mean is $\theta = \sum S_c / \sum n_c$ and
    $\mathrm{SE}^2 = \frac{C}{C-1} \sum_c (S_c - \theta n_c)^2 / n^2$. Only sums are kept, in float64.
    """

    def __init__(self, n_neurons: int, device: torch.device | str = "cpu") -> None:
        zero = torch.zeros(n_neurons, dtype=torch.float64, device=device)
        self._sum, self._square, self._cross = zero, zero.clone(), zero.clone()
        self._sizes_squared = 0.0
        self.n_tokens = self.n_contexts = 0

    def add(self, sums: Float[Tensor, "context neuron"], sizes: Int[Tensor, " context"]) -> None:
        """Add whole contexts: their sums over tokens and their numbers of tokens. Empty contexts are not counted."""
        sums, n = sums.double(), sizes.double()
        self._sum = self._sum + sums.sum(0)
        self._square = self._square + sums.square().sum(0)
        self._cross = self._cross + n @ sums
        self._sizes_squared += n.square().sum().item()
        self.n_tokens += int(sizes.sum())
        self.n_contexts += int((sizes > 0).sum())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all sums as arrays that `absorb` adds to another mean. Unfinished checkpoints keep these names."""
        return {
            "_sum": self._sum.cpu().numpy(),
            "_square": self._square.cpu().numpy(),
            "_cross": self._cross.cpu().numpy(),
            "_sizes_squared": np.array([self._sizes_squared]),
            "n_tokens": np.array([self.n_tokens]),
            "n_contexts": np.array([self.n_contexts]),
        }

    def absorb(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the `arrays` of a mean over other contexts, exactly as if those contexts had been added here."""
        device = self._sum.device
        self._sum = self._sum + torch.from_numpy(arrays["_sum"]).to(device)
        self._square = self._square + torch.from_numpy(arrays["_square"]).to(device)
        self._cross = self._cross + torch.from_numpy(arrays["_cross"]).to(device)
        self._sizes_squared += arrays["_sizes_squared"].item()
        self.n_tokens += int(arrays["n_tokens"].item())
        self.n_contexts += int(arrays["n_contexts"].item())

    @property
    def mean(self) -> Float[np.ndarray, " neuron"]:
        """The mean θ of each neuron."""
        return (self._sum / self.n_tokens).cpu().numpy()

    @property
    def standard_error(self) -> Float[np.ndarray, " neuron"]:
        """The standard error of θ; NaN with fewer than two contexts, which say nothing about it."""
        if self.n_contexts < 2:
            return np.full(len(self._sum), np.nan)
        mean = self._sum / self.n_tokens
        squares = self._square - 2 * mean * self._cross + mean.square() * self._sizes_squared
        factor = self.n_contexts / (self.n_contexts - 1)
        return (factor * squares.clamp_min(0)).sqrt().div(self.n_tokens).cpu().numpy()


def clustered_ratio(
    part: Float[np.ndarray, "context neuron"], whole: Float[np.ndarray, "context neuron"]
) -> tuple[Float[np.ndarray, " neuron"], Float[np.ndarray, " neuron"]]:
    r"""Return the ratio of two sums over contexts for each neuron, and its standard error.

    $R = \sum P_c / \sum W_c$ and, by the linear part of its change, $\mathrm{SE}^2 = \frac{C}{C-1} \sum_c
    (P_c - R W_c)^2 / (\sum W_c)^2$. NaN where there is nothing to divide by, or a single context.
    """
    part, whole = part.astype(np.float64), whole.astype(np.float64)
    n, total = len(part), whole.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = part.sum(0) / total
        spread = np.square(part - ratio * whole).sum(0)
        error = np.sqrt(spread * n / (n - 1)) / total if n > 1 else np.full_like(total, np.nan)
    return np.where(total > 0, ratio, np.nan), np.where(total > 0, error, np.nan)


def sums_by_context(
    values: Float[Tensor, "token neuron"], row: Int[Tensor, " token"], n_contexts: int
) -> Float[Tensor, "context neuron"]:
    """Sum the values of each context's tokens, in float64; `row` says which context a token belongs to."""
    out = torch.zeros(n_contexts, values.shape[1], dtype=torch.float64, device=values.device)
    return out.index_add_(0, row, values.double())
