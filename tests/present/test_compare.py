"""Runs side by side: what differs is found, what is the same neuron is correlated, what can't be told is said."""

import json

import pandas as pd
import pytest
from scipy.stats import spearmanr

from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.present.compare import compare, comparison_text, same_neurons, write_comparison
from rareneuron.present.figures import FIGURES, rank_curves
from rareneuron.present.subject import subject
from rareneuron.runs.files import read_json, read_table, write_json, write_table
from rareneuron.runs.run import open_run

CLAIM = {
    **dict.fromkeys(("statistic", "group", "value", "null", "null_mean", "effect", "effect_low", "effect_high")),
    **dict.fromkeys(("effect_size", "p", "p_holm")),
    "source": "Fig. 1b",
    "sentence": "So it is.",
}


def with_claims(run, **verdicts):
    claims = [
        CLAIM | {"name": name, "title": f"Claim {name}", "verdict": verdict} for name, verdict in verdicts.items()
    ]
    write_json(run.path / "claims.json", {"step": run.steps[-1], "claims": claims, "checks": []})
    return run


def changed(run, part, **values):
    manifest = read_json(run.path / "run.json")
    manifest[part] |= values
    write_json(run.path / "run.json", manifest)
    return open_run(run.path)


def test_one_run_is_no_comparison(make_run):
    with pytest.raises(InvalidConfig, match="two run folders or more, and 1 was given"):
        compare([make_run()])


def test_a_step_that_a_run_lacks_is_named(make_run):
    with pytest.raises(RunFolderError, match="no results for step 8; it has 0, 512"):
        compare([make_run(steps=(0, 8)), make_run()], step=8)


def test_numbers_are_the_runs_own(make_run):
    runs = [make_run(), make_run(n_neurons=80, common=False, engine="patching")]
    table = compare(runs).runs
    assert len(table) == 2
    assert table["n_neurons"].tolist() == [60, 80]
    for (_, row), run in zip(table.iterrows(), runs, strict=True):
        effects = run.effects()
        assert row["abs_delta_loss_max"] == effects["abs_delta_loss"].max()
        assert row["top_neuron"] == effects.sort_values("rank")["neuron"].iloc[0]
        assert row["n_boosting"] == (effects["delta_loss"] > 0).sum()
        assert row["outcome"] == "unavailable"  # these folders hold no phases
        assert row["reason"]
    assert pd.isna(table["common_abs_delta_loss_median"].iloc[1])
    assert pd.isna(table["audit_rms_error"].iloc[1])


def test_only_what_differs_is_listed(make_run):
    first, second = make_run(), make_run()
    assert len(compare([first, second]).settings) == 0
    second = changed(second, "config", seed=5, percentile=40)
    second = changed(second, "data", fingerprint="ee" * 32)
    settings = compare([first, second]).settings.set_index("setting")
    assert set(settings.index) == {"seed", "percentile", "fingerprint"}
    assert settings.loc["seed"].tolist() == [0, 5]


def test_verdicts_stand_in_a_grid_of_all_claims(make_run):
    first = with_claims(make_run(), a="supported", b="inconclusive")
    second = with_claims(make_run(), b="not supported", c="supported")
    grid = compare([first, second, make_run()]).verdicts.set_index("name")
    assert grid.index.tolist() == ["a", "b", "c"]
    values = grid.drop(columns="claim").astype(object).where(grid.drop(columns="claim").notna(), None)
    assert values.loc["b"].tolist() == ["inconclusive", "not supported", None]
    assert values.loc["a"].tolist() == ["supported", None, None]


def test_claims_of_the_last_step_are_not_told_of_another(make_run):
    runs = [with_claims(make_run(), a="supported"), with_claims(make_run(), a="supported")]
    assert len(compare(runs).verdicts) == 1
    assert len(compare(runs, step=0).verdicts) == 0


def test_rankings_of_the_same_neurons_are_correlated(make_run):
    first, second = make_run(), make_run()
    path = second.folder() / "effects.parquet"
    table = read_table(path)
    table["abs_delta_loss"] = table["abs_delta_loss"].to_numpy()[::-1].copy()
    write_table(path, table)
    row = compare([first, open_run(second.path)]).agreement.iloc[0]
    expected = spearmanr(first.effects()["abs_delta_loss"], table["abs_delta_loss"]).statistic
    assert row["spearman"] == pytest.approx(expected)
    assert abs(expected) < 0.9


def test_other_layers_and_widths_are_not_the_same_neurons(make_run):
    first, other = make_run(), make_run(model="models/other", n_neurons=61)
    record = read_json(other.folder() / "step.json")
    record["model"]["weights_sha256"] = "cd" * 32
    write_json(other.folder() / "step.json", record)
    assert same_neurons(subject(first, None), subject(make_run(), None))
    assert not same_neurons(subject(first, None), subject(open_run(other.path), None))
    assert compare([first, open_run(other.path)]).agreement.empty


def test_words_for_a_terminal(make_run):
    runs = [with_claims(make_run(), a="supported"), changed(make_run(), "config", seed=7)]
    text = comparison_text(compare(runs))
    assert text.startswith("A  embedded series, step 512 (run0)\nB  embedded series, step 512 (run1)\n")
    assert "seed" in text
    assert "no phases. " in text
    assert "nan" not in text.lower()


def test_a_notebook_sees_all_parts(make_run):
    page = compare([with_claims(make_run(), a="supported"), make_run()])._repr_html_()
    for part in ("Runs", "Settings that differ", "Verdicts", "Agreement", "Claim a"):
        assert part in page


def test_curves_share_axes_and_names_tell_them_apart(make_run):
    runs = [make_run(), make_run(n_neurons=40)]
    frame = rank_curves.frame(*runs)
    assert frame.groupby("run").size().tolist() == [60, 40]
    assert frame["name"].nunique() == 2
    for place, run in enumerate(runs):
        sizes = frame.loc[frame["run"] == place, "abs_delta_loss"].tolist()
        assert sizes == sorted(run.effects()["abs_delta_loss"], reverse=True)
    lines = rank_curves.FIGURE.drawn(frame).axes[0].get_lines()
    assert len(lines) == 2
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_the_page_needs_nothing_else_and_hides_nothing(make_run, tmp_path):
    hostile = "evil</title><script>alert(1)</script>\u202e"
    runs = [changed(make_run(), "config", model=hostile), with_claims(make_run(), a="supported")]
    path = write_comparison(runs, tmp_path / "compare.html")
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\u202e" not in page
    assert "⟨U+202E⟩" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "default-src 'none'" in page
    assert page.count("<svg") == 2, "two figures, each drawn once"
    json.dumps([row._asdict() for row in compare(runs).settings.itertuples()], default=str)


def test_dollar_signs_in_a_name_are_no_formula(make_run, tmp_path):
    runs = [changed(make_run(n_neurons=300), "config", model=r"a$\foo$b_c"), make_run(n_neurons=300)]
    page = write_comparison(runs, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert r"a$\foo$b_c, step 512" in page
    assert "a$\\foo$b c" not in page


def test_panels_of_one_model_are_named_by_their_folders(make_run):
    frame = FIGURES["slope-distributions"].frame(make_run(n_neurons=300), make_run(n_neurons=300))
    assert frame["model"].unique().tolist() == ["embedded series (run0)", "embedded series (run1)"]


def test_released_definitions_have_no_phases_of_the_papers(make_run):
    table = compare([make_run(n_neurons=600, definitions="released"), make_run()]).runs
    assert table["definitions"].tolist() == ["released", "paper"]
    assert table["kappa"].isna().all()
    assert "--definitions paper" in table["reason"].iloc[0]
