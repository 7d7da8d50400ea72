"""B = ŵ Aᵀ of some neurons, how each moves every logit, and what is derived from it: once for all tokens.

Oracle: tests/maths/test_ablation.py and test_behind_norm.py, through the engines that hold these tables.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ELEMENTS_AT_ONCE = 2**22  # neuron · vocab squared in float32 at once: 16 MB


@dataclass(frozen=True, kw_only=True)
class NeuronTables:
    """B of some neurons, and what is derived from it."""

    neurons: slice
    W: Float[Tensor, "neuron d_model"]  # ŵ
    B: Float[Tensor, "neuron vocab"]
    B_squared: Float[Tensor, "neuron vocab"] | None  # in the dtype of fast products; None where it isn't held
    lowest: Float[Tensor, " neuron"]
    highest: Float[Tensor, " neuron"]

    @property
    def farthest(self) -> Float[Tensor, " neuron"]:
        """The largest |B_iv| of each neuron."""
        return torch.maximum(self.highest, -self.lowest)


def neuron_tables(
    neurons: slice,
    W: Float[Tensor, "neuron d_model"],
    A: Float[Tensor, "vocab d_model"],
    squared_dtype: torch.dtype | None,
) -> NeuronTables:
    """Form the tables of neurons whose rows are `W`; B² only where it has a dtype."""
    B = W @ A.T
    lowest, highest = B.aminmax(dim=1)
    squares = None if squared_dtype is None else squared(B, squared_dtype)
    return NeuronTables(neurons=neurons, W=W, B=B, B_squared=squares, lowest=lowest, highest=highest)


def squared(B: Float[Tensor, "neuron vocab"], dtype: torch.dtype) -> Float[Tensor, "neuron vocab"]:
    """Return B² in another dtype, without a copy of the whole in its own."""
    if dtype == B.dtype:
        return B.square()
    out = torch.empty(B.shape, dtype=dtype, device=B.device)
    rows = max(1, ELEMENTS_AT_ONCE // B.shape[1])
    for of_out, part in zip(out.split(rows), B.split(rows), strict=True):
        of_out.copy_(part.square())
    return out
