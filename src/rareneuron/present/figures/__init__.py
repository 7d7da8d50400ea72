"""The figures by name, one file each. To add one: a file with a `FIGURE`, and its line here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rareneuron.errors import InvalidConfig
from rareneuron.present.figure import Figure, save_figure
from rareneuron.present.figures import (
    alpha_hill,
    claims,
    deviation,
    effect_distribution,
    local_slope,
    phases,
    power_law,
    rank_curve,
    rank_curves,
    slope_distributions,
    spectrum,
)
from rareneuron.present.style import LIGHT, Theme
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["FIGURES", "figure", "save_figure", "write_figures"]

FIGURES: dict[str, Figure] = {
    module.FIGURE.name: module.FIGURE
    for module in (
        *(effect_distribution, rank_curve, rank_curves, phases, local_slope, slope_distributions, power_law, deviation),
        *(alpha_hill, spectrum, claims),
    )
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


def write_figures(run: Run) -> list[Path]:
    """Every figure as RUN/figures/NAME.svg."""
    return [save_figure(figure(run, name), run.path / "figures" / f"{name}.svg") for name in FIGURES]
