"""Figures and sections of groups: what is drawn and said is what the run holds; what is missing is said in words."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareneuron.conclude.trajectory import onsets
from rareneuron.present.blocks import Definitions, Illustration, Notice, Paragraph, Section, Table
from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.figures.alpha_hill import since
from rareneuron.present.findings import findings
from rareneuron.present.sections.geometry import geometry_section, told
from rareneuron.present.sections.neurons import neurons_section
from rareneuron.present.sections.spectrum import spectrum_section
from rareneuron.present.style import DARK, LIGHT, Theme
from rareneuron.present.tables import paper_table
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run
from tests.present.test_phases_figures import legends

MakeRun = Callable[..., Run]


def texts(section: Section) -> str:
    """Its words outside tables, on one line."""
    parts = [block.text for block in section.blocks if isinstance(block, Paragraph | Notice)]
    for block in section.blocks:
        if isinstance(block, Definitions):
            parts += [f"{name}: {text}" for name, text in block.items]
    return " ".join(parts)


def alpha(p: list[float], value: float = 1.0) -> pd.DataFrame:
    """One line of the alpha-hill figure with these p."""
    n = len(p)
    table = pd.DataFrame(
        {"checkpoint": range(n), "step": [0, 64, 512, 4096][:n], "matrix": "W_in", "group": "boosting"}
    )
    table = table.assign(value=value, null_mean=2.0, null_low=1.5, null_high=2.5, matched_mean=1.8, p=p, reason="")
    return table.assign(since=since(table))


# --- alpha-hill


def test_the_alpha_hill_frame_is_the_spectrums(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 512))
    frame = FIGURES["alpha-hill"].frame(run)
    assert len(frame) == 2 * 2 * 2
    for _, row in frame.iterrows():
        rows = run.spectrum(int(row["step"])).set_index(["matrix", "statistic", "group", "null"])
        uniform, matched = (
            rows.loc[(row["matrix"], "alpha_hill", row["group"], null)] for null in ("uniform", "matched")
        )
        for name in ("value", "null_mean", "null_low", "null_high"):
            assert row[name] == uniform[name]
        assert row["matched_mean"] == matched["null_mean"]
        assert row["p"] == max(uniform["p"], matched["p"])


@pytest.mark.parametrize(
    ("p", "first", "words"),
    [
        ([0.5, 0.01, 0.04, 0.05], 1, "boost: lower since 64"),
        ([0.01, 0.2, 0.3, 0.01], 3, "boost: lower at 4,096"),
        ([0.01, 0.01, 0.01, 0.06], None, "boost: no difference"),
        ([0.01], 0, "boost: lower at 0"),
    ],
)
def test_since_when_is_the_rule_of_onsets(p: list[float], first: int | None, words: str) -> None:
    frame = alpha(p)
    assert frame["since"].isna().all() if first is None else set(frame["since"]) == {first}
    ours = onsets(
        pd.DataFrame({"step": [0, 64, 512, 4096][: len(p)], "a": 1.0, "a_null": 2.0, "a_matched": 2.0, "a_p": p})
    )
    assert pd.isna(ours["since"].iloc[0]) if first is None else ours["since"].iloc[0] == [0, 64, 512, 4096][first]
    suppressing = frame.assign(group="suppressing", value=3.0)
    drawn = FIGURES["alpha-hill"].drawn(pd.concat([frame, suppressing], ignore_index=True))
    drawn.draw_without_rendering()
    assert legends(drawn) == [words, words.replace("boost", "suppress").replace("lower", "higher")]


def test_only_points_unlike_both_kinds_of_groups_are_filled() -> None:
    both = pd.concat([alpha([0.5, 0.01, 0.2, 0.01]), alpha([1.0] * 4).assign(group="suppressing")], ignore_index=True)
    axes = FIGURES["alpha-hill"].drawn(both).axes[0]
    points = [line for line in axes.get_lines() if line.get_marker() in ("o", "s") and line.get_linestyle() == "None"]
    filled = [p for p in points if p.get_markerfacecolor() != LIGHT.paper]
    assert [list(p.get_xdata()) for p in filled] == [[1, 3]]
    assert sorted(x for p in points for x in p.get_xdata()) == sorted([0, 1, 2, 3] * 2)


def test_a_checkpoint_without_groups_is_named_beside_the_others(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 64, 512))
    write_json(run.path / "steps" / "64" / "spectrum.json", {"unavailable": "3 boosting neurons."})
    drawn = figure(run, "alpha-hill")
    drawn.draw_without_rendering()
    assert "No spectrum at step 64." in [t.get_text() for t in drawn.axes[-1].texts]
    assert [t.get_text() for t in drawn.axes[-1].get_xticklabels()] == ["0", "64", "512"]
    assert {tuple(line.get_xdata()) for line in drawn.axes[0].get_lines() if line.get_linestyle() == "-"} >= {(0, 2)}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("n", [1, 4, 154])
def test_any_number_of_checkpoints_can_be_read(make_run: MakeRun, theme: Theme, n: int) -> None:
    one = FIGURES["alpha-hill"].frame(make_run(steps=(0,)))
    frame = pd.concat([one.assign(checkpoint=i, step=1000 * i, since=n // 2) for i in range(n)], ignore_index=True)
    frame = pd.concat([frame, frame[frame["matrix"] == "W_in"].assign(matrix="W_gate")], ignore_index=True)
    drawn = FIGURES["alpha-hill"].drawn(frame, theme)
    drawn.draw_without_rendering()
    boxes = [t.get_window_extent() for t in drawn.axes[-1].get_xticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for axes in drawn.axes:
        legend = axes.get_legend()
        assert legend is not None
        matrix = next(t for t in axes.texts if t.get_text().startswith("W_"))
        assert not legend.get_texts()[0].get_window_extent().overlaps(matrix.get_window_extent())


# --- spectrum


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


@pytest.mark.parametrize("name", ["alpha-hill", "spectrum"])
def test_no_groups_are_said_in_words(make_run: MakeRun, name: str) -> None:
    drawn = figure(make_run(unavailable="There are 3 boosting neurons."), name)
    drawn.draw_without_rendering()
    assert "There are 3 boosting neurons." in " ".join(t.get_text() for t in drawn.axes[0].texts)


# --- sections


def rows_like(value: float, mean: float, p: float, null: str) -> dict[str, Any]:
    return {"group": "boosting", "value": value, "null": null, "null_mean": mean, "p": p}


@pytest.mark.parametrize(
    ("p", "value", "words"),
    [
        (0.05, 0.2, "Boosting 0.200: above random groups, above matched groups."),
        (0.05, -0.2, "Boosting −0.200: below random groups, below matched groups."),
        (0.051, 0.2, "Boosting 0.200: not told from random groups, not told from matched groups."),
    ],
)
def test_a_side_is_told_at_five_percent_alone(p: float, value: float, words: str) -> None:
    rows = pd.DataFrame([rows_like(value, 0.1, p, null) for null in ("uniform", "matched")])
    assert told(rows, 3) == words


def test_the_geometry_section_holds_three_tables_and_clusters(make_run: MakeRun) -> None:
    run = make_run()
    section = geometry_section(findings(run))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    for number, block in zip((1, 2, 3), tables, strict=False):
        table = paper_table(number, [run])
        assert [row[1:] for row in block.rows] == [row[table.n_words :] for row in table.rows]
        assert block.caption.startswith(f"{table.title}, at step 512. Definitions “paper”, layer 3, the last")
    assert [row[0] for row in tables[3].rows if "this run" in row[0]] == ["Ward: this run", "average: this run"]
    assert "unlike neurons that are like it in mean |activation|" in texts(section)
    assert "never vary" not in texts(section)
    released = geometry_section(findings(make_run(definitions="released")))
    assert "cut at 5, of Euclidean distances between rows of D" in released.blocks[-1].caption
    assert "effective dimensions, z-scored: Boosting" in texts(released)


def test_neurons_that_never_vary_are_counted(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "steps" / "512" / "geometry.json"
    record = read_json(path)
    write_json(path, record | {"n_constant": {"boosting": 2.0, "suppressing": 0.0, "random": 0.25}})
    assert "clusters: 2.00 of boosting, 0 of suppressing, 0.250 of random." in texts(geometry_section(findings(run)))


@pytest.mark.usefixtures("without_ink")
def test_the_spectrum_section_holds_both_matrices_and_other_rules(make_run: MakeRun) -> None:
    run = make_run()
    section = spectrum_section(findings(run))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[0] for row in tables[0].rows if "this run" in row[0]] == ["W_in: this run", "W_out: this run"]
    words = texts(section)
    assert words.index("α_Hill, W_in: Boosting") < words.index("α_Hill, W_out: Boosting")
    rows = run.spectrum().set_index(["matrix", "statistic", "group", "null"])
    half = next(row for row in tables[1].rows if row[0] == "W_out: α_Hill, k a half")
    found = [rows.loc[("W_out", "alpha_hill_half", "boosting", null), "p"] for null in ("uniform", "matched")]
    assert float(half[1]) == pytest.approx(
        rows.loc[("W_out", "alpha_hill_half", "boosting", "uniform"), "value"], rel=1e-2
    )
    assert float(half[4]) == pytest.approx(max(found), rel=0.05)
    assert len(tables[1].rows) == 2 * 6


def test_figures_stand_in_the_spectrum_section(make_run: MakeRun) -> None:
    blocks = spectrum_section(findings(make_run())).blocks
    assert [block.source for block in blocks if isinstance(block, Illustration)] == ["Fig. 2b", "App. 5.3.3"]


@pytest.mark.parametrize("build", [geometry_section, spectrum_section])
def test_a_section_without_groups_gives_the_reason(make_run: MakeRun, build: Callable[..., Section]) -> None:
    section = build(findings(make_run(unavailable="There are 3 boosting neurons.")))
    assert re.fullmatch(r"There is no (geometry|spectrum)\. There are 3 boosting neurons\.", texts(section))


def test_the_neurons_section_says_how_well_matched_groups_match(make_run: MakeRun) -> None:
    run = make_run()
    assert "99 groups of neurons alike in mean |activation|, which may hold" in texts(neurons_section(findings(run)))
    path = run.path / "steps" / "512" / "groups.json"
    found = {"group": 0.4, "matched": 0.37, "uniform": 0.1, "shared": 0.48, "distinct": 263}
    write_json(path, read_json(path) | {"matching": {"boosting": found}})
    words = texts(neurons_section(findings(run)))
    assert "a mean of 0.400, its matched groups of 0.370, random ones of 0.100; 48 % of a matched group" in words
    assert "together hold 263 neurons." in words
