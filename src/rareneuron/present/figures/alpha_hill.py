"""α_Hill of both groups less that of random groups, over checkpoints (Fig. 2b), one panel a matrix.

The paper's curve is one group less one random group, of a matrix that it doesn't name. Here the zero line is the mean
over random groups, grey holds 95 % of them, and thin lines are the means of groups matched to each. "Since" is the rule
of `conclude.trajectory.onsets`: p ≤ 5 % against both kinds, at that step and every later one.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rareneuron.conclude.trajectory import onsets
from rareneuron.maths.significance import LEVEL
from rareneuron.present.figure import Figure
from rareneuron.present.ink import SMALL, note
from rareneuron.present.readable import rows_or_reason
from rareneuron.present.style import Theme
from rareneuron.present.tables.layouts import HEADS
from rareneuron.present.wording import step_name
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

ROLES = {"boosting": "o", "suppressing": "s"}  # and how their points look
CHARACTERS = 56  # of all tick labels together, which an axis has room for
CROWDED = 20  # checkpoints; more have smaller points
PANEL = 2.0  # inches of height


def frame(run: Run) -> pd.DataFrame:
    """Return one row per checkpoint, matrix and group: α_Hill, mean and 95 % of random groups, mean of matched ones, p.

    p is the larger of those against both kinds of groups. `since` is the first step of those up to the last that all
    differ, missing where the last one doesn't. A checkpoint without a spectrum has one row, with a `reason`.
    """
    parts: list[dict[str, Any]] = []
    for checkpoint, step in enumerate(run.steps or [None]):
        run.effects(step)  # without any checkpoint, says what to do
        rows = rows_or_reason(run, "spectrum", step)
        if isinstance(rows, str):
            parts.append({"checkpoint": checkpoint, "step": step, "reason": rows})
            continue
        rows = rows[(rows["statistic"] == "alpha_hill") & rows["group"].isin(list(ROLES))]
        for (matrix, group), found in rows.groupby(["matrix", "group"], sort=False):
            by_null = found.set_index("null")
            uniform = by_null.loc["uniform"]
            matched = by_null.loc["matched", "null_mean"] if "matched" in by_null.index else np.nan
            parts.append(
                {
                    "checkpoint": checkpoint,
                    "step": step,
                    "matrix": matrix,
                    "group": group,
                    "value": uniform["value"],
                    **{name: uniform[name] for name in ("null_mean", "null_low", "null_high")},
                    "matched_mean": matched,
                    "p": found.loc[found["null"].isin(["uniform", "matched"]), "p"].max(),
                    "reason": "",
                }
            )
    names = ("value", "null_mean", "null_low", "null_high", "matched_mean", "p")
    table = pd.DataFrame(parts).reindex(columns=["checkpoint", "step", "matrix", "group", *names, "reason"])
    table = table.astype(dict.fromkeys(names, "float64"))
    return table.assign(since=since(table))


def since(table: pd.DataFrame) -> pd.Series:
    """Return, for each row, the checkpoint since which its group differs; missing where it doesn't at the last."""
    out = pd.Series(pd.NA, index=table.index, dtype="Int64")
    for _, line in table[table["reason"] == ""].groupby(["matrix", "group"]):
        places = line[["checkpoint", "value", "null_mean", "matched_mean", "p"]]
        places = places.set_axis(["step", "a", "a_null", "a_matched", "a_p"], axis=1)
        out[line.index] = onsets(places)["since"].iloc[0]
    return out


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Draw a panel for each matrix, on the same steps; filled points differ from both kinds of random groups."""
    shown = frame[frame["reason"] == ""]
    matrices = list(dict.fromkeys(shown["matrix"]))
    sheet.set_size_inches(sheet.get_figwidth(), len(matrices) * PANEL + 1.2)
    panels = sheet.subplots(len(matrices), 1, sharex=True, squeeze=False)[:, 0]
    steps = frame.drop_duplicates("checkpoint").sort_values("checkpoint")["step"]
    names = [step_name(None if pd.isna(step) else int(step)) for step in steps]
    for axes, matrix in zip(panels, matrices, strict=True):
        draw_panel(axes, shown[shown["matrix"] == matrix], names, theme)
    panels[0].set_title(FIGURE.title, pad=24)
    n_ticks = min(len(names), CHARACTERS // max(map(len, names)))
    ticks = np.unique(np.linspace(0, len(names) - 1, n_ticks).round().astype(int))
    panels[-1].set_xticks(ticks, [names[i] for i in ticks])
    panels[-1].set_xlim(-0.3, len(names) - 0.7)
    panels[-1].set_xlabel("step (checkpoints in order)")
    sheet.supylabel("α_Hill less the mean of random groups", fontsize=9.5)
    if missing := frame.loc[frame["reason"] != "", "checkpoint"].tolist():
        note(panels[-1], f"No spectrum at step {', '.join(names[i] for i in missing)}.")


def draw_panel(axes: "matplotlib.axes.Axes", panel: pd.DataFrame, names: list[str], theme: Theme) -> None:
    """Draw random groups in grey, then a line for each group, and say in the legend since when it differs."""
    from matplotlib.lines import Line2D

    axes.axhline(0, color=theme.ink, linewidth=0.9)
    null = panel.drop_duplicates("checkpoint").sort_values("checkpoint")
    band = null["null_low"] - null["null_mean"], null["null_high"] - null["null_mean"]
    if len(null) > 1:
        axes.fill_between(null["checkpoint"], *band, color=theme.ink, alpha=0.14, linewidth=0)
    else:
        axes.vlines(null["checkpoint"], *band, color=theme.ink, alpha=0.14, linewidth=24)
    size = 5.5 if len(names) <= CROWDED else 3.0
    suppressing, boosting = theme.ordered(2)
    handles = []  # lines without a place: an empty one on the axes would leave its id in the page
    for (group, marker), colour in zip(ROLES.items(), (boosting, suppressing), strict=True):
        line = panel[panel["group"] == group].sort_values("checkpoint")
        x, y = line["checkpoint"], line["value"] - line["null_mean"]
        alone: dict[str, Any] = (
            {"marker": "_", "markersize": 14} if len(null) == 1 else {}
        )  # a line of one point isn't seen
        matched = line["matched_mean"] - line["null_mean"]
        axes.plot(x, matched, color=colour, linewidth=1, linestyle=(0, (2, 2)), **alone)
        axes.plot(x, y, color=colour, linewidth=size / 3)
        handles.append(
            Line2D([], [], marker=marker, linewidth=1.8, markersize=5, color=colour, label=legend_label(line, names))
        )
        differs = (line["p"] <= LEVEL).to_numpy()
        for at, face in ((differs, colour), (~differs, theme.paper)):
            if at.any():
                axes.plot(
                    x[at], y[at], marker, color=colour, markerfacecolor=face, markersize=size, markeredgewidth=size / 4
                )
    axes.grid(True, axis="y")
    name_matrix(axes, panel["matrix"].iloc[0])
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        borderaxespad=0.2,
        columnspacing=1,
        handlelength=1,
        handletextpad=0.4,
    )


def name_matrix(axes: "matplotlib.axes.Axes", matrix: str) -> None:
    """Write a panel's matrix above its left end."""
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(matrix, (0, 1), (0, 5), **above, fontsize=SMALL, fontweight="bold")


def legend_label(line: pd.DataFrame, names: list[str]) -> str:
    """Name a group, and say since when it differs."""
    first, last = line["since"].iloc[-1], line.iloc[-1]
    name = HEADS[last["group"]]
    if pd.isna(first):
        return f"{name}: no difference"
    side = "lower" if last["value"] < last["null_mean"] else "higher"
    at = names[int(first)]
    return f"{name}: {side} {'at' if first == last['checkpoint'] else 'since'} {at}"


FIGURE = Figure(
    name="alpha-hill",
    source="Fig. 2b",
    title="α_Hill of groups against random ones",
    description=(
        "α_Hill (Eq. 6) of the weights of both groups at each checkpoint, less the mean of random groups; below zero "
        "the spectrum's tail is heavier than theirs. One panel a matrix. Grey holds 95 % of the random groups; dashes "
        "are the means of groups matched to each. A point is filled where the group differs at 5 % from random and "
        "from matched groups alike, two-sided; “since” names the first step from which all are, “no difference” says "
        "that the last isn't. Steps aren't corrected for one another."
    ),
    frame=frame,
    draw=draw,
    needs="value",
)
