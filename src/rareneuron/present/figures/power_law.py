"""Where the power law fails: the last step's rank curve against the line fitted to its middle (Fig. 3a)."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.figures.phases import draw_line, frame
from rareneuron.present.ink import SMALL, draw_nulls, log_axes, thin, write_head
from rareneuron.present.style import Theme

if TYPE_CHECKING:
    import matplotlib.figure


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Hatch the gaps between curve and line outside the fit, and tell their size at the first and last rank."""
    axes = sheet.add_subplot()
    line, facts = thin(frame), frame.iloc[0]
    value, predicted = line["abs_delta_loss"].to_numpy(), line["line"].to_numpy()
    write_head(axes, FIGURE.title, f"{facts['checkpoint']}: {facts['verdict']}")
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("mean |Δ| at rare tokens (nats per token)")
    log_axes(axes, np.concatenate([value, predicted]))
    draw_nulls(axes, line, theme)
    ends = (("left", line["rank"] <= facts["fit_first"], 0), ("right", line["rank"] >= facts["fit_last"], -1))
    for side, beyond, end in ends:
        axes.fill_between(
            line["rank"],
            value,
            predicted,
            where=beyond,
            facecolor="none",
            edgecolor=theme.ink,
            alpha=0.6,
            hatch="////" if side == "left" else "....",
            linewidth=0,
            label=f"{side} of the fit: {value[end] / predicted[end]:.2g} × the line at rank {line['rank'].iloc[end]:,}",
        )
    axes.plot(line["rank"], value, color=theme.ordered(1)[0], linewidth=2.2, label="neurons")
    draw_line(axes, line, theme)
    axes.legend(loc="lower left", frameon=False, fontsize=SMALL)


FIGURE = Figure(
    name="power-law",
    source="Fig. 3a",
    title="Where the power law fails",
    description=(
        "Neurons of the last checkpoint by mean |Δ|, and the power law fitted to the middle: solid over the ranks of "
        "the fit, dashed where it is continued. Hatched: how far the curve leaves that line outside its fit, with the "
        "ratio at the first and at the last rank. Grey: 95 % of samples of three distributions without phases, fitted "
        "to the curve, and their medians. They fall short of a line at both ends, too; only a curve above its line at "
        "the left can have a plateau."
    ),
    frame=frame,
    draw=draw,
    needs="line",
)
