r"""What is said of a rank curve: plateau, power law and decay, or which of them is missing (Sec. 3.1; Eq. 1, 7, 8).

`phase_fit` finds them and tests each against its null; docs/phases.md derives it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from rareneuron.maths.rank_curve import LocalSlope
from rareneuron.shown import Shown

Outcome = Literal["three phases", "no plateau", "no decay", "no power law"]

FEWEST_NEURONS = 128  # four segments of the least width, and what Eq. 7 looks ahead, fill a curve of 104 ranks
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class ContextSums:
    """What the bootstrap resamples: |Δ| summed over the tokens of each context."""

    sums: Shaped[np.ndarray, "context neuron"]  # columns as in the array that `rank_curve` sorted
    n_tokens: Int[np.ndarray, " context"]
    error: Float[np.ndarray, " neuron"] | None = None  # standard deviation of what estimates leave open, nats per token


@dataclass(frozen=True, kw_only=True)
class Phases(Shown):
    """Three phases of a rank curve, or why not. A rank that is None was not found; intervals are 95 %.

    `null_p` holds the share of null samples that look at least as convincing: `half-normal`, `exponential` and
    `lognormal` for the power law, `no plateau` and `no decay` for the rest. Band and intervals need sums per context.
    """

    outcome: Outcome
    kappa: float
    beta: float
    r_squared: float  # of the line over ranks fit_first … fit_last
    fit_first: int
    fit_last: int
    plateau_end: int | None  # last rank of the plateau
    decay_start: int | None  # first rank of the decay
    deviation: Float[np.ndarray, " rank"]  # δ(r) of Eq. 8, for ranks whose effect is not 0
    band: Float[np.ndarray, "2 rank"] | None
    intervals: dict[str, tuple[float, float]]  # kappa, beta; plateau_end and decay_start where found
    null_p: dict[str, float]
    breaks: tuple[int, ...]  # change points of κ, as ranks
    slope: LocalSlope
    n_neurons: int
    n_zero: int  # effects of exactly 0, which have no logarithm and are left out
    n_draws: int  # of each null: no p is below 1 / (1 + n_draws)

    @property
    def plateau_share(self) -> float | None:
        """Share of all neurons that are in the plateau."""
        return None if self.plateau_end is None else self.plateau_end / self.n_neurons

    @property
    def decay_share(self) -> float | None:
        """Share of all neurons that are in the decay, effects of 0 included."""
        return None if self.decay_start is None else 1 - (self.decay_start - 1) / self.n_neurons

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return the outcome and the numbers behind it, each beside its interval; arrays are left out."""
        names = (
            *("outcome", "kappa", "beta", "r_squared", "fit_first", "fit_last", "plateau_end", "plateau_share"),
            *("decay_start", "decay_share", "breaks", "n_neurons", "n_zero"),
        )
        rows = [(name, getattr(self, name), self.intervals.get(name, "")) for name in names]
        return ["", "", "95 %"], [*rows, *((f"p against {name}", p, "") for name, p in self.null_p.items())]
