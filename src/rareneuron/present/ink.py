"""What figures share: nulls behind a curve, axes of ranks, a legend of steps, words where there is no ink.

The eye sees three phases in almost any sorted sample, so no curve is drawn without a null or without the verdict.
"""

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from rareneuron.maths.nulls import fitted_samples
from rareneuron.maths.phases import INTERVAL
from rareneuron.present.style import Colour, Theme
from rareneuron.present.wording import short_number

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.axes
    import matplotlib.figure

NO_EFFECT = "Every neuron's mean |Δ| is zero: there is no curve."
N_DRAWS = 400  # of each null: its 2.5 % quantile rests on ten of them
NULL_SHADE = 0.16  # of ink on paper
NULL_STYLES = {"half-normal": (0.08, (0, (6, 2))), "exponential": (0.13, (0, (3, 2))), "lognormal": (0.2, (0, (1, 2)))}
SMALL = 8.5  # points
PER_LINE = 58  # characters of a note across the axes
MOST_POINTS = 400  # a line, evenly in log rank: more would fall on the same dots
MOST_LABELS = 12
BARE_DECADES = 2.0  # over fewer decades, ticks at powers of ten alone leave an axis nearly bare


def null_samples(y: Float[np.ndarray, " rank"]) -> dict[str, Float[np.ndarray, "draw rank"]]:
    """Return samples of every null fitted to `y`; the seed is fixed, so that a figure is always the same."""
    return fitted_samples(y, N_DRAWS, np.random.default_rng(0))


def null_bands(samples: Mapping[str, Float[np.ndarray, "draw point"]]) -> dict[str, Float[np.ndarray, " point"]]:
    """Return the columns `FAMILY low`, `FAMILY median` and `FAMILY high` for every null."""
    out: dict[str, np.ndarray] = {}
    for family, drawn in samples.items():
        low, median, high = np.quantile(drawn, (INTERVAL[0], 0.5, INTERVAL[1]), axis=0)
        out |= {f"{family} low": low, f"{family} median": median, f"{family} high": high}
    return out


def draw_nulls(axes: "matplotlib.axes.Axes", line: pd.DataFrame, theme: Theme) -> None:
    """Draw the 95 % band of each null in its own grey and its median in its own dashes."""
    for family, (shade, dashes) in NULL_STYLES.items():
        low, high = line[f"{family} low"], line[f"{family} high"]
        axes.fill_between(line["rank"], low, high, color=theme.ink, alpha=shade, linewidth=0)
        axes.plot(
            line["rank"],
            line[f"{family} median"],
            color=theme.ink,
            alpha=0.7,
            linewidth=0.9,
            linestyle=dashes,
            label=family,
        )


def write_head(axes: "matplotlib.axes.Axes", title: str, subtitle: str) -> None:
    """Write a title, a line in smaller type under it, and leave room for names of phases under that."""
    axes.set_title(title, pad=32)
    axes.annotate(subtitle, (0, 1), (0, 18), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL)


def note(axes: "matplotlib.axes.Axes", text: str) -> None:
    """Write a note at the lower left, which a falling curve leaves free."""
    axes.text(0.02, 0.03, fill(text, PER_LINE), transform=axes.transAxes, fontsize=SMALL)


def words_only(axes: "matplotlib.axes.Axes", title: str, text: str) -> None:
    """Write why there is nothing to draw, in place of the axes."""
    axes.set_title(title)
    axes.set_axis_off()
    axes.text(0, 0.9, fill(text, PER_LINE), transform=axes.transAxes, va="top")


def step_legend(axes: "matplotlib.axes.Axes", handles: list["matplotlib.artist.Artist"], names: list[str]) -> None:
    """Put the legend of steps beside the axes, with the last step at the top."""
    shown = label_places(len(handles))
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


def thin(line: pd.DataFrame) -> pd.DataFrame:
    """Return at most `MOST_POINTS` rows, evenly spaced in log rank, the first and the last among them."""
    if len(line) <= MOST_POINTS:
        return line
    kept = np.unique(np.geomspace(1, len(line), MOST_POINTS).round().astype(int)) - 1
    return line.iloc[kept]


def band(axes: "matplotlib.axes.Axes", line: pd.DataFrame, colour: Colour) -> None:
    """Shade one standard error to both sides; where it reaches zero, which no log axis has, a decade down."""
    value, error = line["abs_delta_loss"].to_numpy(), line["abs_delta_loss_se"].to_numpy()
    low = np.where(value > error, value - error, value / 10)
    axes.fill_between(line["rank"], low, value + error, color=colour, alpha=0.22, linewidth=0)


def log_axes(axes: "matplotlib.axes.Axes", values: np.ndarray) -> None:
    """Make both axes logarithmic, with numbered ticks however few decades the values span."""
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
    """Make the horizontal axis logarithmic, with ranks as plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_minor_ticks(sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw the unnumbered ticks of each log axis as one line, since matplotlib takes long over an object for each."""
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.markers import TICKDOWN, TICKLEFT
    from matplotlib.ticker import NullLocator

    axises = []
    for axes in sheet.axes:
        if axes.axison and axes.get_visible():
            axises.append((axes.xaxis, axes.get_xaxis_transform(), TICKDOWN))
            axises.append((axes.yaxis, axes.get_yaxis_transform(), TICKLEFT))
    found = [(axis.get_minorticklocs(), *axis.get_view_interval()) for axis, _, _ in axises]
    for (axis, across, marker), (places, *limits) in zip(axises, found, strict=True):
        axis.set_minor_locator(NullLocator())  # after all were found, as panels share theirs
        seen = places[(min(limits) <= places) & (places <= max(limits))]
        if len(seen) == 0:
            continue
        at = (seen, [0] * len(seen)) if marker == TICKDOWN else ([0] * len(seen), seen)
        name = axis.axis_name
        look = {
            "markersize": matplotlib.rcParams[f"{name}tick.minor.size"],
            "markeredgewidth": matplotlib.rcParams[f"{name}tick.minor.width"],
        }
        ticks = Line2D(*at, marker=marker, linestyle="", color=theme.ink, transform=across, **look)
        ticks.set_in_layout(False)
        sheet.add_artist(ticks, clip=False)


def label_places(n: int) -> list[int]:
    """Return which of `n` lines the legend names: all, or the first, the last and some evenly between."""
    return sorted(set(np.linspace(0, n - 1, min(n, MOST_LABELS)).round().astype(int).tolist()))
