"""The weight spectrum: scaled to its mean, beside random groups."""

from collections.abc import Callable

import numpy as np
import pytest

from rareneuron.present.figures import FIGURES, figure
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run
from tests.present.reading import legends

MakeRun = Callable[..., Run]


def test_the_spectrum_frame_is_scaled_to_its_mean(make_run: MakeRun) -> None:
    run = make_run()
    record = read_json(run.path / "steps" / "512" / "spectrum.json")
    frame = FIGURES["spectrum"].frame(run)
    for (matrix, group), part in frame.groupby(["matrix", "group"]):
        eigenvalues = np.array(record["eigenvalues"][matrix][group])
        np.testing.assert_allclose(part["eigenvalue"], eigenvalues / eigenvalues.mean())
        np.testing.assert_array_equal(part["rank"], np.arange(1, 6))
        assert part["edge"].iloc[0] == pytest.approx((1 + (5 / 16) ** 0.5) ** 2)  # of 5 rows of width 16
    rows = run.spectrum().set_index(["matrix", "statistic", "group", "null"])
    null = frame[frame["group"] == "random"].groupby("matrix").first()
    largest = rows.loc[("W_in", "largest_eigenvalue", "boosting", "uniform")]
    ratio = largest["null_low"] / np.mean(record["eigenvalues"]["W_in"]["random"])
    assert null.loc["W_in", "low"] == pytest.approx(ratio)
    assert frame[(frame["group"] == "random") & (frame["rank"] > 1)]["low"].notna().all()


def test_a_run_that_keeps_bounds_of_random_groups_has_a_band(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "steps" / "512" / "spectrum.json"
    record = read_json(path)
    for spectra in record["eigenvalues"].values():
        spectra["random low"], spectra["random high"] = ([f * x for x in spectra["random"]] for f in (0.5, 2))
    write_json(path, record)
    null = FIGURES["spectrum"].frame(run).query("group == 'random'")
    np.testing.assert_allclose(null["low"], null["eigenvalue"] / 2)
    np.testing.assert_allclose(null["high"], null["eigenvalue"] * 2)
    figure(run, "spectrum").draw_without_rendering()


def test_the_spectrum_says_alpha_and_k_and_leaves_out_zeros(make_run: MakeRun) -> None:
    run = make_run()
    rows = run.spectrum().set_index(["matrix", "statistic", "group", "null"])["value"]
    said = legends(figure(run, "spectrum"))
    for group in ("boosting", "suppressing"):
        value, k = (rows[("W_out", name, group, "uniform")] for name in ("alpha_hill", "n_tail"))
        assert f"{group}: α {value:#.3g}, k {k:.0f}" in said
    frame = FIGURES["spectrum"].frame(run)
    frame.loc[frame["rank"] == 5, "eigenvalue"] = 0.0
    drawn = FIGURES["spectrum"].drawn(frame)
    drawn.draw_without_rendering()
    assert max(len(line.get_xdata()) for line in drawn.axes[0].get_lines()) == 4
