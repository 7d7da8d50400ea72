r"""Effects sorted by size: the rank curve y(u) = log|Δ| at u = log rank (Eq. 1), and its local slope κ(u) (Eq. 7).

κ(u) = y(u) − y(u + 1): the difference over a factor e in rank, on a uniform grid of u, averaged over a window of fixed
log width. Where rank · e or the window leaves the data κ is undefined (NaN). An estimator that truncates there instead
bends at log(N/6) in *any* curve; tests/maths/test_rank_curve.py shows it doing so.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig
from rareneuron.shown import Shown

GRID_STEP = 0.05  # in log rank; 1 (the e of Eq. 7) is a whole number of steps
WINDOW = 0.5  # in log rank: half of what Eq. 7 averages over anyway


@dataclass(frozen=True, kw_only=True)
class RankCurve(Shown):
    """Mean |Δ| of N neurons, largest first."""

    value: Float[np.ndarray, " rank"]  # nats per token; zeros come last and have no logarithm
    neuron: Int[np.ndarray, " rank"]

    @property
    def rank(self) -> Int[np.ndarray, " rank"]:
        """Ranks 1 … N."""
        return np.arange(1, len(self.value) + 1)

    @property
    def n_positive(self) -> int:
        """How many neurons have an effect above 0, whose logarithm exists."""
        return int((self.value > 0).sum())


@dataclass(frozen=True, kw_only=True)
class LocalSlope:
    """κ on a uniform grid of log rank; κ at u looks ahead to u + 1, so a bend shows up to a factor e in rank early."""

    log_rank: Float[np.ndarray, " grid"]
    kappa: Float[np.ndarray, "*curves grid"]  # NaN where undefined


def rank_curve(values: Float[np.ndarray, " neuron"]) -> RankCurve:
    r"""Sort the neurons' mean |Δ| from the largest: the rank curve, $y(u) = \log |\Delta|$ at u = log rank.

    Args:
        values: mean |Δ| of each neuron in nats per token, [neuron]; finite and not negative. Any other size of an
            effect will do, too, such as |mean Δ| of the neurons of one sign.

    Returns:
        The values, largest first, beside the neurons that have them. Ties keep the neurons' order.

    Raises:
        InvalidConfig: the array has another shape, is empty, or holds a value that is negative or not finite.

    Source:
        Sec. 3.1, Eq. 1 and Fig. 1b of “Emergent Specialization: Rare Token Neurons in Language Models”.

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> curve = rn.rank_curve(np.array([0.1, 0.5, 0.0]))
        >>> curve.value, curve.neuron, curve.n_positive
        (array([0.5, 0.1, 0. ]), array([1, 0, 2]), 2)
    """
    values = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.float64)
    if values.ndim != 1:
        raise InvalidConfig(f"A rank curve needs one mean |Δ| for each neuron; got an array of shape {values.shape}.")
    if len(values) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidConfig(
            "A rank curve needs one finite mean |Δ| >= 0 for each neuron; got "
            f"{len(values)} values, {int((~np.isfinite(values)).sum())} of them not finite. Pass column abs_delta_loss."
        )
    order = np.argsort(-values, kind="stable")
    return RankCurve(value=values[order], neuron=order)


def local_slope(y: Float[np.ndarray, "*curves rank"]) -> LocalSlope:
    r"""Return $\kappa(u) = -[y(u + 1) - y(u)]$ (Eq. 7) of log effects sorted from the largest, of one curve or many.

    y between two ranks is interpolated linearly in log rank.
    """
    log_rank = np.log(np.arange(1, y.shape[-1] + 1))
    grid = np.arange(0, log_rank[-1], GRID_STEP)
    left = np.searchsorted(log_rank, grid, side="right") - 1
    part = (grid - log_rank[left]) / (log_rank[left + 1] - log_rank[left])
    on_grid = y[..., left] * (1 - part) + y[..., left + 1] * part
    ahead, half = round(1 / GRID_STEP), round(WINDOW / GRID_STEP / 2)
    raw = on_grid[..., :-ahead] - on_grid[..., ahead:]
    sums = np.cumsum(np.concatenate([np.zeros_like(raw[..., :1]), raw], axis=-1), axis=-1)
    width = 2 * half + 1
    kappa = np.full_like(on_grid, np.nan)
    defined = max(0, raw.shape[-1] - width + 1)  # none in a curve too short for the window
    kappa[..., half : half + defined] = (sums[..., width:] - sums[..., :-width]) / width
    return LocalSlope(log_rank=grid, kappa=kappa)


def participation_ratio(value: Float[np.ndarray, " neuron"]) -> float:
    """Return (Σ|Δ|)²/Σ|Δ|²: over how many neurons the effect is spread, were it spread evenly.

    It lies between 1 and N, and is NaN where no neuron has an effect.
    """
    squares = float((value**2).sum())
    return float(value.sum()) ** 2 / squares if squares > 0 else np.nan
