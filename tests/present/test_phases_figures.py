"""Figures and section of phases: what is drawn is what was found, and what is missing is said in words."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.legend import Legend

from rareneuron.errors import InvalidConfig
from rareneuron.maths.nulls import FAMILIES
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import local_slope
from rareneuron.maths.released import ReleasedPhases
from rareneuron.present.figures import FIGURES, figure
from rareneuron.present.figures.effect_distribution import density
from rareneuron.present.figures.rank_curve import MOST_LABELS, MOST_POINTS
from rareneuron.present.figures.verdict import null_bands, null_samples, verdict
from rareneuron.present.report import render_report
from rareneuron.present.sections.phases import meaning
from rareneuron.runs.files import read_table, write_table
from rareneuron.runs.rankings import fit_rankings, write_phases
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]
N, PLATEAU, DECAY, KAPPA = 512, 24, 150, 0.4
OF_PHASES = ("phases", "power-law", "deviation")


@pytest.fixture(scope="module")
def layer() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Effects with a planted plateau at rare targets and none at common ones, and what the package finds in them."""
    rng = np.random.default_rng(0)
    rank, n_tokens = np.arange(1, N + 1), np.full(40, 5)
    y = -5 - KAPPA * np.log(rank) - np.maximum(rank / DECAY - 1, 0)
    sign = np.where(np.arange(N) % 3 > 0, 0.5, -0.5)
    columns = {"abs_delta_loss": np.exp(y + (rank <= PLATEAU)), "common_abs_delta_loss": np.exp(y)}
    columns["delta_loss"] = sign * columns["abs_delta_loss"]
    noise = rng.gamma(400.0, 1 / 400, (40, N))
    sums = {name: noise * value * 5 for name, value in columns.items()} | {"n_tokens": n_tokens}
    table = pd.DataFrame({name: sums[name].sum(0) / n_tokens.sum() for name in columns})
    return table, fit_rankings(table, sums | {"common_n_tokens": n_tokens}, seed=0)


@pytest.fixture
def planted(make_run: MakeRun, layer: tuple[pd.DataFrame, dict[str, Any]]) -> Callable[..., Run]:
    """Runs whose checkpoints all hold that layer."""

    def build(**arguments: Any) -> Run:
        run = make_run(n_neurons=N, **arguments)
        for folder in (run.path / "steps").iterdir():
            table = read_table(folder / "effects.parquet").assign(**layer[0])
            rank = table["abs_delta_loss"].rank(ascending=False, method="first").astype(int)
            write_table(folder / "effects.parquet", table.assign(rank=rank))
            write_phases(folder, layer[1])
        return run

    return build


@pytest.fixture
def nothing(make_run: MakeRun) -> Run:
    """A run in which no ablation changes anything."""
    run = make_run()
    for path in run.path.rglob("effects.parquet"):
        table = read_table(path)
        write_table(path, table.assign(**{name: 0.0 for name in table if "delta_loss" in name}))
    return run


def words(run: Run, name: str) -> str:
    """All that a figure says, outside its axes' numbers, on one line."""
    drawn = figure(run, name)
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    legend = axes.get_legend()
    texts = [axes.get_title(loc="left"), *(t.get_text() for t in axes.texts)]
    return re.sub(r"\s+", " ", " | ".join(texts + ([t.get_text() for t in legend.get_texts()] if legend else [])))


def legends(drawn: Any) -> list[str]:
    """Labels of all legends of a figure."""
    found = [artist for axes in drawn.axes for artist in axes.get_children() if isinstance(artist, Legend)]
    return [text.get_text() for legend in found for text in legend.get_texts()]


def test_the_phases_frame_holds_what_was_found(planted: MakeRun) -> None:
    run = planted(steps=(0, 512))
    frame, found = FIGURES["phases"].frame(run), run.phases()
    assert found.outcome == "three phases"
    assert found.plateau_end is not None
    assert PLATEAU / 1.5 < found.plateau_end < PLATEAU * 1.5
    np.testing.assert_array_equal(frame["rank"], np.arange(1, N + 1))
    np.testing.assert_allclose(np.log(frame["abs_delta_loss"] / frame["line"]), found.deviation, atol=1e-12)
    facts = frame.iloc[0]
    assert (facts["checkpoint"], facts["verdict"], facts["reason"]) == ("Step 512", "three phases", "")
    for name in ("kappa", "plateau_end", "decay_start"):
        assert facts[name] == getattr(found, name)
        assert (facts[f"{name}_low"], facts[f"{name}_high"]) == found.intervals[name]


SAMPLES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "half-normal": lambda rng, shape: np.log(np.abs(rng.standard_normal(shape))),
    "exponential": lambda rng, shape: np.log(rng.exponential(1, shape)),
    "lognormal": lambda rng, shape: rng.normal(0, 1.5, shape),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_grey_band_holds_samples_of_its_family_and_no_others(family: str) -> None:
    rng = np.random.default_rng(1)
    of = {name: -7 - np.sort(-draw(rng, (200, 400)), axis=1) for name, draw in SAMPLES.items()}
    y = of[family][0]
    bands = null_bands({family: null_samples(y, family)})
    low, high = bands[f"{family} low"], bands[f"{family} high"]
    for name, fresh in of.items():
        fresh = y.mean() + (y.std() / fresh.std() if family == "lognormal" else 1) * (fresh - fresh.mean())
        inside = ((low <= fresh) & (fresh <= high)).mean()
        if name == family:
            assert 0.93 < inside < 0.97  # 95 % at every rank, give or take what 400 draws leave open
        else:
            assert inside < 0.7, name


