r"""Does an effect belong to the target's type, or to the context it stands in?

The intraclass correlation over pairs: of all pairs of tokens that share a type and stand in different contexts,

    r = Σ_pairs (x_s − x̄)(x_t − x̄) / (n_pairs Var x),

and likewise of pairs that share a context and have different types. It is 1 where the type alone decides, and 0 where
it says nothing. Effects are heavy-tailed, so a correlation of their sizes would hang on a handful of tokens: x are
ranks, each neuron's among the tokens, and a group's r is the mean of its neurons'. Pairs come from sums over classes,
never one by one, so contexts can be resampled: a pair then counts as often as both of its contexts do.
Oracle: tests/maths/test_intraclass.py, loops over pairs.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.ranks import average_ranks

By = Literal["type", "context"]


class PairedTokens:
    """Tokens by type and by context, prepared for correlations over pairs. Memory: arrays [context, type]."""

    def __init__(self, kind: Int[np.ndarray, " token"], context: Int[np.ndarray, " token"]) -> None:
        self.kinds, self.kind = np.unique(kind, return_inverse=True)
        self.contexts, self.context = np.unique(context, return_inverse=True)
        self.size = self._table(np.ones(len(self.kind)))

    def n_pairs(self, by: By = "type") -> int:
        """Return the number of pairs of one type in different contexts, or of one context and different types."""
        once = np.ones((1, len(self.contexts)))
        return int(self._products(self.size, self.size, once, by)[0]) // 2

    def correlations(
        self,
        values: Float[np.ndarray, "token column"],
        weights: Float[np.ndarray, "draw context"],
        by: By = "type",
    ) -> Float[np.ndarray, "draw column"]:
        """Return r of each column, with each context counted as often as the weights of a draw say.

        `by` is "type" (pairs of one type in different contexts) or "context" (of one context, of different types). NaN
        where there are no such pairs or no variance.
        """
        n = weights @ self.size.sum(1)
        n_pairs = self._products(self.size, self.size, weights, by)
        out = []
        for column in values.T.astype(np.float64):
            x = column - column.mean()  # so that no digits cancel
            table = self._table(x)
            mean = weights @ table.sum(1) / n
            variance = weights @ self._table(np.square(x)).sum(1) / n - np.square(mean)
            # Σ (x − x̄)(y − x̄) = Σ xy − x̄ Σ (x + y) + n x̄²
            of_both = self._products(table, table, weights, by)
            of_either = 2 * self._products(table, self.size, weights, by)
            total = of_both - mean * of_either + n_pairs * np.square(mean)
            with np.errstate(divide="ignore", invalid="ignore"):
                out.append(total / (n_pairs * variance))
        return np.stack(out, 1)

    def _table(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, "context kind"]:
        """Return the sums over all tokens of one type in one context."""
        shape = len(self.contexts), len(self.kinds)
        return np.bincount(self.context * shape[1] + self.kind, values, shape[0] * shape[1]).reshape(shape)

    def _products(
        self,
        a: Float[np.ndarray, "context kind"],
        b: Float[np.ndarray, "context kind"],
        weights: Float[np.ndarray, "draw context"],
        by: By,
    ) -> Float[np.ndarray, " draw"]:
        """Return Σ a_s b_t over ordered pairs, from the sums of both: of all that share a class, less one another's."""
        alone = np.square(weights) @ (a * b).sum(1)
        if by == "context":
            return np.square(weights) @ (a.sum(1) * b.sum(1)) - alone
        total = weights @ a
        return (total * (total if b is a else weights @ b)).sum(1) - alone


def type_correlations(
    tokens: PairedTokens, effects: Float[np.ndarray, "token neuron"]
) -> tuple[Float[np.ndarray, " neuron"], Float[np.ndarray, "token neuron"]]:
    """Return r of each neuron over pairs of one type, and the ranks of its effects among the tokens.

    Of all neurons at once, with every context counted once.
    """
    ranks = np.stack([average_ranks(of_neuron) for of_neuron in effects.T], 1)
    order = np.lexsort((tokens.context, tokens.kind))
    x = (ranks - ranks.mean(0))[order]
    kind, context = tokens.kind[order], tokens.context[order]
    new_kind = np.append(True, kind[1:] != kind[:-1])
    new_cell = new_kind | np.append(True, context[1:] != context[:-1])
    of_kinds, of_cells = (np.add.reduceat(x, np.flatnonzero(new)) for new in (new_kind, new_cell))
    of_pairs = np.square(of_kinds).sum(0) - np.square(of_cells).sum(0)  # each pair twice
    with np.errstate(divide="ignore", invalid="ignore"):
        return of_pairs / (2 * tokens.n_pairs() * np.square(x).mean(0)), ranks
