"""κ(u), the local slope of the rank curve, one line a checkpoint (Fig. 2a; Eq. 7).

A power law is a level stretch. κ at rank r is the mean slope between r and e·r, smoothed over 0.5 in log rank; where
that leaves the data it's undefined and not drawn. Grey are the nulls fitted to the last step's curve.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.rank_curve import WINDOW, local_slope
from rareneuron.present.figure import Figure
from rareneuron.present.figures.rank_curve import log_ranks, step_legend
from rareneuron.present.figures.verdict import SMALL, draw_nulls, headed, null_bands, null_samples, words_only
from rareneuron.present.style import Colour, Theme
from rareneuron.present.wording import step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.figure

RANK_LABEL = "rank r of the neuron (κ is the slope from r to e · r)"
SLOPE_LABEL = "local slope κ (fall of log |Δ| per e-fold)"
FEWEST = int(np.exp(1 + WINDOW)) + 1  # ranks in which Eq. 7 and its window find room
LOWEST = 0.1  # the axis reaches up so far at least: equal effects have no slope
TOO_SHORT = f"κ(u) needs {FEWEST} neurons with an effect, at one checkpoint at least."


def frame(run: Run) -> pd.DataFrame:
    """One row per checkpoint and point of the grid; at the last one that has a slope the nulls' bands too."""
    parts, y = [], np.empty(0)
    for checkpoint, step in enumerate(run.steps or [None]):  # without any, reading the last one says what to do
        curve = run.rank_curve(step)
        if curve.n_positive >= FEWEST:
            y = np.log(curve.value[: curve.n_positive].astype(np.float64))
            slope = local_slope(y)
            part = pd.DataFrame({"rank": np.exp(slope.log_rank), "kappa": slope.kappa})
            parts.append(part.assign(checkpoint=checkpoint, step=step_name(step)))
    if not parts:
        return pd.DataFrame()
    parts[-1] = parts[-1].assign(**null_bands({name: local_slope(null_samples(y, name)).kappa for name in FAMILIES}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Lines in step order, the last one heavy; undefined stretches stay empty."""
    axes = sheet.add_subplot()
    if frame.empty:
        words_only(axes, FIGURE.title, TOO_SHORT)
        return
    headed(axes, FIGURE.title, "Grey: three nulls fitted to the last step, 95 % of samples of each")
    axes.set_xlabel(RANK_LABEL)
    axes.set_ylabel(SLOPE_LABEL)
    lines = [part for _, part in frame.groupby("checkpoint", sort=True)]
    handles = draw_slopes(axes, lines, theme.ordered(len(lines)), theme)
    limit(axes, frame)
    axes.add_artist(axes.legend(handles=handles["nulls"], loc="upper left", frameon=False, fontsize=SMALL))
    step_legend(axes, handles["steps"], [line["step"].iloc[0] for line in lines])


def draw_slopes(
    axes: "matplotlib.axes.Axes", lines: list[pd.DataFrame], colours: list[Colour], theme: Theme
) -> dict[str, list["matplotlib.artist.Artist"]]:
    """κ over log rank, one line a checkpoint, and the nulls behind the last; handles for legends."""
    log_ranks(axes)
    draw_nulls(axes, lines[-1], theme)
    handles: dict[str, list[matplotlib.artist.Artist]] = {"nulls": list(axes.get_lines()), "steps": []}
    for i, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        width = 2.2 if i == len(lines) - 1 else 1.1
        handles["steps"] += axes.plot(line["rank"], line["kappa"], color=colour, linewidth=width)
    axes.grid(True, which="major")
    return handles


def limit(axes: "matplotlib.axes.Axes", frame: pd.DataFrame) -> None:
    """Axes for all lines; of the nulls, what would double their height is cut."""
    axes.set_xlim(1, 1.1 * frame.loc[frame["kappa"].notna(), "rank"].max())
    axes.set_ylim(0, max(1.15 * frame["kappa"].max(), LOWEST))


FIGURE = Figure(
    name="local-slope",
    source="Fig. 2a",
    title="Local slope of the rank curve",
    description=(
        "How fast log mean |Δ| falls with log rank, one line a checkpoint, the last one heavy. A power law is a level "
        "stretch. Each point looks from rank r ahead to e · r and is smoothed over a factor 1.6 in rank; where that "
        "leaves the data the slope is undefined and nothing is drawn. Grey: 95 % of samples of as many neurons from a "
        "half-normal, an exponential and a lognormal fitted to the last checkpoint, and their medians; their slopes "
        "rise too."
    ),
    frame=frame,
    draw=draw,
)
