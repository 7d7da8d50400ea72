"""The last rank curve of several runs in the same axes (Fig. 1b across models or settings).

Runs have no order, so lines differ in dashes as well as in colour. Heights may be compared where targets and layers
are alike; what is said about phases needs each run's own nulls, which the figure `phases` has.
"""

from itertools import cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.figures.rank_curve import band, log_axes, thinned
from rareneuron.present.figures.verdict import NO_EFFECT, SMALL, words_only
from rareneuron.present.style import Theme
from rareneuron.present.tables import subjects_with_labels
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.figure

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MOST_CHARACTERS = 64  # of a run's name in the legend


def frame(*runs: Run, step: int | None = None) -> pd.DataFrame:
    """One row per run and neuron, by rank: run (from 0), name, rank, mean |Δ| and its error; by default at the last."""
    parts = []
    for place, (label, of) in enumerate(subjects_with_labels(runs, step)):
        table = of.run.effects(of.step).sort_values("rank")
        columns = ["neuron", "rank", "abs_delta_loss", "abs_delta_loss_se"]
        parts.append(table[columns].assign(run=place, name=f"{label}, {len(table):,} neurons"))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """A line and a band of one standard error a run, in the order given; the legend stands below."""
    axes = sheet.add_subplot()
    if not (frame["abs_delta_loss"] > 0).any():
        words_only(axes, FIGURE.title, NO_EFFECT)
        return
    axes.set_title(FIGURE.title)
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("mean |Δ| at rare tokens (nats per token)")
    groups = [part for _, part in frame.groupby("run", sort=True)]
    handles: list[matplotlib.artist.Artist] = []
    for part, colour, dashes in zip(groups, theme.ordered(len(groups)), cycle(DASHES), strict=False):
        line = thinned(part[part["abs_delta_loss"] > 0])
        band(axes, line, colour)
        handles += axes.plot(line["rank"], line["abs_delta_loss"], color=colour, linestyle=dashes, linewidth=1.5)
    log_axes(axes, frame.loc[frame["abs_delta_loss"] > 0, "abs_delta_loss"].to_numpy())
    axes.grid(True, which="major")
    names = [part["name"].iloc[0] for part in groups]
    short = [name if len(name) <= MOST_CHARACTERS else f"{name[: MOST_CHARACTERS - 1]}…" for name in names]
    sheet.legend(handles, short, loc="outside lower left", frameon=False, fontsize=SMALL, ncols=1)
    sheet.set_figheight(sheet.get_figheight() + 0.17 * len(groups))


FIGURE = Figure(
    name="rank-curves",
    source="Fig. 1b",
    title="Rank curves of several runs",
    description=(
        "One line a run: the neurons of its checkpoint sorted by mean |Δ| at rare tokens, both axes logarithmic; "
        "the band is one standard error to each side, clustered by context. Layers of other widths end at other ranks."
    ),
    frame=frame,
    draw=draw,
    several=True,
)
