"""What figures share: thinned lines, legends, ticks."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from rareneuron.present.figures import FIGURES
from rareneuron.present.ink import MOST_LABELS, MOST_POINTS, draw_minor_ticks, label_places, thin
from rareneuron.present.style import LIGHT
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def test_thinning_keeps_both_ends() -> None:
    line = pd.DataFrame({"rank": np.arange(1, 5001)})
    kept = thin(line)["rank"].tolist()
    assert len(kept) <= MOST_POINTS
    assert kept[:10] == list(range(1, 11))
    assert kept[-1] == 5000
    assert len(thin(line.head(MOST_POINTS))) == MOST_POINTS


def test_labels_name_the_first_and_the_last() -> None:
    assert label_places(1) == [0]
    assert label_places(5) == [0, 1, 2, 3, 4]
    many = label_places(154)
    assert len(many) == MOST_LABELS
    assert (many[0], many[-1]) == (0, 153)


@pytest.mark.parametrize("name", ["rank-curve", "alpha-hill", "spectrum"])
def test_minor_ticks_stand_where_matplotlib_has_them(make_run: MakeRun, name: str) -> None:
    run = make_run(n_neurons=300)
    frame = FIGURES[name].frame(run)
    plain, ready = FIGURES[name].drawn(frame), FIGURES[name].drawn(frame)
    draw_minor_ticks(ready, LIGHT)
    expected = []
    for axes in plain.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            places = axis.get_minorticklocs()
            expected.append(places[(low <= places) & (places <= high)].tolist())
    drawn = [line.get_data() for line in ready.artists if isinstance(line, Line2D)]
    found = [list(x if np.any(x) else y) for x, y in drawn]
    assert found == [places for places in expected if places]
    assert bool(found) == (name != "alpha-hill"), "whose axes are linear"
    assert all(len(axes.xaxis.get_minorticklocs()) == 0 for axes in ready.axes)
