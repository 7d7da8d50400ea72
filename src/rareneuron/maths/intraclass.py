r"""Does an effect belong to the target's type, or to the context it stands in?

The intraclass correlation over pairs: of all pairs of tokens that share a type and stand in different contexts,

    r = Σ_pairs (x_s − x̄)(x_t − x̄) / (n_pairs Var x),

and likewise of pairs that share a context and have different types. It is 1 where the type alone decides, and 0 where
it says nothing. Pairs come from sums over classes, never one by one, so contexts can be resampled: a pair then counts
as often as both of its contexts do. Oracle: tests/maths/test_intraclass.py, loops over pairs.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array


class PairedTokens:
    """Tokens by type and by context, prepared for correlations over pairs."""

    def __init__(self, kind: Int[np.ndarray, " token"], context: Int[np.ndarray, " token"]) -> None:
        self.kinds, self.kind = np.unique(kind, return_inverse=True)
        self.contexts, self.context = np.unique(context, return_inverse=True)
        cell = self.context * len(self.kinds) + self.kind  # of all tokens of one type in one context
        self.cells, self.cell = np.unique(cell, return_inverse=True)
        self.size = np.bincount(self.cell).astype(np.float64)
        self.kind_of_cell, self.context_of_cell = self.cells % len(self.kinds), self.cells // len(self.kinds)

    @property
    def n_pairs(self) -> int:
        """Pairs of tokens of one type in different contexts."""
        return int(self.products(self.size[:, None], np.ones((1, len(self.contexts))), self.kind_of_cell)[0, 0])

    def products(
        self, of_cells: Float[np.ndarray, "cell column"], weights: Float[np.ndarray, "draw context"], label: np.ndarray
    ) -> Float[np.ndarray, "draw column"]:
        """Return Σ over pairs of tokens that share a label and no cell, of the product of their values."""
        counts = weights[:, self.context_of_cell]
        has_label = csr_array((np.ones(len(label)), (np.arange(len(label)), label)))
        out = []
        for values in of_cells.T:
            weighted = counts * values
            total = weighted @ has_label
            out.append((np.square(total).sum(1) - np.square(weighted).sum(1)) / 2)
        return np.stack(out, 1)

    def correlations(
        self,
        values: Float[np.ndarray, "token column"],
        weights: Float[np.ndarray, "draw context"],
        by: str = "type",
    ) -> Float[np.ndarray, "draw column"]:
        """Return r of each column, with each context counted as often as the weights of a draw say.

        `by` is "type" (pairs of one type in different contexts) or "context" (of one context, of different types). NaN
        where there are no such pairs or no variance.
        """
        label = self.kind_of_cell if by == "type" else self.context_of_cell
        values = values.astype(np.float64)
        sums = np.stack([np.bincount(self.cell, x, len(self.cells)) for x in values.T], 1)
        squares = np.stack([np.bincount(self.cell, x, len(self.cells)) for x in np.square(values).T], 1)
        counts = weights[:, self.context_of_cell]
        n = (counts * self.size).sum(1, keepdims=True)
        mean = counts @ sums / n
        variance = counts @ squares / n - np.square(mean)
        pairs = self.products(self.size[:, None], weights, label)
        # Σ (x − x̄)(y − x̄) = Σ xy − x̄ Σ (x + y) + n x̄²; the middle sum counts each token once for each partner.
        both = self.products(np.concatenate([sums + self.size[:, None], sums], 1), weights, label)
        with_ones, alone = np.split(both, 2, axis=1)
        partners = with_ones - alone - pairs  # Σ over pairs of x + y
        total = alone - mean * partners + pairs * np.square(mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(total / (pairs * variance))
