"""How the largest neurons act: the share of mean |Δ| that goes through the norm, along frequency, and neither way.

Shares needn't add up to 1: each is what goes, or stays, when one mechanism is taken out of the change of the logits,
and mechanisms may work against each other.
"""

from typing import TYPE_CHECKING

import pandas as pd

from rareneuron.conclude.mechanism import NOT_MEASURED, mechanisms
from rareneuron.errors import NotMeasured
from rareneuron.present.figure import Figure
from rareneuron.present.ink import SMALL
from rareneuron.present.style import Theme
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.figure

LARGEST = 15  # neurons
LABELS = {"norm_share": "through the norm", "frequency_share": "along frequency", "words_share": "neither way"}
OFFSET = 0.24  # rows between the marks of one neuron
LEAST, MOST = -0.5, 1.5  # of the axis, but for a share beyond


def frame(run: Run) -> pd.DataFrame:
    """Return one row per neuron and mechanism: share, both ends, and the layer's median."""
    try:
        table = mechanisms(run)
    except NotMeasured as reason:
        return pd.DataFrame({"share": [float("nan")], "reason": [str(reason)]})
    parts = []
    for name, label in LABELS.items():
        if name not in table:
            continue
        top = table.head(LARGEST)
        parts.append(
            pd.DataFrame(
                {
                    "neuron": top["neuron"],
                    "place": range(len(top)),
                    "mechanism": label,
                    "share": top[name],
                    "low": top[f"{name}_low"],
                    "high": top[f"{name}_high"],
                    "median": table[name].median(),
                    "kind": top["kind"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True).assign(reason=NOT_MEASURED)


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw a row for each neuron, the largest on top, and the layer's medians as dashed lines."""
    axes = sheet.subplots()
    sheet.set_size_inches(5.4, 5.0)
    found = [name for name in LABELS.values() if name in set(frame["mechanism"])]
    colours = dict(zip(found, theme.ordered(len(found)), strict=True))
    for k, name in enumerate(found):
        rows = frame[frame["mechanism"] == name]
        y = rows["place"] + (k - (len(found) - 1) / 2) * OFFSET
        axes.axvline(rows["median"].iloc[0], color=colours[name], linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.8)
        axes.hlines(y, rows["low"], rows["high"], color=colours[name], linewidth=1.2)
        axes.plot(rows["share"], y, "o", color=colours[name], markersize=4, label=name)
    names = frame[frame["mechanism"] == found[0]]
    labels = [f"{row.neuron} {row.kind}".strip() for row in names.itertuples()]
    axes.set_yticks(names["place"], labels, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(max(LEAST, frame["low"].min() - 0.05), min(MOST, frame["high"].max() + 0.05))
    axes.axvline(0, color=theme.ink, linewidth=0.6)
    axes.set_xlabel("share of mean |Δ| at rare targets (dashed: the layer's median)")
    axes.set_title(FIGURE.title, pad=24)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(found), frameon=False, fontsize=SMALL, borderaxespad=0.2
    )


FIGURE = Figure(
    name="mechanism",
    source="beyond the paper",
    title="How the largest neurons act",
    description=(
        "The neurons with the largest mean |Δ|, from top to bottom, and what of it goes through the final norm's scale "
        "(the direct effect lacks it), what goes along the direction of token frequency in the logits, and what goes "
        "neither way, with 95 % intervals over contexts. Shares needn't add up to 1. Dashed: the median neuron of the "
        "layer."
    ),
    frame=frame,
    draw=draw,
    needs="share",
    optional=True,
)
