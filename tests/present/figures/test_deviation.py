"""The deviation from the power law: Eq. 8 with its band, and checkpoints without phases named."""

from collections.abc import Callable

import numpy as np

from rareneuron.present.figures import FIGURES, figure
from rareneuron.runs.run import Run
from tests.present.reading import words

MakeRun = Callable[..., Run]


def test_the_deviation_frame_is_eq_8_with_its_band(planted: MakeRun) -> None:
    run = planted(steps=(0, 512, None))
    frame = FIGURES["deviation"].frame(run)
    assert frame["step"].unique().tolist() == ["0", "512", "final"]
    found, last = run.phases(), frame[frame["checkpoint"] == 2]
    assert found.band is not None
    np.testing.assert_array_equal(last["deviation"], found.deviation)
    np.testing.assert_array_equal(last[["low", "high"]].T, found.band)
    axes = figure(run, "deviation").axes[0]
    assert axes.get_ylim()[1] > found.band[1].max()
    said = words(run, "deviation")
    assert said.startswith("Deviation from the power law | Final checkpoint: three phases")
    assert ("Below the axis" in said) == (found.deviation.min() < axes.get_ylim()[0])


def test_a_checkpoint_without_phases_is_named_beside_the_others(planted: MakeRun) -> None:
    run = planted(steps=(0, 512))
    (run.path / "steps" / "0" / "phases.json").unlink()
    frame = FIGURES["deviation"].frame(run)
    assert frame.loc[frame["step"] == "0", "reason"].str.contains("holds no phases").tolist() == [True]
    assert "No phases could be told at step 0." in words(run, "deviation")
    assert len(figure(run, "deviation").axes[0].get_lines()) == 5  # zero, three nulls, and step 512
