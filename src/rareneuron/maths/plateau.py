r"""How high the head of a rank curve stands above the line of its middle, at rare less at common targets.

Height is the mean of log|Δ| over the first ranks less the least-squares line of log|Δ| on log rank over the middle. The
ranks are the same for both kinds of target, each sorted by its own effects; resampled contexts keep the order of the
full sample, as the bands of `phase_fit` do. Oracle: tests/maths/test_plateau.py, a loop over ranks and draws.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rareneuron.maths.claims import Comparison, bootstrap_test

DRAWS = 999


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which ranks are the head, and over which the line is fitted; all from 1, ends included."""

    head: int
    first: int
    last: int


def head_height(y: Float[np.ndarray, "draw rank"], ranks: Ranks) -> Float[np.ndarray, " draw"]:
    """Return the height of the head of each curve of log|Δ| above its line, in log units."""
    x = np.log(np.arange(1, y.shape[1] + 1))
    middle = slice(ranks.first - 1, ranks.last)
    centred = x[middle] - x[middle].mean()
    slope = y[:, middle] @ centred / (centred @ centred)
    line = y[:, middle].mean(1, keepdims=True) + slope[:, None] * (x[: ranks.head] - x[middle].mean())
    return np.asarray((y[:, : ranks.head] - line).mean(1))


def rare_only_test(
    rare: Float[np.ndarray, "context neuron"],
    common: Float[np.ndarray, "context neuron"],
    ranks: Ranks,
    rng: np.random.Generator,
) -> Comparison:
    """Return the test that the head stands higher at rare than at common targets, by a bootstrap over contexts.

    `rare` and `common` are |Δ| summed over each context's tokens. The number of tokens moves a curve, not its height.
    """
    ordered = [sums.astype(np.float64)[:, np.argsort(-sums.sum(0), kind="stable")] for sums in (rare, common)]
    least = [np.maximum(sums.sum(0).min(), np.finfo(np.float64).tiny) for sums in ordered]

    def difference(weights: np.ndarray) -> np.ndarray:
        heights = [
            head_height(np.log(np.maximum(weights @ sums, low)), ranks)
            for sums, low in zip(ordered, least, strict=True)
        ]
        return heights[0] - heights[1]

    label = "height of the largest effects above the curve's line, at rare less at common targets"
    return bootstrap_test(label, "all neurons", np.eye(len(rare)), difference, rng, n_draws=DRAWS)
