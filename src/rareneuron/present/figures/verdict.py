"""What the figures of phases share: the verdict in words, the reason where there's none, the lognormal behind a curve.

The eye sees three phases in almost any sorted sample, so no curve is drawn without a null or without the verdict.
"""

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rareneuron.errors import RunFolderError, TooFewNeurons
from rareneuron.maths.nulls import FAMILIES, uniform_order_statistics
from rareneuron.maths.phases import LEVEL, Phases
from rareneuron.pipeline.rankings import Ranking
from rareneuron.pipeline.run import Run
from rareneuron.present.wording import significant, step_name

if TYPE_CHECKING:
    import matplotlib.axes

NO_EFFECT = "Every neuron's mean |Δ| is zero: there is no curve."
NO_PHASES = (
    "The run folder holds no phases of this checkpoint that can be read. Run the same study again: phases are added, "
    "and effects kept."
)
N_DRAWS = 400  # of the lognormal: its 2.5 % quantile rests on ten of them
NULL_SHADE = 0.16  # of ink on paper
SMALL = 8.5  # points
PER_LINE = 58  # characters of a note across the axes
AS_WELL = {  # what looks the same by chance too often
    "half-normal": "half-normal samples look as straight",
    "exponential": "exponential samples look as straight",
    "lognormal": "lognormal samples look as straight",
    "no plateau": "curves without one look the same",
    "no decay": "power laws look the same",
}


def phases_or_reason(run: Run, step: int | None = None, ranking: Ranking = "all") -> Phases | str:
    """What was found, or why nothing could be: too few neurons, or a run folder without phases."""
    try:
        return run.phases(step, ranking)
    except TooFewNeurons as error:
        return str(error)
    except RunFolderError:  # its words name the folder, which a report that travels shouldn't
        return NO_PHASES


def verdict(found: Phases) -> str:
    """The outcome, with what stood against the phase that is missing."""
    if found.outcome == "three phases":
        return found.outcome
    least = max(FAMILIES, key=lambda family: found.null_p[family])
    null = least if found.outcome == "no power law" else found.outcome
    if found.null_p[null] > LEVEL:
        return f"{found.outcome} ({AS_WELL[null]}, p = {significant(found.null_p[null], 2)})"
    why = "the middle bends" if found.outcome == "no power law" else "within its noise"
    return f"{found.outcome} ({why})"


def lognormal_samples(y: Float[np.ndarray, " rank"]) -> Float[np.ndarray, "draw rank"]:
    """Sorted log effects of as many neurons, from the lognormal with the mean and spread of `y`; the seed is fixed."""
    uniform = uniform_order_statistics(N_DRAWS, len(y), np.random.default_rng(0))
    return np.asarray(y.mean() + y.std() * FAMILIES["lognormal"].log_quantile(uniform))


def checkpoint_name(step: int | None) -> str:
    """A checkpoint at the head of a line."""
    return "Final checkpoint" if step is None else f"Step {step_name(step)}"


def headed(axes: "matplotlib.axes.Axes", title: str, subtitle: str) -> None:
    """A title with a line in smaller type under it, and room for names of phases under that."""
    axes.set_title(title, pad=32)
    axes.annotate(subtitle, (0, 1), (0, 18), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL)


def note(axes: "matplotlib.axes.Axes", text: str) -> None:
    """Words where ink is missing, at the lower left, which a falling curve leaves free."""
    axes.text(0.02, 0.03, fill(text, PER_LINE), transform=axes.transAxes, fontsize=SMALL)


def words_only(axes: "matplotlib.axes.Axes", title: str, text: str) -> None:
    """A sheet without axes that says why."""
    axes.set_title(title)
    axes.set_axis_off()
    axes.text(0, 0.9, fill(text, PER_LINE), transform=axes.transAxes, va="top")
