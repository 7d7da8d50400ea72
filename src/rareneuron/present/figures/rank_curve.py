"""Every neuron's mean |Δ| by rank, one line a checkpoint (Fig. 1b over the steps of Fig. 1a).

In log-log axes a power law (Eq. 1) is a straight line; whether a piece of the curve is one isn't for the eye to
say. Zeros have no logarithm: they stay in the frame, and the figure says how many it leaves out.
"""

from typing import TYPE_CHECKING

import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.ink import band, log_axes, step_legend, thin
from rareneuron.present.style import Theme
from rareneuron.present.wording import step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.figure


def frame(run: Run) -> pd.DataFrame:
    """Return one row per checkpoint and neuron, by rank, with mean |Δ| and its error; checkpoints count from 0."""
    parts = []
    for checkpoint, step in enumerate(run.steps or [None]):  # without any, reading the last one says what to do
        table = run.effects(step).sort_values("rank")
        parts.append(
            pd.DataFrame(
                {
                    "checkpoint": checkpoint,
                    "step": step_name(step),
                    "neuron": table["neuron"].to_numpy(),
                    "rank": table["rank"].to_numpy(),
                    "abs_delta_loss": table["abs_delta_loss"].to_numpy(),
                    "abs_delta_loss_se": table["abs_delta_loss_se"].to_numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw lines in step order, the last one heavy and with a band of one standard error."""
    axes = sheet.add_subplot()
    axes.set_title(FIGURE.title)
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("mean |Δ| at rare tokens (nats per token)")
    lines = [thin(part[part["abs_delta_loss"] > 0]) for _, part in frame.groupby("checkpoint", sort=True)]
    colours = theme.ordered(len(lines))
    names = frame.groupby("checkpoint", sort=True)["step"].first().tolist()
    handles: list[matplotlib.artist.Artist] = []
    for i, (line, colour, name) in enumerate(zip(lines, colours, names, strict=True)):
        is_last = i == len(lines) - 1
        if is_last:
            band(axes, line, colour)
        handles += axes.plot(
            line["rank"], line["abs_delta_loss"], color=colour, linewidth=2.2 if is_last else 1.1, label=f"step {name}"
        )
    log_axes(axes, pd.concat(lines)["abs_delta_loss"].to_numpy())
    axes.grid(True, which="major")
    step_legend(axes, handles, names)
    last = frame[frame["checkpoint"] == frame["checkpoint"].max()]
    if zeros := int((last["abs_delta_loss"] == 0).sum()):
        axes.text(0.02, 0.03, f"not shown: {zeros:,} neurons with mean |Δ| = 0 (last step)", transform=axes.transAxes)


FIGURE = Figure(
    name="rank-curve",
    source="Fig. 1b",
    title="Effect of each neuron on rare tokens, by rank",
    description=(
        "Each line is one checkpoint: its neurons sorted by mean |Δ|, the size of the change in loss at rare tokens "
        "when the neuron is replaced by its mean. Both axes are logarithmic, so a power law would be a straight line. "
        "The heavy line is the last checkpoint; its band is one standard error to each side, clustered by context."
    ),
    frame=frame,
    draw=draw,
)