def test_phases_are_named_over_their_ranks_and_nothing_overlaps(planted: MakeRun) -> None:
    drawn = figure(planted(), "phases")
    drawn.draw_without_rendering()
    axes = drawn.axes[0]
    names = {t.get_text(): t for t in axes.texts}
    assert {"plateau", "power law", "decay", "Step 512: three phases"} == set(names)
    bounds = [1, PLATEAU, DECAY, N]
    for i, name in enumerate(("plateau", "power law", "decay")):
        assert bounds[i] < names[name].xy[0] < bounds[i + 1] * 1.2
    boxes = [t.get_window_extent() for t in (*axes.texts, axes.title)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x1 <= drawn.bbox.x1 for box in boxes)


def test_a_phase_that_was_not_found_is_not_named(planted: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planted()
    found = run.phases()
    missing = replace(found, outcome="no plateau", plateau_end=None, null_p=found.null_p | {"no plateau": 0.4})
    monkeypatch.setattr(Run, "phases", lambda *_: missing)
    said = words(run, "phases")
    assert "no plateau (curves without one look the same, p = 0.40)" in said
    assert "| plateau" not in said
    assert "| decay" in said


@pytest.mark.parametrize(
    ("outcome", "null_p", "said"),
    [
        ("three phases", {}, "three phases"),
        ("no power law", {"exponential": 0.2, "lognormal": 0.6}, "lognormal samples look as straight, p = 0.60"),
        ("no power law", {}, "the middle bends"),
        ("no plateau", {"no plateau": 0.051}, "curves without one look the same, p = 0.051"),
        ("no plateau", {}, "within its noise"),
        ("no decay", {"no decay": 1.0}, "power laws look the same, p = 1.0"),
    ],
)
def test_the_verdict_names_what_stood_against_it(
    layer: tuple[pd.DataFrame, dict[str, Any]], outcome: Any, null_p: dict[str, float], said: str
) -> None:
    found = layer[1]["all"]
    assert max(found.null_p.values()) <= 0.05
    assert said in verdict(replace(found, outcome=outcome, null_p=found.null_p | null_p))


def test_the_power_law_figure_tells_the_ratio_at_both_ends(planted: MakeRun) -> None:
    run = planted()
    frame, said = FIGURES["power-law"].frame(run), words(run, "power-law")
    ratio = frame["abs_delta_loss"] / frame["line"]
    assert ratio.iloc[0] > 2  # e was planted
    assert f"left of the fit: {ratio.iloc[0]:.2g} × the line at rank 1 " in said
    assert f"right of the fit: {ratio.iloc[-1]:.2g} × the line at rank 512 " in said


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


def test_one_run_figures_refuse_several(make_run: MakeRun) -> None:
    with pytest.raises(InvalidConfig, match=r"'phases' shows one run, and 2 were given.*slope-distributions"):
        figure(make_run(), "phases", beside=[make_run()])


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


def test_densities_have_area_one_and_the_median_of_the_effects(make_run: MakeRun) -> None:
    run = make_run(steps=tuple(range(20)))
    frame = FIGURES["effect-distribution"].frame(run)
    assert frame["checkpoint"].nunique() == MOST_LABELS
    for _, ridge in frame.groupby("checkpoint"):
        area = np.trapezoid(ridge["density"], ridge["log10_abs_delta_loss"])
        assert area == pytest.approx(1, abs=0.01)  # the kernel reaches beyond the grid by 0.3 %
    assert frame["median"].iloc[-1] == pytest.approx(np.log10(run.effects()["abs_delta_loss"]).median())


def test_equal_effects_still_have_a_density() -> None:
    grid = np.linspace(-4, -2, 2001)
    assert np.trapezoid(density(np.full(50, -3.0), grid), grid) == pytest.approx(1)


def test_zeros_of_the_distribution_are_counted(make_run: MakeRun) -> None:
    run = make_run(steps=(7,))
    path = run.path / "steps" / "7" / "effects.parquet"
    table = read_table(path)
    table.loc[table["rank"] > 50, "abs_delta_loss"] = 0.0
    write_table(path, table)
    assert "not shown: 10 neurons with mean |Δ| = 0" in words(run, "effect-distribution")


@pytest.mark.parametrize("name", FIGURES)
def test_no_line_has_more_points_than_can_be_seen(make_run: MakeRun, name: str) -> None:
    drawn = figure(make_run(steps=(3,), n_neurons=3000), name)
    assert all(len(line.get_xdata()) <= MOST_POINTS for line in drawn.axes[0].get_lines())


@pytest.mark.parametrize("name", OF_PHASES)
def test_too_few_neurons_are_said_in_words(make_run: MakeRun, name: str) -> None:
    run = make_run()
    for folder in (run.path / "steps").iterdir():
        contexts = {"abs_delta_loss": np.ones((3, 60)), "delta_loss": np.ones((3, 60)), "n_tokens": np.ones(3, int)}
        contexts |= {"common_abs_delta_loss": np.ones((3, 60)), "common_n_tokens": np.ones(3, int)}
        write_phases(folder, fit_rankings(run.effects(), contexts, 0))
    assert "fewer than 128" in words(run, name)


@pytest.mark.parametrize("name", OF_PHASES)
def test_a_run_older_than_its_phases_is_said_in_words_that_name_no_folder(make_run: MakeRun, name: str) -> None:
    run = make_run()
    said = words(run, name)
    assert "Run the same study again" in said
    assert str(run.path) not in said


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"rank-curve", "alpha-hill", "spectrum", "claims"}))
def test_no_effect_at_all_is_said_in_words(nothing: Run, name: str) -> None:
    assert re.search(r"mean \|Δ\| is zero|neurons with an effect|holds no phases", words(nothing, name))


