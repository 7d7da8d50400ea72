"""How mean |Δ| is distributed over a layer's neurons, one ridge a checkpoint (Fig. 1a, on a log axis).

On the paper's linear axis nearly all neurons share the first bin. Densities are per decade and by a Gaussian kernel of
Scott's width, so areas are equal and heights compare. Zeros have no logarithm: the figure counts them.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from rareneuron.maths.nulls import FAMILIES
from rareneuron.present.figure import Figure
from rareneuron.present.figures.rank_curve import labelled
from rareneuron.present.figures.verdict import NO_EFFECT, SMALL, draw_nulls, null_bands, null_samples, words_only
from rareneuron.present.style import Theme
from rareneuron.present.wording import short_number, step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.figure

N_POINTS = 200  # a ridge
N_NULLS = 80  # samples of each null, whose densities are as smooth as the ridge
REACH = 3.0  # kernel widths beyond the extreme neurons, where a ridge has come down
NARROWEST = 0.02  # decades: the kernel of effects that are all the same
OVERLAP = 2.5  # height of the tallest ridge, in distances between ridges


def frame(run: Run) -> pd.DataFrame:
    """One row per checkpoint and point of a common grid; of many checkpoints those that a legend would name.

    A checkpoint's median of log10 mean |Δ| and its number of zeros stand on each of its rows.
    """
    steps = run.steps or [None]
    chosen = labelled(len(steps))
    effects = [run.effects(steps[i])["abs_delta_loss"].to_numpy().astype(np.float64) for i in chosen]
    logs = [np.log10(value[value > 0]) for value in effects]
    if not any(map(len, logs)):
        return pd.DataFrame()
    margin = REACH * max(width(x) for x in logs if len(x))
    grid = np.linspace(np.concatenate(logs).min() - margin, np.concatenate(logs).max() + margin, N_POINTS)
    parts = [
        pd.DataFrame({"log10_abs_delta_loss": grid, "density": density(x, grid) if len(x) else np.nan}).assign(
            checkpoint=i,
            step=step_name(steps[i]),
            median=np.median(x) if len(x) else np.nan,
            n_zero=len(value) - len(x),
        )
        for i, x, value in zip(chosen, logs, effects, strict=True)
    ]
    if len(logs[-1]):
        nulls = {
            family: np.stack([density(sample / np.log(10), grid) for sample in samples[:N_NULLS]])
            for family in FAMILIES
            for samples in [null_samples(np.log(10) * logs[-1], family)]
        }
        parts[-1] = parts[-1].assign(**null_bands(nulls))
    return pd.concat(parts, ignore_index=True)


def width(x: Float[np.ndarray, " neuron"]) -> float:
    """Scott's: one spread over the fifth root of the number."""
    return max(float(x.std()) * len(x) ** -0.2, NARROWEST)


def density(x: Float[np.ndarray, " neuron"], grid: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """Of neurons per decade, as a share of all that have an effect."""
    z = (grid[:, None] - x) / width(x)
    return np.exp(-z * z / 2).mean(1) / (width(x) * np.sqrt(2 * np.pi))


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Ridges in step order from the bottom, each before the one above; a tick stands at the median."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes = sheet.add_subplot()
    if frame.empty:
        words_only(axes, FIGURE.title, NO_EFFECT)
        return
    axes.set_title(FIGURE.title)
    axes.set_xlabel("mean |Δ| at rare tokens (nats per token)")
    axes.set_ylabel("step")
    ridges = [part for _, part in frame.groupby("checkpoint", sort=True)]
    height = OVERLAP / frame["density"].max()
    for i, (ridge, colour) in enumerate(zip(ridges, theme.ordered(len(ridges)), strict=True)):
        x, top = ridge["log10_abs_delta_loss"].to_numpy(), i + height * ridge["density"].to_numpy()
        axes.fill_between(x, i, top, color=theme.paper, alpha=0.8, linewidth=0, zorder=-i)
        axes.fill_between(x, i, top, color=colour, alpha=0.45, linewidth=0, zorder=-i)
        axes.plot(x, top, color=colour, linewidth=1.1, zorder=-i)
        if i == len(ridges) - 1 and f"{next(iter(FAMILIES))} low" in ridge:
            columns = [name for name in ridge if str(name).split(" ")[0] in FAMILIES]
            lifted = (i + height * ridge[columns]).assign(rank=x)
            draw_nulls(axes, lifted, theme)
            axes.legend(loc="upper left", frameon=False, fontsize=SMALL, ncols=len(FAMILIES))
        median = ridge["median"].iloc[0]
        axes.vlines(median, i, np.interp(median, x, top), color=theme.ink, linewidth=1.4, zorder=-i)
    axes.set_xlim(frame["log10_abs_delta_loss"].min(), frame["log10_abs_delta_loss"].max())
    axes.set_ylim(bottom=-0.1, top=axes.get_ylim()[1] + 0.7)  # room for the legend
    axes.set_yticks(range(len(ridges)), [ridge["step"].iloc[0] for ridge in ridges])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(10.0**value)))
    if zeros := int(ridges[-1]["n_zero"].iloc[0]):
        axes.text(0.02, 0.97, f"not shown: {zeros:,} neurons with mean |Δ| = 0 (last step)", transform=axes.transAxes)


FIGURE = Figure(
    name="effect-distribution",
    source="Fig. 1a",
    title="Distribution of effects over neurons",
    description=(
        "The share of neurons per decade of mean |Δ|, one ridge a checkpoint, all on one scale and smoothed; the tick "
        "is the median neuron. The axis is logarithmic: on a linear one nearly every neuron would stand at zero. "
        "Training moves ridges to the right where neurons come to matter more, and stretches their right tails where "
        "few of them do. Grey, behind the last: 95 % of samples of as many neurons from three distributions fitted to "
        "it, and their medians."
    ),
    frame=frame,
    draw=draw,
)
