"""δ(r), by how much log|Δ| leaves the power law fitted to the middle, one line a checkpoint (Fig. 3b; Eq. 8).

A plateau is where δ > 0 at the left, beyond what contexts vary: the last line's band. The decay at the right falls far
below; the axis is cut so that the plateau can be seen, and the figure says where it goes.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import Phases
from rareneuron.maths.spacings import Spacings
from rareneuron.present.figure import Figure
from rareneuron.present.ink import (
    SMALL,
    draw_nulls,
    log_ranks,
    note,
    null_bands,
    null_samples,
    step_legend,
    thin,
    write_head,
)
from rareneuron.present.readable import phases_or_reason, verdict
from rareneuron.present.style import Theme
from rareneuron.present.wording import checkpoint_name, significant, step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.artist
    import matplotlib.figure

SHALLOWEST = 0.7  # the axis reaches up so far at least: a factor 2
DEEPEST = 2.0  # times its top: how far down it goes


def frame(run: Run) -> pd.DataFrame:
    """Return one row per checkpoint and rank; a checkpoint without phases has one row, with a `reason`."""
    return pd.concat(
        [deviations(run, checkpoint, step) for checkpoint, step in enumerate(run.steps or [None])], ignore_index=True
    )


def deviations(run: Run, checkpoint: int, step: int | None) -> pd.DataFrame:
    """Return one checkpoint's δ and its band over contexts."""
    run.effects(step)  # without any checkpoint, says what to do
    found = phases_or_reason(run, step)
    facts: dict[str, Any] = {"checkpoint": checkpoint, "step": step_name(step), "name": checkpoint_name(step)}
    if not isinstance(found, Phases):
        row = {"rank": np.nan, "deviation": np.nan, "low": np.nan, "high": np.nan}
        return pd.DataFrame([facts | row | {"verdict": "can't be told", "reason": found}])
    low, high = (np.nan, np.nan) if found.band is None else found.band
    rank = np.arange(1.0, len(found.deviation) + 1)
    table = pd.DataFrame({"rank": rank, "deviation": found.deviation, "low": low, "high": high})
    if step == run.steps[-1]:
        table = table.assign(**null_deviations(run, found))
    return table.assign(**facts, verdict=verdict(found), reason="")


def null_deviations(run: Run, found: Phases) -> dict[str, np.ndarray]:
    """Return the bands of δ of samples without phases, each from its own line over the ranks of the curve's fit."""
    value = run.rank_curve().value[: len(found.deviation)].astype(np.float64)
    rank = np.arange(1, len(value) + 1)

    def leaving(sample: np.ndarray) -> np.ndarray:
        return np.asarray(sample - Spacings(sample).line(found.fit_first, found.fit_last).at(rank))

    samples = null_samples(np.log(value))
    return null_bands({family: np.stack([leaving(one) for one in drawn]) for family, drawn in samples.items()})


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw lines in step order, the last one heavy and with its band."""
    axes = sheet.add_subplot()
    shown = frame[frame["reason"] == ""]
    last = frame[frame["checkpoint"] == frame["checkpoint"].max()]
    write_head(axes, FIGURE.title, f"{last['name'].iloc[0]}: {last['verdict'].iloc[0]}")
    axes.set_xlabel("rank of the neuron (1 = largest mean |Δ|)")
    axes.set_ylabel("deviation δ = log (mean |Δ| / power law)")
    log_ranks(axes)
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    handles: list[matplotlib.artist.Artist] = []
    lines = [thin(part) for _, part in shown.groupby("checkpoint", sort=True)]
    for i, (line, colour) in enumerate(zip(lines, theme.ordered(len(lines)), strict=True)):
        is_last = i == len(lines) - 1
        if is_last:
            if f"{next(iter(FAMILIES))} low" in line:
                draw_nulls(axes, line, theme)
                nulls = axes.legend(
                    handles=list(axes.get_lines())[-len(FAMILIES) :], loc="upper right", frameon=False, fontsize=SMALL
                )
                axes.add_artist(nulls)
            axes.fill_between(line["rank"], line["low"], line["high"], color=colour, alpha=0.22, linewidth=0)
        handles += axes.plot(line["rank"], line["deviation"], color=colour, linewidth=2.2 if is_last else 1.1)
    top = max(shown[["deviation", "high"]].max().max(), SHALLOWEST)
    bottom = max(shown["deviation"].min(), -DEEPEST * top)
    axes.set_ylim(bottom - 0.1 * top, 1.1 * top)
    step_legend(axes, handles, [line["step"].iloc[0] for line in lines])
    words = []
    if (lowest := last["deviation"].min()) < bottom:
        words.append(f"Below the axis: the last step goes down to {significant(lowest, 2)}.")
    if missing := frame.loc[frame["reason"] != "", "step"].tolist():
        words.append(f"No phases could be told at step {', '.join(missing)}.")
    note(axes, " ".join(words))


FIGURE = Figure(
    name="deviation",
    source="Fig. 3b",
    title="Deviation from the power law",
    description=(
        "By how much the log of mean |Δ| lies above (δ > 0) or below the power law fitted to the middle, one line a "
        "checkpoint; 0.7 is a factor 2. The band of the last, heavy line is 95 % over resampled contexts. A plateau "
        "needs δ > 0 at the left beyond that band. Grey: samples of three distributions without phases, each against "
        "a line over the same ranks, 95 % and medians; δ < 0 at both ends is what they show. The axis is cut below, "
        "where the last ranks fall."
    ),
    frame=frame,
    draw=draw,
    needs="deviation",
)
