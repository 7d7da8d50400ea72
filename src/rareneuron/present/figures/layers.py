"""The map of all layers: mean |Δ| by rank within each layer, and each layer's share over training.

Cells hold the geometric mean of the neurons of a bin of ranks. A share is a layer's part of Σ |Δ| over all neurons that
were looked at, at rare targets.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.conclude.layers import layer_profile
from rareneuron.errors import NotMeasured
from rareneuron.present.figure import Figure
from rareneuron.present.ink import SMALL, step_legend
from rareneuron.present.style import Theme
from rareneuron.present.wording import step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.colors
    import matplotlib.figure

BINS = 24  # of log rank
MOST_TICKS = 12  # layers named on an axis


def frame(run: Run) -> pd.DataFrame:
    """Return cells of the last checkpoint's map (`part` "map") and each checkpoint's shares (`part` "share")."""
    try:
        table = run.layers()
    except NotMeasured as reason:
        return pd.DataFrame({"part": ["map"], "value": [np.nan], "reason": [str(reason)]})
    if not (table["kind"] == "neuron").any():
        return pd.DataFrame({"part": ["map"], "value": [np.nan], "reason": ["The study looked at heads alone."]})
    parts = [cells(table[table["kind"] == "neuron"])]
    for checkpoint, step in enumerate(run.steps):
        profile = layer_profile(run, step)
        parts.append(
            pd.DataFrame(
                {
                    "part": "share",
                    "layer": profile["layer"],
                    "value": profile["share"],
                    "low": profile["share_low"],
                    "high": profile["share_high"],
                    "checkpoint": checkpoint,
                    "step": step_name(step),
                }
            )
        )
    return pd.concat(parts, ignore_index=True).assign(reason="")


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of |Δ| in bins of log rank within each layer."""
    rank = table.groupby("layer")["abs_delta_loss"].rank(ascending=False, method="first")
    edges = np.unique(np.geomspace(1, rank.max() + 1, BINS + 1).round())
    which = np.digitize(rank, edges)
    found = table.assign(bin=which).groupby(["layer", "bin"])["abs_delta_loss"]
    value = found.agg(lambda of: float(np.exp(np.log(of.clip(lower=1e-12)).mean()))).reset_index(name="value")
    left, right = edges[value["bin"] - 1], edges[np.minimum(value["bin"], len(edges) - 1)]
    return value.assign(part="map", first=left, last=right).drop(columns="bin")


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw the map on the left and shares on the right."""
    left, right = sheet.subplots(1, 2, gridspec_kw={"width_ratios": [1.3, 1]})
    left.set_title(FIGURE.title)
    draw_map(left, frame[frame["part"] == "map"], sheet, theme)
    draw_shares(right, frame[frame["part"] == "share"], theme)


def draw_map(
    axes: "matplotlib.axes.Axes", cells: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme
) -> None:
    """Draw one row of cells for each layer, the last on top."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    layers = sorted(cells["layer"].unique().astype(int).tolist())
    row = {layer: i for i, layer in enumerate(layers)}
    values = cells["value"].clip(lower=cells["value"].max() / 1e4)
    norm, colours = LogNorm(values.min(), values.max()), colour_map(theme)
    axes.barh(
        cells["layer"].map(row),
        cells["last"] - cells["first"],
        left=cells["first"],
        height=1.0,
        color=colours(norm(values)),
        edgecolor=colours(norm(values)),
        linewidth=0.4,
    )
    axes.set_xscale("log")
    axes.set_xlim(1, cells["last"].max())
    axes.set_ylim(-0.5, len(layers) - 0.5)
    name_layers(axes.yaxis, layers)
    axes.set_ylabel("layer")
    axes.set_xlabel("rank of the neuron within its layer")
    bar = sheet.colorbar(ScalarMappable(norm, colours), ax=axes, location="bottom", aspect=40, pad=0.02)
    bar.set_label("mean |Δ| at rare targets, nats", fontsize=SMALL)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)


def colour_map(theme: Theme) -> "matplotlib.colors.ListedColormap":
    """Return the ordered colours of a theme as a map, small effects first."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(theme.ordered(64))


def name_layers(axis: "matplotlib.axis.Axis", layers: list[int]) -> None:
    """Name some of the layers, the first and the last among them."""
    shown = np.unique(np.linspace(0, len(layers) - 1, min(MOST_TICKS, len(layers))).round().astype(int))
    axis.set_ticks(shown, [str(layers[i]) for i in shown])


def draw_shares(axes: "matplotlib.axes.Axes", frame: pd.DataFrame, theme: Theme) -> None:
    """Draw each checkpoint's shares over layers, the last one heavy and with its band over contexts."""
    lines = [part for _, part in frame.groupby("checkpoint", sort=True)]
    layers = lines[-1]["layer"].astype(int).tolist()
    x = np.arange(len(layers))
    handles: list[matplotlib.artist.Artist] = []
    for i, (line, colour) in enumerate(zip(lines, theme.ordered(len(lines)), strict=True)):
        is_last = i == len(lines) - 1
        if is_last and line["low"].notna().all():
            axes.fill_between(x, line["low"], line["high"], color=colour, alpha=0.22, linewidth=0)
        handles += axes.plot(
            x, line["value"], color=colour, linewidth=2.2 if is_last else 1.1, marker="o", markersize=3
        )
    axes.axhline(1 / len(layers), color=theme.ink, linewidth=0.8, linestyle=":")
    name_layers(axes.xaxis, layers)
    axes.set_ylim(0, None)
    axes.set_xlabel("layer")
    axes.set_ylabel("share of Σ |Δ| at rare targets")
    if len(lines) > 1:
        step_legend(axes, handles, [line["step"].iloc[0] for line in lines])


FIGURE = Figure(
    name="layers",
    source="limitations",
    title="Every layer's neurons",
    description=(
        "Left: mean |Δ| at rare targets of the neurons of each layer at the last checkpoint, by their rank in the "
        "layer, as the geometric mean over bins of ranks; all layers share one scale of colours. Right: each layer's "
        "share of the sum over all these neurons, one line a checkpoint, the last heavy with a band of 95 % over "
        "contexts; dotted is an equal share. Neurons are replaced one at a time, so effects don't add up: a share says "
        "how layers compare."
    ),
    frame=frame,
    draw=draw,
    needs="value",
    optional=True,
)
