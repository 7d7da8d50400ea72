"""The last step's rank curve with plateau, power law and decay, and what layers without any would show (Fig. 1b).

The subtitle says what the nulls of docs/phases.md decided. Where phases can't be told, the curve and the nulls are
drawn all the same, and the reason is written beside them.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import Phases
from rareneuron.present.figure import Figure
from rareneuron.present.figures.rank_curve import log_axes, thinned
from rareneuron.present.figures.verdict import (
    NO_EFFECT,
    NULL_SHADE,
    SMALL,
    checkpoint_name,
    draw_nulls,
    headed,
    note,
    null_bands,
    null_samples,
    phases_or_reason,
    verdict,
    words_only,
)
from rareneuron.present.style import Theme
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

BOUNDED = ("kappa", "plateau_end", "decay_start")
HAIR = 1.001  # an interval of no width is still seen


def frame(run: Run) -> pd.DataFrame:
    """One row per rank with an effect; outcome, line and boundaries, found once, stand on every row.

    `lognormal low`, `median`, `high` and so on are of sorted samples of that null, fitted to the curve. Without phases
    `line` is missing and `reason` says why.
    """
    curve = run.rank_curve()
    n = curve.n_positive
    if n == 0:
        return pd.DataFrame()
    value, rank = curve.value[:n].astype(np.float64), curve.rank[:n]
    nulls = null_bands({family: np.exp(null_samples(np.log(value), family)) for family in FAMILIES})
    columns = {"rank": rank, "abs_delta_loss": value} | nulls
    table = pd.DataFrame(columns).assign(checkpoint=checkpoint_name(run.steps[-1]))
    found = phases_or_reason(run)
    if not isinstance(found, Phases):
        return table.assign(line=np.nan, reason=found)
    intervals = {name: found.intervals.get(name, (np.nan, np.nan)) for name in BOUNDED}
    return table.assign(
        line=np.exp(found.beta - found.kappa * np.log(rank)),
        reason="",
        verdict=verdict(found),
        r_squared=found.r_squared,
        fit_first=found.fit_first,
        fit_last=found.fit_last,
        **{name: np.nan if getattr(found, name) is None else getattr(found, name) for name in BOUNDED},
        **{f"{name}_low": low for name, (low, _) in intervals.items()},
        **{f"{name}_high": high for name, (_, high) in intervals.items()},
    )


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """The nulls lowest, the curve above them, the line on top: solid where it was fitted."""
    axes = sheet.add_subplot()
    if frame.empty:
        words_only(axes, FIGURE.title, NO_EFFECT)
        return
    line, facts = thinned(frame), frame.iloc[0]
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("mean |Δ| at rare tokens (nats per token)")
    values = line[["abs_delta_loss", "line", "lognormal low", "lognormal high"]].to_numpy()
    log_axes(axes, values[np.isfinite(values)])
    draw_nulls(axes, line, theme)
    axes.plot(line["rank"], line["abs_delta_loss"], color=theme.ordered(1)[0], linewidth=2.2, label="neurons")
    if facts["reason"]:
        headed(axes, FIGURE.title, f"{facts['checkpoint']}: can't be told")
        note(axes, facts["reason"])
        axes.legend(loc="upper right", frameon=False, fontsize=SMALL, reverse=True)
        return
    headed(axes, FIGURE.title, f"{facts['checkpoint']}: {facts['verdict']}")
    draw_line(axes, line, theme)
    draw_boundaries(axes, facts, theme)
    axes.legend(loc="lower left", framealpha=0.85, edgecolor="none", fontsize=SMALL, reverse=True)


def draw_line(axes: "matplotlib.axes.Axes", line: pd.DataFrame, theme: Theme) -> None:
    """The power law: solid over the ranks of its fit, dashed where it's continued."""
    facts, colour = line.iloc[0], theme.ordered(3)[1]
    interval = f" ({facts['kappa_low']:.3f} … {facts['kappa_high']:.3f})" if np.isfinite(facts["kappa_low"]) else ""
    fitted = line[line["rank"].between(facts["fit_first"], facts["fit_last"])]
    axes.plot(line["rank"], line["line"], color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.plot(
        fitted["rank"],
        fitted["line"],
        color=colour,
        linewidth=1.6,
        label=f"line, κ = {facts['kappa']:.3f}{interval}, R² = {facts['r_squared']:.3f}",
    )


def draw_boundaries(axes: "matplotlib.axes.Axes", facts: pd.Series, theme: Theme) -> None:
    """Where plateau and decay were found: a thin line each, its interval shaded, and the phases' names above."""
    low, high = 1.0, float(axes.dataLim.x1)
    for name in ("plateau_end", "decay_start"):
        if np.isfinite(facts[name]):
            axes.axvline(facts[name], color=theme.ink, linewidth=0.8)
            if np.isfinite(facts[f"{name}_low"]):
                ends = facts[f"{name}_low"] / HAIR, facts[f"{name}_high"] * HAIR
                axes.axvspan(*ends, color=theme.ink, alpha=NULL_SHADE, linewidth=0)
    if facts["verdict"].startswith("no power law"):
        return
    first, last = np.fmax(low, facts["plateau_end"]), np.fmin(high, facts["decay_start"])
    for name, left, right in (("plateau", low, first), ("power law", first, last), ("decay", last, high)):
        if left < right:
            middle, across = (np.sqrt(left * right), 1), axes.get_xaxis_transform()
            axes.annotate(
                name, middle, (0, 3), xycoords=across, textcoords="offset points", ha="center", fontsize=SMALL
            )


FIGURE = Figure(
    name="phases",
    source="Fig. 1b",
    title="Plateau, power law and decay",
    description=(
        "Neurons of the last checkpoint by mean |Δ|, the power law fitted to the middle (solid over its range, dashed "
        "beyond), and in grey what as many neurons of three distributions without phases would show, fitted by the "
        "mean of log |Δ|, the lognormal by its spread too: medians, and 95 % of samples at each rank. Vertical lines "
        "are the boundaries that were found, with 95 % intervals over contexts. The eye sees three phases in most "
        "sorted samples; the line under the title says what the tests against half-normal, exponential, lognormal and "
        "straight curves decided. They compare shapes, whatever mean and spread, so a curve may leave a grey band and "
        "still be as straight as that null's."
    ),
    frame=frame,
    draw=draw,
)