# --- in the report


@pytest.mark.usefixtures("without_ink")
def test_the_report_tells_phases_after_the_rank_curve(planted: MakeRun) -> None:
    run = planted()
    html = render_report(run)
    assert html.index('id="rank-curve"') < html.index('id="phases"') < html.index('id="checkpoints"')
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html))
    found = run.phases()
    end, share = found.plateau_end, f"{100 * (found.plateau_share or 0):.1f} %"
    assert f"Step 512: three phases. The first {end} neurons, {share} of the layer, lie above" in text
    assert "At common targets: no plateau (" in text
    assert "so the plateau is that of rare ones." in text
    assert "all neurons boosting suppressing common targets" in text
    assert f"κ {found.kappa:.3f} ({found.intervals['kappa'][0]:.3f} … {found.intervals['kappa'][1]:.3f}) " in text
    assert re.search(rf"plateau, to rank {end} \(\d+ … \d+\), {share} .* – decay, from rank", text)
    assert "Phases unknown" not in text
    kappa = run.phases(0).kappa
    null = f"Step 0, before any training, is the null (all): it gives κ = {kappa:.3f}, three phases; step 512 gives"
    assert null in text


@pytest.mark.usefixtures("without_ink")
def test_the_report_says_which_phases_are_unknown(make_run: MakeRun) -> None:
    html = render_report(make_run(common=False))
    notices = re.findall(r'<p class="notice">(.*?)</p>', html)
    assert any(
        "Phases unknown: all neurons, boosting, suppressing. The run folder holds no phases" in n for n in notices
    )
    assert any("Phases unknown: common targets. No common target" in n for n in notices)


@pytest.mark.parametrize(
    ("outcome", "plateau", "common", "said"),
    [
        ("three phases", 24, 24, "so it isn't about rare ones alone."),
        ("no decay", 24, None, "the last ones not clearly below it. At common targets:"),
        ("no plateau", None, None, "the first neurons don't stand out above it."),
        ("no power law", None, 24, "nothing that a plateau or a decay could be measured against."),
    ],
)
def test_every_outcome_has_its_words(
    layer: tuple[pd.DataFrame, dict[str, Any]], outcome: Any, plateau: int | None, common: int | None, said: str
) -> None:
    found: Phases = replace(layer[1]["all"], outcome=outcome, plateau_end=plateau)
    text = meaning(found, replace(layer[1]["all"], plateau_end=common), "Step 5")
    assert text.startswith(f"Step 5: {outcome}")
    assert said in text
    assert ("rare ones" in text) == (plateau is not None), "without a plateau there is nothing to set beside another"
    assert "common" not in meaning(found, "no common target", "Step 5")


def test_the_report_with_every_figure_stays_small(planted: MakeRun) -> None:
    steps = tuple(range(10))
    assert len(render_report(planted(steps=steps)).encode()) < 1_000_000  # 5 MB is the limit, for 154 steps too


@pytest.mark.usefixtures("without_ink")
def test_the_report_of_released_definitions_says_so_and_has_no_verdict(planted: MakeRun) -> None:
    run = planted(definitions="released")
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", render_report(run)))
    found = run.phases(512, "boosting")
    assert isinstance(found, ReleasedPhases)
    assert "Definitions: “released”, what the authors&#39; released scripts compute" in text
    assert f"κ, log rank 3.5 … 4.5 {found.kappa:.3f} β {found.beta:.3f}" in text
    assert "Phases unknown: suppressing. The curve has 171 neurons" in text
    assert "Definitions: “released” for phases" in text
    assert not [outcome for outcome in ("no plateau", "no decay", "no power law") if outcome in text]
    assert "Definitions: “paper”. κ and R²" in render_report(planted())


@pytest.mark.parametrize("name", OF_PHASES)
def test_figures_of_verdicts_say_that_released_definitions_have_none(planted: MakeRun, name: str) -> None:
    assert "constants that nothing tests" in words(planted(definitions="released"), name)
