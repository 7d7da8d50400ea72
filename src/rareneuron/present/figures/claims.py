"""The claims and their verdicts, one row each: effect beside its null, interval, verdict by shape and colour.

Effects have different units, so each is divided by the standard deviation of its null's draws (its `effect_size`), and
its interval with it. Verdicts are the run's (`claims.json`): nothing is decided here. What has no effect size stands as
a row without a point.
"""

from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rareneuron.errors import RunFolderError
from rareneuron.present.figure import Figure
from rareneuron.present.figures.verdict import SMALL, words_only
from rareneuron.present.style import Theme
from rareneuron.present.wording import MINUS, NOTHING, significant
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

CLAIMS = "claims.json"
NO_CLAIMS = "The run folder holds no verdicts. Run the same study again: they are added, and checkpoints kept."
VERDICTS = {"supported": "o", "not supported": "X", "inconclusive": "D"}  # and how their points look
PER_LINE = 34  # characters of a claim beside the axes
LINE = 0.145  # inches
MARK, SIDE = 0.05, 18  # how far right of the axes a verdict's mark stands (of their width), and its p (points)
LINEAR = 2.0  # null spreads; beyond, the axis is logarithmic


def claims_or_reason(run: Run) -> tuple[Any, ...] | str:
    """The run's claims; or, of one that has none which can be read, why, in words that name no folder."""
    if not (run.path / CLAIMS).is_file():
        return NO_CLAIMS
    reader: Any = run
    try:
        return tuple(reader.claims().claims)
    except RunFolderError:
        return NO_CLAIMS


def frame(run: Run) -> pd.DataFrame:
    """One row a claim, in the run's order: its record; `effect_size`, `low` and `high`, its interval, in spreads of the
    null and in the claimed direction.
    """
    run.effects()  # without any checkpoint, says what to do
    claims = claims_or_reason(run)
    if isinstance(claims, str):
        return pd.DataFrame([{"reason": claims}])
    numbers = ("value", "null_mean", "effect", "effect_low", "effect_high", "effect_size", "p", "p_holm")
    words = ("name", "title", "source", "verdict")
    table = pd.DataFrame(
        [
            {name: getattr(claim, name) for name in words}
            | {name: np.nan if (number := getattr(claim, name)) is None else float(number) for name in numbers}
            for claim in claims
        ],
        columns=[*words, *numbers],
    )
    spreads = (table["effect_size"] / table["effect"]).where(table["effect"] != 0)
    table = table.assign(low=table["effect_low"] * spreads, high=table["effect_high"] * spreads, reason="")
    lower = np.array([claims_less(claim) for claim in claims])
    turned = -table.loc[lower, ["effect_size", "high", "low"]].to_numpy()
    table.loc[lower, ["effect_size", "low", "high"]] = turned
    return table


def claims_less(claim: Any) -> bool:
    """Whether the claim is that the statistic lies below its null: its tests count effects in the claimed direction."""
    kept = [test for test in claim.tests if test.value == claim.value and test.null == claim.null]
    return bool(kept) and claim.effect is not None and kept[0].effect * claim.effect < 0


