"""Where the power law fails: the ratio to the line at both ends."""

from collections.abc import Callable

from rareneuron.present.figures import FIGURES
from rareneuron.runs.run import Run
from tests.present.reading import words

MakeRun = Callable[..., Run]


def test_the_power_law_figure_tells_the_ratio_at_both_ends(planted: MakeRun) -> None:
    run = planted()
    frame, said = FIGURES["power-law"].frame(run), words(run, "power-law")
    ratio = frame["abs_delta_loss"] / frame["line"]
    assert ratio.iloc[0] > 2  # e was planted
    assert f"left of the fit: {ratio.iloc[0]:.2g} × the line at rank 1 " in said
    assert f"right of the fit: {ratio.iloc[-1]:.2g} × the line at rank 512 " in said
