"""κ(u) at every checkpoint of one run or of several, one panel a run (Fig. 2a, and the appendix for a model family).

Panels share their axes, and a step its colour. Each has the nulls of its own size behind it: κ of a layer with four
times the neurons reaches further to the right whether or not anything else is different.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.figures import local_slope
from rareneuron.present.ink import SMALL, step_legend
from rareneuron.present.style import Theme
from rareneuron.present.wording import visible
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.figure

PANEL = (3.6, 3.2)  # inches
MOST_ACROSS = 3
LEGEND = 0.9  # inches beside the panels


def frame(*runs: Run) -> pd.DataFrame:
    """Return the local slopes of every run, with its place, model and number of neurons; a run may have none."""
    parts = []
    models = [visible(Path(run.manifest.config.model or "embedded series").name) for run in runs]
    if len(set(models)) < len(models):  # the same model with other settings
        models = [f"{model} ({visible(run.path.name)})" for model, run in zip(models, runs, strict=True)]
    for place, (name, run) in enumerate(zip(models, runs, strict=True)):
        slopes = local_slope.frame(run)
        if not slopes.empty:
            parts.append(slopes.assign(run=place, model=name, n_neurons=len(run.effects())))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw panels in the order of the runs, and one legend of steps for all of them."""
    panels = [part for _, part in frame.groupby("run", sort=True)]
    across = min(len(panels), MOST_ACROSS)
    down = -(-len(panels) // across)
    sheet.set_size_inches(across * PANEL[0] + LEGEND, down * PANEL[1] + 0.6)
    steps = sorted(frame["step"].unique(), key=lambda step: (not step[0].isdecimal(), len(step), step))
    colours = dict(zip(steps, theme.ordered(len(steps)), strict=True))
    grid = sheet.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    shown: dict[str, matplotlib.artist.Artist] = {}
    for axes, panel in zip(grid, panels, strict=False):
        lines = [part for _, part in panel.groupby("checkpoint", sort=True)]
        names = [line["step"].iloc[0] for line in lines]
        handles = local_slope.draw_slopes(axes, lines, [colours[name] for name in names], theme)
        shown |= dict(zip(names, handles["steps"], strict=True))
        axes.set_title(f"{panel['model'].iloc[0]}, {panel['n_neurons'].iloc[0]:,} neurons", fontsize=9.5)
        if axes is grid[0]:
            axes.add_artist(axes.legend(handles=handles["nulls"], loc="upper left", frameon=False, fontsize=SMALL))
    for place, axes in enumerate(grid):
        axes.tick_params(labelbottom=place + across >= len(panels))
        axes.set_visible(place < len(panels))
    local_slope.limit(grid[0], frame)
    step_legend(grid[across - 1], [shown[step] for step in steps], steps)
    sheet.suptitle(FIGURE.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    sheet.supxlabel(local_slope.RANK_LABEL, fontsize=9.5)
    sheet.supylabel(local_slope.SLOPE_LABEL, fontsize=9.5)


FIGURE = Figure(
    name="slope-distributions",
    source="Fig. 2a, appendix",
    title="Local slopes over training",
    description=(
        "The local slope κ of the rank curve (Eq. 7) against rank, one panel a run and one line a checkpoint, the last "
        "one heavy; a step has the same colour everywhere. Grey: 95 % of samples of as many neurons from a "
        "half-normal, an exponential and a lognormal fitted to that run's last checkpoint, and their medians. A power "
        "law is a level stretch that leaves all of them."
    ),
    frame=frame,
    draw=draw,
    empty=local_slope.TOO_SHORT,
    several=True,
)