def draw(frame: pd.DataFrame, sheet: "matplotlib.figure.Figure", theme: Theme) -> None:
    """Claims from top to bottom: words at the left, effect and interval in the middle, verdict and p at the right."""
    from matplotlib.lines import Line2D

    if frame.empty or frame["reason"].iloc[0]:
        words_only(sheet.add_subplot(), FIGURE.title, NO_CLAIMS if frame.empty else frame["reason"].iloc[0])
        return
    labels = ["\n".join(wrap(title, PER_LINE)) for title in frame["title"]]
    heights = np.array([max(1.6, label.count("\n") + 1) + 0.7 for label in labels])  # lines
    top = -(np.cumsum(heights) - heights / 2)
    sheet.set_size_inches(sheet.get_figwidth(), heights.sum() * LINE + 1.3)
    axes = sheet.add_subplot()
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.axvspan(-LINEAR, LINEAR, color=theme.ink, alpha=0.08, linewidth=0)
    axes.axvline(0, color=theme.ink, linewidth=0.9)
    for edge in -np.cumsum(heights)[:-1]:
        axes.axhline(edge, color=theme.faint, linewidth=0.6)
    for (_, row), y in zip(frame.iterrows(), top, strict=True):
        draw_claim(axes, row, y, theme)
    axes.set_yticks(top, labels, fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-heights.sum(), 0)
    limit(axes, frame)
    axes.set_xlabel("standard deviations of the null; right: as claimed", fontsize=SMALL)
    counts = frame["verdict"].value_counts()
    sheet.suptitle(FIGURE.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes.legend(
        handles=[
            Line2D([], [], **look(name, theme), label=f"{counts[name]} {name}") for name in VERDICTS if name in counts
        ],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(VERDICTS),
        frameon=False,
        fontsize=SMALL,
        borderaxespad=0.2,
        columnspacing=1,
        handletextpad=0.2,
    )
    axes.annotate("p, Holm", (1, 1), (SIDE, 5), xycoords="axes fraction", textcoords="offset points", fontsize=SMALL)


def look(verdict: str, theme: Theme) -> dict[str, Any]:
    """Shape and colour of a verdict: what holds is filled, what isn't told is hollow."""
    against, strong = theme.ordered(2)
    colour: Any = {"supported": strong, "not supported": against}.get(verdict, theme.ink)
    face = theme.paper if verdict == "inconclusive" else colour
    return {"marker": VERDICTS[verdict], "color": colour, "markerfacecolor": face, "markersize": 7, "linestyle": ""}


def draw_claim(axes: "matplotlib.axes.Axes", row: pd.Series, y: float, theme: Theme) -> None:
    """Interval and point, where there are any; beside the axes the verdict's mark once more and the p after Holm."""
    style = look(row["verdict"], theme)
    if np.isfinite(row["low"]) and np.isfinite(row["high"]):
        axes.hlines(y, row["low"], row["high"], color=style["color"], linewidth=1.6)
    if np.isfinite(row["effect_size"]):
        axes.plot(row["effect_size"], y, **style)
    mark = axes.plot(1 + MARK, y, **style, transform=axes.get_yaxis_transform(), clip_on=False)[0]
    mark.set_in_layout(False)
    p = significant(row["p_holm"], 2)
    beside: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate("no p" if p == NOTHING else p, (1, y), (SIDE, 0), **beside, va="center", fontsize=SMALL)


def limit(axes: "matplotlib.axes.Axes", frame: pd.DataFrame) -> None:
    """Room for every point and interval, and few ticks, in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = frame[["effect_size", "low", "high"]].to_numpy()
    furthest = np.abs(values[np.isfinite(values)]).max(initial=2 * LINEAR)
    low, high = np.nanmin(values, initial=-LINEAR), np.nanmax(values, initial=LINEAR)
    axes.set_xlim(2 * low, 2 * high)
    steps = [x for x in (2, 10, 50, 200, 1000, 5000) if x <= furthest]
    axes.xaxis.set_major_locator(FixedLocator([-x for x in reversed(steps)] + [0, *steps]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace("-", MINUS)))


FIGURE = Figure(
    name="claims",
    source="findings",
    title="The paper's claims, and what this run says",
    description=(
        "One row a claim. The point is the effect, value less the mean of its null, in standard deviations of the "
        "null's draws, the line its interval; grey reaches two of them to each side of none, and beyond, the axis is "
        "logarithmic. Disc: supported. Cross: not supported, that is, not shown by these data. Hollow diamond: "
        "inconclusive. At the right stands p after Holm's correction for the number of claims. To the right of zero "
        "lies what is as claimed, where less is claimed, too."
    ),
    frame=frame,
    draw=draw,
)
