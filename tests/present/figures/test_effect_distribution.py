"""The distribution of effects: densities of area one, and zeros counted."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import trapezoid

from rareneuron.present.figures import FIGURES
from rareneuron.present.figures.effect_distribution import density
from rareneuron.present.ink import MOST_LABELS
from rareneuron.runs.files import read_table, write_table
from rareneuron.runs.run import Run
from tests.present.reading import words

MakeRun = Callable[..., Run]


def test_densities_have_area_one_and_the_median_of_the_effects(make_run: MakeRun) -> None:
    run = make_run(steps=tuple(range(20)))
    frame = FIGURES["effect-distribution"].frame(run)
    assert frame["checkpoint"].nunique() == MOST_LABELS
    for _, ridge in frame.groupby("checkpoint"):
        area = trapezoid(ridge["density"], ridge["log10_abs_delta_loss"])
        assert area == pytest.approx(1, abs=0.01)  # the kernel reaches beyond the grid by 0.3 %
    assert frame["median"].iloc[-1] == pytest.approx(np.log10(run.effects()["abs_delta_loss"]).median())


def test_equal_effects_still_have_a_density() -> None:
    grid = np.linspace(-4, -2, 2001)
    assert trapezoid(density(np.full(50, -3.0), grid), grid) == pytest.approx(1)


def test_zeros_of_the_distribution_are_counted(make_run: MakeRun) -> None:
    run = make_run(steps=(7,))
    path = run.path / "steps" / "7" / "effects.parquet"
    table = read_table(path)
    table.loc[table["rank"] > 50, "abs_delta_loss"] = 0.0
    write_table(path, table)
    assert "not shown: 10 neurons with mean |Δ| = 0" in words(run, "effect-distribution")
