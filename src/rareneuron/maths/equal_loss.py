"""Weights under which rare and common tokens are equally hard to predict, so that an effect can be compared at both.

Rare tokens have larger losses, and larger losses move more. Within bins of clean loss both kinds get the same weight,
so what is left of a difference is not the loss's. Oracle: tests/maths/test_equal_loss.py, a loop over bins.
"""

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.rank_curve import participation_ratio

LOSS_BINS = 10  # of equally many tokens, in which rare and common ones are compared


def loss_bins(loss: Float[np.ndarray, " token"]) -> Int[np.ndarray, " token"]:
    """Return the bin of each token: ten bins of equally many tokens, by clean loss."""
    return np.searchsorted(np.quantile(loss, np.linspace(0, 1, LOSS_BINS + 1)[1:-1]), loss, side="right")


def weights_at_equal_loss(
    rare_loss: Float[np.ndarray, " rare"], common_loss: Float[np.ndarray, " common"]
) -> tuple[Float[np.ndarray, " rare"], Float[np.ndarray, " common"]]:
    """Return weights of rare and of common tokens, each summing to 1, under which both spread alike over bins of loss.

    That spread is the rare tokens' own, without bins that hold no common one: there both have weight 0.
    """
    rare = np.arange(len(rare_loss) + len(common_loss)) < len(rare_loss)
    bins = loss_bins(np.concatenate([rare_loss, common_loss]))
    counts = np.stack([np.bincount(bins[rare == kind], minlength=LOSS_BINS) for kind in (False, True)])
    share = np.where(counts.min(0) > 0, counts[1], 0) / max(1, counts[1][counts.min(0) > 0].sum())
    per_token = np.divide(share, counts, out=np.zeros(counts.shape), where=counts > 0)
    return per_token[1][bins[rare]], per_token[0][bins[~rare]]


def effective_number(weights: Float[np.ndarray, " token"]) -> float:
    """Return how many equally weighted tokens say as much, (Σw)²/Σw²; 0 where no token has any weight."""
    return participation_ratio(weights) if weights.any() else 0.0
