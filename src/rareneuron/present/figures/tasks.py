"""What the rare-word swap says without each group, beside what it says without random ones."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.errors import NotMeasured
from rareneuron.present.figure import Figure
from rareneuron.present.ink import SMALL
from rareneuron.present.style import Theme
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

MEASURES = {"margin": "margin, nats", "accuracy": "accuracy", "log p": "log p of the\noriginal, nats"}
OFFSET = {"uniform": -0.3, "matched": 0.3}  # of the bars of random groups from the row's middle


def frame(run: Run) -> pd.DataFrame:
    """Return the summary of the rare-word swap, rows of one kind of word only."""
    try:
        table = run.evaluation()
    except NotMeasured as reason:
        return pd.DataFrame({"change": [np.nan], "reason": [str(reason)]})
    rows = table[table["words"].isin(["rare", "common"]) & table["measure"].isin(list(MEASURES))]
    return rows.assign(row=rows["words"] + " words,\nwithout " + rows["group"], reason="").reset_index(drop=True)


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw a panel for each measure, with a row for each kind of word and group."""
    names = list(dict.fromkeys(frame["row"]))
    there = [measure for measure in MEASURES if (frame["measure"] == measure).any()]
    panels = np.atleast_1d(sheet.subplots(1, len(there), sharey=True))
    for axes, measure in zip(panels, there, strict=True):
        draw_panel(axes, frame[frame["measure"] == measure], names, theme)
        axes.set_xlabel(MEASURES[measure], fontsize=SMALL)
    panels[0].set_yticks(range(len(names)), names, fontsize=SMALL)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    sheet.suptitle(FIGURE.title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def draw_panel(axes: "matplotlib.axes.Axes", frame: pd.DataFrame, names: list[str], theme: Theme) -> None:
    """Draw the changes of one measure as points with intervals, over bars that hold 95 % of random groups."""
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    colour = theme.ordered(1)[0]
    for _, row in frame.iterrows():
        y = names.index(row["row"])
        if row["null"] in OFFSET and np.isfinite(row["null_low"]):
            shade = 0.14 if row["null"] == "uniform" else 0.26
            axes.barh(
                y + OFFSET[row["null"]] / 2,
                row["null_high"] - row["null_low"],
                left=row["null_low"],
                height=0.3,
                color=theme.ink,
                alpha=shade,
                linewidth=0,
            )
    for _, row in frame.drop_duplicates("row").iterrows():
        y = names.index(row["row"])
        axes.hlines(y, row["change_low"], row["change_high"], color=colour, linewidth=1.6)
        axes.plot(row["change"], y, "o", color=colour, markersize=5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.locator_params(axis="x", nbins=3)
    axes.margins(x=0.12)


FIGURE = Figure(
    name="tasks",
    source="limitations",
    title="The rare-word swap without each group",
    description=(
        "How scores change when a group is replaced by its mean, with 95 % intervals over documents. Margin: the "
        "log-likelihood of the word that was written less that of another word as frequent in its place; accuracy: how "
        "often it is above 0; log p: of the word that was written alone. Bars hold 95 % of random groups: light of the "
        "whole layer, dark of neurons that move the residual stream as far. A group that makes rare words likelier, "
        "whichever fit, changes log p and leaves the margin."
    ),
    frame=frame,
    draw=draw,
    needs="change",
    optional=True,
)
