"""Eigenvalues of both groups' weights by rank, against random groups and the Marchenko–Pastur edge (App. 5.3.3).

In log-log axes a power-law tail is straight, with slope −1/α. Each spectrum is divided by its mean, as Eq. 6 ignores
scale and groups differ in it; then one edge, (1 + √(n/d))², serves all. Eigenvalues are the run's, of the last step.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rareneuron.present.figure import Figure
from rareneuron.present.figures.alpha_hill import ROLES, named
from rareneuron.present.figures.verdict import SMALL, checkpoint_name, headed, words_only
from rareneuron.present.style import Theme
from rareneuron.present.tables import part_record, rows_or_reason
from rareneuron.present.wording import significant
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

PANEL = 2.4  # inches of height


def frame(run: Run) -> pd.DataFrame:
    """One row per matrix, group and rank of the last checkpoint: eigenvalue over the mean of its spectrum.

    `random` is the mean over draws, rank by rank; `low` and `high` hold 95 % of them, at rank 1 alone where a run
    keeps no more. `edge` is Marchenko–Pastur's; α and k are those of the group. Without a spectrum one row says why.
    """
    run.effects()  # without any checkpoint, says what to do
    rows = rows_or_reason(run, "spectrum", None)
    if isinstance(rows, str):
        return pd.DataFrame([{"reason": rows}])
    record = part_record(run, "spectrum", None)
    parts = []
    for matrix, spectra in record["eigenvalues"].items():
        of_matrix = rows[rows["matrix"] == matrix].drop_duplicates(["statistic", "group", "null"])
        for group in (*ROLES, "random"):
            eigenvalues, edge = np.array(spectra[group]), record["edges"][f"{matrix} {group}"]
            mean = eigenvalues.mean()
            facts = of_matrix[of_matrix["group"] == group].drop_duplicates("statistic").set_index("statistic")["value"]
            part = pd.DataFrame({"rank": np.arange(1, len(eigenvalues) + 1), "eigenvalue": eigenvalues / mean})
            low, high = np.full((2, len(eigenvalues)), np.nan)
            if group == "random":
                low, high = bounds(spectra, of_matrix, low, high)
            parts.append(
                part.assign(
                    matrix=matrix,
                    group=group,
                    low=low / mean,
                    high=high / mean,
                    edge=edge / mean,
                    alpha_hill=facts["alpha_hill"],
                    n_tail=facts["n_tail"],
                )
            )
    name = checkpoint_name(run.steps[-1])
    return pd.concat(parts, ignore_index=True).assign(k=record["k"], checkpoint=name, reason="")


def bounds(
    spectra: dict[str, list[float]], rows: pd.DataFrame, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """95 % of random groups at each rank; of runs that keep only those of the largest eigenvalue, at rank 1."""
    if "random low" in spectra:
        return np.array(spectra["random low"]), np.array(spectra["random high"])
    largest = rows[(rows["statistic"] == "largest_eigenvalue") & (rows["null"] == "uniform")].iloc[0]
    low[0], high[0] = largest["null_low"], largest["null_high"]
    return low, high


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """A panel a matrix: random groups in grey, both groups over them, the edge as dots."""
    if frame["reason"].iloc[0]:
        words_only(sheet.add_subplot(), FIGURE.title, frame["reason"].iloc[0])
        return
    matrices = list(dict.fromkeys(frame["matrix"]))
    sheet.set_size_inches(sheet.get_figwidth(), len(matrices) * PANEL + 1.1)
    panels = sheet.subplots(len(matrices), 1, sharex=True, squeeze=False)[:, 0]
    for axes, matrix in zip(panels, matrices, strict=True):
        draw_panel(axes, frame[frame["matrix"] == matrix], theme)
    facts = frame.iloc[0]
    headed(panels[0], FIGURE.title, f"{facts['checkpoint']}; k of Eq. 6 by {facts['k']}, marked by a bar")
    panels[-1].set_xlabel("rank of the eigenvalue (1 = largest)")
    sheet.supylabel("eigenvalue over the mean of its spectrum", fontsize=9.5)


def draw_panel(axes: "matplotlib.axes.Axes", panel: pd.DataFrame, theme: Theme) -> None:
    """One matrix, in log-log axes; eigenvalues of 0 have no place there."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    panel = panel[panel["eigenvalue"] > 0]
    null = panel[panel["group"] == "random"]
    axes.axhline(
        null["edge"].iloc[0], color=theme.ink, linewidth=1, linestyle=(0, (1, 2)), label="Marchenko–Pastur edge"
    )
    axes.fill_between(null["rank"], null["low"], null["high"], color=theme.ink, alpha=0.16, linewidth=0)
    if null["low"].notna().sum() == 1:  # a band of one rank is a bar
        axes.vlines(1, null["low"].iloc[0], null["high"].iloc[0], color=theme.ink, alpha=0.35, linewidth=6)
    axes.plot(null["rank"], null["eigenvalue"], color=theme.ink, alpha=0.7, linewidth=1.4, label=told(null))
    suppressing, boosting = theme.ordered(2)
    for (group, marker), colour in zip(ROLES.items(), (boosting, suppressing), strict=True):
        line = panel[panel["group"] == group]
        last = line[line["rank"] == line["n_tail"]]
        axes.plot(last["rank"], last["eigenvalue"], "|", color=colour, markersize=20, markeredgewidth=1.6)
        face = colour if group == "boosting" else "none"  # so that points under it are seen
        axes.plot(
            line["rank"],
            line["eigenvalue"],
            marker,
            color=colour,
            markerfacecolor=face,
            markersize=3.8,
            label=told(line),
        )
    axes.grid(True, which="major")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
    named(axes, panel["matrix"].iloc[0])
    axes.legend(loc="lower left", frameon=False, fontsize=SMALL, reverse=True)


def told(line: pd.DataFrame) -> str:
    """A group with its exponent and the size of the tail behind it."""
    facts = line.iloc[0]
    name = "random groups, mean" if facts["group"] == "random" else facts["group"]
    return f"{name}: α {significant(facts['alpha_hill'])}, k {facts['n_tail']:.0f}"


FIGURE = Figure(
    name="spectrum",
    source="App. 5.3.3",
    title="Weight spectrum of groups and random ones",
    description=(
        "Eigenvalues of Ξ for both groups by rank, largest first, over the mean of their spectrum, one panel a matrix; "
        "both axes are logarithmic. Grey: random groups, their mean at each rank and where 95 % of them lie. Dots: "
        "where the spectrum of equal, random rows ends (Marchenko–Pastur); what lies above isn't noise of that kind. "
        "α is Eq. 6 over the k largest, a bar marks the k-th; a heavier tail falls more steeply, with a lower α."
    ),
    frame=frame,
    draw=draw,
)
