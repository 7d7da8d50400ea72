"""κ(u), the local slope of the rank curve, one line a checkpoint (Fig. 2a; Eq. 7).

A power law is a level stretch. κ at rank r is the mean slope between r and e·r, smoothed over 0.5 in log rank; where
that leaves the data it's undefined and not drawn. The band is the lognormal fitted to the last step's curve.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.maths.phases import INTERVAL
from rareneuron.maths.rank_curve import WINDOW, local_slope
from rareneuron.pipeline.run import Run
from rareneuron.present.figure import Figure
from rareneuron.present.figures.rank_curve import log_ranks, step_legend
from rareneuron.present.figures.verdict import NULL_SHADE, headed, lognormal_samples, words_only
from rareneuron.present.style import Theme
from rareneuron.present.wording import step_name

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.figure

FEWEST = int(np.exp(1 + WINDOW)) + 1  # ranks in which Eq. 7 and its window find room


def frame(run: Run) -> pd.DataFrame:
    """One row per checkpoint and point of the grid; null_low and null_high at the last checkpoint."""
    parts = []
    for checkpoint, step in enumerate(run.steps or [None]):
        curve = run.rank_curve(step)
        if curve.n_positive >= FEWEST:
            y = np.log(curve.value[: curve.n_positive].astype(np.float64))
            slope = local_slope(y)
            part = pd.DataFrame({"rank": np.exp(slope.log_rank), "kappa": slope.kappa})
            part = part.assign(checkpoint=checkpoint, step=step_name(step), null_low=np.nan, null_high=np.nan)
            if checkpoint == len(run.steps) - 1:
                part["null_low"], part["null_high"] = np.quantile(
                    local_slope(lognormal_samples(y)).kappa, INTERVAL, axis=0
                )
            parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Lines in step order, the last one heavy; undefined stretches stay empty."""
    axes = sheet.add_subplot()
    if frame.empty:
        words_only(axes, FIGURE.title, f"κ(u) needs {FEWEST} neurons with an effect, at one checkpoint at least.")
        return
    headed(axes, FIGURE.title, "Grey: lognormal fitted to the last step, 95 % of samples")
    axes.set_xlabel("rank r of the neuron (κ is the slope from r to e · r)")
    axes.set_ylabel("local slope κ (fall of log |Δ| per e-fold)")
    log_ranks(axes)
    lines = [part for _, part in frame.groupby("checkpoint", sort=True)]
    last = lines[-1]
    axes.fill_between(last["rank"], last["null_low"], last["null_high"], color=theme.ink, alpha=NULL_SHADE, linewidth=0)
    handles: list[matplotlib.artist.Artist] = []
    for i, (line, colour) in enumerate(zip(lines, theme.ordered(len(lines)), strict=True)):
        handles += axes.plot(line["rank"], line["kappa"], color=colour, linewidth=2.2 if i == len(lines) - 1 else 1.1)
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    axes.grid(True, which="major")
    step_legend(axes, handles, [line["step"].iloc[0] for line in lines])


FIGURE = Figure(
    name="local-slope",
    source="Fig. 2a",
    title="Local slope of the rank curve",
    description=(
        "How fast log mean |Δ| falls with log rank, one line a checkpoint, the last one heavy. A power law is a level "
        "stretch. Each point looks from rank r ahead to e · r and is smoothed over a factor 1.6 in rank; where that "
        "leaves the data the slope is undefined and nothing is drawn. Grey: 95 % of samples of as many neurons from "
        "the lognormal fitted to the last checkpoint, whose slope rises too."
    ),
    frame=frame,
    draw=draw,
)
