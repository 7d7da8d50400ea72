"""Local slopes of several runs: the same axes, the same colours, and every panel can be read."""

from collections.abc import Callable

import pandas as pd
import pytest

from rareneuron.present.figures import FIGURES, figure
from rareneuron.runs.run import Run
from tests.present.planted import N
from tests.present.reading import legends

MakeRun = Callable[..., Run]


def test_slope_distributions_show_every_run_on_the_same_axes(planted: MakeRun, make_run: MakeRun) -> None:
    runs = [planted(steps=(0, 512)), make_run(steps=(512, 10_000, None), model="lab/small", n_neurons=300)]
    frame = FIGURES["slope-distributions"].frame(*runs)
    assert frame.groupby("run")["n_neurons"].first().tolist() == [N, 300]
    for place, run in enumerate(runs):
        alone = FIGURES["local-slope"].frame(run)
        part = frame[frame["run"] == place].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[alone.columns], alone)
    drawn = figure(runs[0], "slope-distributions", beside=runs[1:])
    drawn.draw_without_rendering()
    left, right = drawn.axes
    assert [a.get_title(loc="left") for a in (left, right)] == ["embedded series, 512 neurons", "small, 300 neurons"]
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert left.get_xlim()[1] > frame.loc[frame["kappa"].notna(), "rank"].max()
    assert left.get_lines()[-1].get_color() == right.get_lines()[-3].get_color(), "step 512"
    assert legends(drawn)[-4:] == ["final", "10,000", "512", "0"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_every_panel_of_slope_distributions_can_be_read(make_run: MakeRun, n: int) -> None:
    """Numbers stand under the lowest panel of each column, and places without a run stay empty."""
    drawn = figure(make_run(), "slope-distributions", beside=[make_run()] * (n - 1))
    drawn.draw_without_rendering()
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert len(shown) == n
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown]
    assert numbered == [i + min(n, 3) >= n for i in range(n)]
