"""Second moments of activations, streamed in float64: covariance, correlation and cosine of any neurons.

Nothing grows with the number of tokens, so whole groups can be compared on all analysed tokens of any study. Oracle:
tests/geometry_oracle.py, loops over activation vectors.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.errors import OutOfRange, RareNeuronError

TOKENS_AT_ONCE = 4096


class SecondMoments:
    r"""$\sum_t n_{ti}$ and $\sum_t n_{ti} n_{tj}$ of all pairs of neurons over tokens, streamed in float64.

    Both are kept relative to the first token. It is at most √tokens standard deviations off the mean, so a mean far
    above the standard deviation costs no digits, and a neuron that never moves has a variance of exactly 0. Memory
    8 · kept² bytes and as much again while adding, time O(token · kept²); `neurons` restricts both to some neurons of
    a wide layer.
    """

    def __init__(self, neurons: Int[np.ndarray, " kept"] | None = None) -> None:
        self._kept = None if neurons is None else np.unique(neurons)
        self.n_tokens = 0

    def add(self, acts: Float[Tensor, "token neuron"] | Float[np.ndarray, "token neuron"]) -> None:
        """Add tokens of the whole layer, in batches of any size."""
        for start in range(0, len(acts), TOKENS_AT_ONCE):
            rows = acts[start : start + TOKENS_AT_ONCE]
            batch = (
                torch.from_numpy(rows.astype(np.float64)) if isinstance(rows, np.ndarray) else rows.detach().double()
            )
            self._add(batch)

    def _add(self, batch: Float[Tensor, "token neuron"]) -> None:
        if self._kept is None:
            self._kept = np.arange(batch.shape[1])
        if len(self._kept) and (self._kept[0] < 0 or self._kept[-1] >= batch.shape[1]):
            raise OutOfRange(
                f"Neurons {self._kept[0]} … {self._kept[-1]} were asked for, and the activations have "
                f"{batch.shape[1]} neurons. Use indices of this layer."
            )
        batch = batch[:, torch.from_numpy(self._kept).to(batch.device)]
        if not torch.isfinite(batch).all():
            raise RareNeuronError(
                f"{int((~torch.isfinite(batch)).sum())} of {batch.numel()} activations are not finite numbers, so no "
                "correlation of their neurons is defined. The usual cause is overflow in half precision: use float32.",
                argument="dtype",
            )
        if self.n_tokens == 0:
            self._origin = batch[0].clone()
            self._sum = torch.zeros_like(self._origin)
            self._products = batch.new_zeros(len(self._kept), len(self._kept))
        batch = batch - self._origin
        self.n_tokens += len(batch)
        self._sum += batch.sum(0)
        # numpy sees that both factors are one matrix and computes half of the product; torch doesn't
        self._products += torch.from_numpy(batch.numpy().T @ batch.numpy()) if batch.is_cpu else batch.T @ batch

    @property
    def neurons(self) -> Int[np.ndarray, " kept"]:
        """The neurons whose moments are kept, ascending."""
        return np.arange(0) if self._kept is None else self._kept

    def covariance(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return the unbiased covariance of neurons `rows` with neurons `columns`."""
        return (self._products_of(rows, columns, centred=True) / (self.n_tokens - 1)).cpu().numpy()

    def correlation(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return Pearson's ρ; NaN where a neuron is constant."""
        return self._normalised(rows, columns, centred=True)

    def cosine(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return the cosine between uncentred activation vectors; NaN where a neuron is always 0."""
        return self._normalised(rows, columns, centred=False)

    def constant(self, neurons: Int[np.ndarray, "*draw size"]) -> Bool[np.ndarray, "*draw size"]:
        """Return whether each neuron has the same activation at every token."""
        return (self._squares(centred=True)[self._places(neurons)] == 0).cpu().numpy()

    def _places(self, neurons: Int[np.ndarray, "*draw size"]) -> Int[Tensor, "*draw size"]:
        places = np.searchsorted(self.neurons, neurons)
        found = self.neurons[np.minimum(places, len(self.neurons) - 1)] == neurons
        if not found.all():
            raise OutOfRange(
                f"The moments of neuron {neurons[~found][0]} were not kept, so nothing is known of it. Keep all "
                "neurons of the groups, or leave out `neurons`."
            )
        return torch.from_numpy(places).to(self._sum.device)

    def _products_of(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"], *, centred: bool
    ) -> Float[Tensor, "*draw row column"]:
        i, j = self._places(rows)[..., :, None], self._places(columns)[..., None, :]
        products = self._products[i, j] - self._sum[i] * self._sum[j] / self.n_tokens
        mean = self._origin + self._sum / self.n_tokens
        return products if centred else products + self.n_tokens * mean[i] * mean[j]

    def _squares(self, *, centred: bool) -> Float[Tensor, " kept"]:
        squares = (self._products.diagonal() - self._sum.square() / self.n_tokens).clamp_min(0)
        return squares if centred else squares + self.n_tokens * (self._origin + self._sum / self.n_tokens).square()

    def _normalised(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"], *, centred: bool
    ) -> Float[np.ndarray, "*draw row column"]:
        length = self._squares(centred=centred).sqrt()
        lengths = length[self._places(rows)][..., :, None] * length[self._places(columns)][..., None, :]
        return (self._products_of(rows, columns, centred=centred) / lengths).clamp(-1, 1).cpu().numpy()
