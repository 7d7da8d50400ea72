"""Effects sorted by size: the rank curve y(u) = log|Δ| at u = log rank (Eq. 1)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig


@dataclass(frozen=True, kw_only=True)
class RankCurve:
    """Mean |Δ| of N neurons, largest first."""

    value: Float[np.ndarray, " rank"]  # nats per token; zeros come last and have no logarithm
    neuron: Int[np.ndarray, " rank"]

    @property
    def rank(self) -> Int[np.ndarray, " rank"]:
        """1 … N."""
        return np.arange(1, len(self.value) + 1)

    @property
    def n_positive(self) -> int:
        """Ranks whose logarithm exists."""
        return int((self.value > 0).sum())


def rank_curve(values: Float[np.ndarray, " neuron"]) -> RankCurve:
    """Sort mean |Δ| from the largest; ties keep the neurons' order."""
    if len(values) == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidConfig(
            "A rank curve needs one finite mean |Δ| >= 0 for each neuron; got "
            f"{len(values)} values, {int((~np.isfinite(values)).sum())} of them not finite. Pass column abs_delta_loss."
        )
    order = np.argsort(-values, kind="stable")
    return RankCurve(value=values[order], neuron=order)
