r"""What the released scripts compute, so that their numbers can be reproduced; nothing here is tested against a null.

Boosting and suppressing neurons are ranked apart, by |mean Δ|. The slope at i is fitted over ranks i + 1 … 6i, cut off
at the last rank n: from log(n/6) on it covers another log width, so it bends there whatever the curve. The boundaries
are constants, so no curve lacks a phase. `phases` is what the paper defines.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rareneuron.errors import TooFewNeurons
from rareneuron.maths.rank_curve import RankCurve
from rareneuron.maths.spacings import Spacings
from rareneuron.shown import Shown

AHEAD = 6  # the slope at i looks to rank 6i
BOUNDARIES = (3.5, 5.5)  # log rank: plateau | power law | decay
FIT = (3.5, 4.5)  # log rank
LATE_FIT = (4.8, 5.2)
PLATEAU_END, DECAY_START = int(np.exp(BOUNDARIES[0])), int(np.exp(BOUNDARIES[1])) + 1  # ranks 33 and 245


@dataclass(frozen=True, kw_only=True)
class ReleasedPhases(Shown):
    """Two lines, a slope and a deviation; no outcome, since boundaries that are constants can't say no."""

    kappa: float  # over FIT
    beta: float
    kappa_late: float  # over LATE_FIT
    beta_late: float
    plateau_end: int  # a constant: last rank of the plateau
    decay_start: int  # a constant: first rank of the decay
    truncated_from: int  # from this i on the slope's fit is cut off, a kink at log(n/6)
    slope: Float[np.ndarray, " i"]  # κ at i = 1 … n − 2, as a positive number where effects fall
    deviation: Float[np.ndarray, " rank"]  # log|Δ| − (beta − kappa log r), on all ranks
    n_neurons: int  # of the ranking, zeros left out


def released_phases(curve: RankCurve) -> ReleasedPhases:
    r"""Compute the lines, slopes and boundaries of a rank curve as the authors' released scripts do.

    Boundaries are constants, so every curve has all three phases; nothing is tested. `fit_phases` is what the paper
    defines. Time O(n²), 0.1 s at 4,096 neurons.

    Args:
        curve: rank curve of the neurons of one sign by |mean Δ|, at least 245 of them.

    Returns:
        κ and β of two lines, the slope at each rank and the deviation δ(r) from the first line.

    Raises:
        TooFewNeurons: the curve ends before the rank at which the scripts' decay begins.

    Source:
        The scripts that the authors of “Emergent Specialization: Rare Token Neurons in Language Models” released
        (docs/phases.md says how they differ from the text).

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> found = rn.released_phases(rn.rank_curve(np.arange(1, 301) ** -0.5))
        >>> round(found.kappa, 3), found.plateau_end, found.decay_start
        (0.5, 33, 245)
    """
    n = curve.n_positive
    if n < DECAY_START:
        raise TooFewNeurons(
            f"The curve has {n} neurons with an effect, and the released scripts' decay begins at rank {DECAY_START} "
            "whatever the layer, so their phases don't exist here. Use the paper's definitions, or a wider layer.",
            argument="definitions",
        )
    spacings = Spacings(np.log(curve.value[:n].astype(np.float64)))
    line, late = (spacings.line(int(np.ceil(np.exp(first))), int(np.exp(last))) for first, last in (FIT, LATE_FIT))
    slope = [spacings.line(i + 1, min(AHEAD * i, n)).kappa for i in range(1, n - 1)]
    return ReleasedPhases(
        kappa=line.kappa,
        beta=line.beta,
        kappa_late=late.kappa,
        beta_late=late.beta,
        plateau_end=PLATEAU_END,
        decay_start=DECAY_START,
        truncated_from=n // AHEAD + 1,
        slope=np.array(slope),
        deviation=spacings.y[0] - line.at(np.arange(1, n + 1)),
        n_neurons=n,
    )
