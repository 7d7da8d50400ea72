"""What the figures of phases share: the verdict in words, the reason where there's none, the nulls behind a curve.

The eye sees three phases in almost any sorted sample, so no curve is drawn without a null or without the verdict.
"""

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from rareneuron.errors import RunFolderError, TooFewNeurons
from rareneuron.maths import Definitions
from rareneuron.maths.nulls import FAMILIES, uniform_order_statistics
from rareneuron.maths.phases import INTERVAL, Phases
from rareneuron.maths.significance import LEVEL
from rareneuron.present.style import Theme
from rareneuron.present.wording import significant, step_name
from rareneuron.runs.rankings import Found, Ranking
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes

NO_EFFECT = "Every neuron's mean |Δ| is zero: there is no curve."
NO_PHASES = (
    "The run folder holds no phases of this checkpoint that can be read. Run the same study again: phases are added, "
    "and effects kept."
)
UNTESTED = (
    "This run's phases follow the released scripts, whose boundaries are constants that nothing tests, so there is no "
    "verdict to draw. Run the study with --definitions paper in another folder."
)
N_DRAWS = 400  # of each null: its 2.5 % quantile rests on ten of them
NULL_SHADE = 0.16  # of ink on paper
NULL_STYLES = {"half-normal": (0.08, (0, (6, 2))), "exponential": (0.13, (0, (3, 2))), "lognormal": (0.2, (0, (1, 2)))}
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
    """What was found, or why nothing could be: too few neurons, a run folder without phases, released definitions."""
    found = UNTESTED if run.definitions == "released" else found_or_reason(run, step, ranking, "paper")
    assert isinstance(found, Phases | str)
    return found


def found_or_reason(run: Run, step: int | None, ranking: Ranking | None, definitions: Definitions) -> Found | str:
    """The same, by either definitions."""
    try:
        return run.phases(step, ranking, definitions)
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


def null_samples(y: Float[np.ndarray, " rank"], family: str) -> Float[np.ndarray, "draw rank"]:
    """Sorted log effects of as many neurons, fitted to `y` by its mean, the lognormal by its spread too.

    Half-normal and exponential have a scale alone to fit. The seed is fixed.
    """
    sample = FAMILIES[family].log_quantile(uniform_order_statistics(N_DRAWS, len(y), np.random.default_rng(0)))
    return np.asarray(y.mean() + (y.std() if family == "lognormal" else 1) * (sample - sample.mean()))


def null_bands(samples: Mapping[str, Float[np.ndarray, "draw point"]]) -> dict[str, Float[np.ndarray, " point"]]:
    """Columns `FAMILY low`, `FAMILY median` and `FAMILY high` of every null."""
    out: dict[str, np.ndarray] = {}
    for family, drawn in samples.items():
        low, median, high = np.quantile(drawn, (INTERVAL[0], 0.5, INTERVAL[1]), axis=0)
        out |= {f"{family} low": low, f"{family} median": median, f"{family} high": high}
    return out


def draw_nulls(axes: "matplotlib.axes.Axes", line: pd.DataFrame, theme: Theme) -> None:
    """Every null's 95 % band in its grey, and its median in its dashes, so that three can be told apart."""
    for family, (shade, dashes) in NULL_STYLES.items():
        low, high = line[f"{family} low"], line[f"{family} high"]
        axes.fill_between(line["rank"], low, high, color=theme.ink, alpha=shade, linewidth=0)
        axes.plot(
            line["rank"],
            line[f"{family} median"],
            color=theme.ink,
            alpha=0.7,
            linewidth=0.9,
            linestyle=dashes,
            label=family,
        )


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
