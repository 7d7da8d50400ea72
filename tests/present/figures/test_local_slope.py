"""The local slope: Eq. 7 where it is defined, and nulls behind the last step."""

from collections.abc import Callable

import numpy as np

from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.rank_curve import local_slope
from rareneuron.present.figures import FIGURES, figure
from rareneuron.runs.run import Run
from tests.present.planted import DECAY, KAPPA, PLATEAU
from tests.present.reading import legends

MakeRun = Callable[..., Run]


def test_the_local_slope_is_empty_where_undefined_and_grey_at_the_last_step(planted: MakeRun) -> None:
    run = planted(steps=(0, 512))
    frame = FIGURES["local-slope"].frame(run)
    first, last = (part for _, part in frame.groupby("checkpoint"))
    expected = local_slope(np.log(run.rank_curve().value)).kappa
    np.testing.assert_array_equal(last["kappa"], expected)
    assert last["kappa"].isna().any()
    drawn = figure(run, "local-slope").axes[0].get_lines()[-1].get_ydata()
    np.testing.assert_array_equal(drawn, expected)
    middle = last[last["rank"].between(PLATEAU * np.exp(0.3), DECAY / np.exp(1.3))]  # half a window from both ends
    assert len(middle) > 2
    np.testing.assert_allclose(middle["kappa"], KAPPA, atol=0.03)  # noise of 0.8 % a neuron
    for family in FAMILIES:
        assert first[f"{family} low"].isna().all()
        assert (last[f"{family} low"] < last[f"{family} high"])[last["kappa"].notna()].all()
        assert family in legends(figure(run, "local-slope"))
        assert family in legends(figure(run, "phases"))
