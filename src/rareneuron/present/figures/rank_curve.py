"""Every neuron's mean |Δ| by rank, one line a checkpoint (Fig. 1b over the steps of Fig. 1a).

In log-log axes a power law (Eq. 1) is a straight line; whether a piece of the curve is one isn't for the eye to
say. Zeros have no logarithm: they stay in the frame, and the figure says how many it leaves out.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.style import Theme
from rareneuron.present.wording import short_number, step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.figure

MOST_POINTS = 400  # a line, evenly in log rank: more would fall on the same dots
MOST_LABELS = 12
BARE_DECADES = 2.0  # over fewer decades, ticks at powers of ten alone leave an axis nearly bare


def frame(run: Run) -> pd.DataFrame:
    """One row per checkpoint and neuron, by rank: checkpoint (from 0), step, neuron, rank, mean |Δ| and its error."""
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
    """Lines in step order, the last one heavy and with a band of one standard error."""
    axes = sheet.add_subplot()
    axes.set_title(FIGURE.title)
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("mean |Δ| at rare tokens (nats per token)")
    lines = [thinned(part[part["abs_delta_loss"] > 0]) for _, part in frame.groupby("checkpoint", sort=True)]
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


def step_legend(axes: "matplotlib.axes.Axes", handles: list["matplotlib.artist.Artist"], names: list[str]) -> None:
    """Beside the axes, the last step at the top."""
    shown = labelled(len(handles))
    axes.legend(
        handles=[handles[i] for i in reversed(shown)],
        labels=[names[i] for i in reversed(shown)],
        title="step",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        alignment="left",
        handlelength=1.4,
    )


def thinned(line: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_POINTS` rows, evenly in log rank, with the first and the last."""
    if len(line) <= MOST_POINTS:
        return line
    kept = np.unique(np.geomspace(1, len(line), MOST_POINTS).round().astype(int)) - 1
    return line.iloc[kept]


def band(axes: "matplotlib.axes.Axes", line: pd.DataFrame, colour: tuple[float, float, float, float]) -> None:
    """One standard error to both sides; where it reaches zero, which no log axis has, a decade down."""
    value, error = line["abs_delta_loss"].to_numpy(), line["abs_delta_loss_se"].to_numpy()
    low = np.where(value > error, value - error, value / 10)
    axes.fill_between(line["rank"], low, value + error, color=colour, alpha=0.22, linewidth=0)


def log_axes(axes: "matplotlib.axes.Axes", values: np.ndarray) -> None:
    """Log-log, with ticks that carry numbers however few decades the values span."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if len(values) == 0:
        axes.text(0.5, 0.5, "every neuron's mean |Δ| is zero", transform=axes.transAxes, ha="center")
        return
    log_ranks(axes)
    axes.set_yscale("log")
    axes.set_ylim(values.min() / 1.3, values.max() * 1.4)
    bare = np.log10(values.max() / values.min()) < BARE_DECADES
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if bare else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ranks(axes: "matplotlib.axes.Axes") -> None:
    """A log axis of ranks, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def labelled(n: int) -> list[int]:
    """Which of `n` lines the legend names: all, or first and last and evenly between."""
    return sorted(set(np.linspace(0, n - 1, min(n, MOST_LABELS)).round().astype(int).tolist()))


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
