"""The figures by name, one file each. To add one: a file with a `FIGURE`, and its line here."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rareneuron.errors import InvalidConfig
from rareneuron.present.figure import Figure, Sheets, save_figure
from rareneuron.present.style import LIGHT, Theme
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["FIGURES", "figure", "save_figure", "write_figures"]

MODULES = (
    "effect_distribution",
    "rank_curve",
    "rank_curves",
    "phases",
    "local_slope",
    "slope_distributions",
    "power_law",
    "deviation",
    "alpha_hill",
    "spectrum",
    "mechanism",
    "layers",
    "tasks",
    "claims",
)
FIGURES: dict[str, Figure] = {
    made.name: made for made in (import_module(f"{__name__}.{module}").FIGURE for module in MODULES)
}


def figure(run: Run, name: str, theme: Theme = LIGHT, *, beside: Sequence[Run] = ()) -> "matplotlib.figure.Figure":
    """Draw one figure of a run, and of others `beside` it where the figure shows several; `save_figure` writes it."""
    if name not in FIGURES:
        raise InvalidConfig(f"There is no figure {name!r}. Those that exist: {', '.join(FIGURES)}.")
    chosen = FIGURES[name]
    if beside and not chosen.several:
        several = ", ".join(other.name for other in FIGURES.values() if other.several)
        raise InvalidConfig(
            f"The figure {name!r} shows one run, and {1 + len(beside)} were given. Give one of them; of several runs "
            f"there is {several}."
        )
    return chosen.drawn(chosen.frame(run, *beside), theme)


def write_figures(run: Run, sheets: Sheets | None = None) -> list[Path]:
    """Write every figure to RUN/figures/NAME.svg, and return the paths; `sheets` are figures of it already drawn."""
    sheets = sheets or Sheets(run)
    folder = run.path / "figures"
    shown = {name: made for name, made in FIGURES.items() if not (made.optional and made.reason(made.frame(run)))}
    return [save_figure(sheets.of(made), folder / f"{name}.svg") for name, made in shown.items()]
