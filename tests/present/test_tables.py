"""Tables hold the run's own numbers, every one beside its nulls, and the paper's beside its own models alone."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareneuron.errors import RunFolderError
from rareneuron.present.published import GROUPS, MODELS, Number, published
from rareneuron.present.tables import (
    COLUMNS,
    NUMBERS,
    all_tables,
    fixed,
    long_table,
    paper_table,
    save_tables,
    table_text,
    tables_text,
    write_tables,
)
from rareneuron.present.typeset import as_latex, as_markdown
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def of_hub(run: Run, source: str, **changes: Any) -> Run:
    """The same run, its weights from the Hub."""
    for path in (run.path / "steps").glob("*/step.json"):
        record = read_json(path)
        record["model"] |= {"source": source, "commit": "c" * 40}
        write_json(path, record)
    manifest = run.manifest | {"config": run.manifest["config"] | {"model": source} | changes.pop("config", {})}
    write_json(run.path / "run.json", manifest | changes)
    return Run(run.path)


def cell(text: str) -> float:
    return float(text.replace("−", "-"))


# --- the paper's own numbers


@pytest.mark.parametrize("number", NUMBERS)
def test_the_paper_has_five_models_in_every_table(number: Number) -> None:
    for name in dict.fromkeys(MODELS.values()):
        values = published(number, name)
        assert tuple(values) == GROUPS[number]
        assert all(np.isfinite(float(value)) for value in values.values())


def test_published_values_are_found_by_model_and_group() -> None:
    assert published(1, "GPT2-XL")["suppressing-random"] == "-0.0004"
    assert published(2, "Pythia-410M") == {"boosting": "33", "suppressing": "32.2", "random": "37.3"}
    assert published(3, "GPT2-Small")["boosting-random"] == "-0.100"
    assert published(4, "GPT2-Large")["suppressing"] == "1.84"
    with pytest.raises(KeyError):
        published(1, "Pythia-1B")


def test_what_the_paper_says_of_its_tables_is_so() -> None:
    """Its text: α_Hill and dimension below random throughout; one number out of order would show here."""
    for name in dict.fromkeys(MODELS.values()):
        for number in (2, 4):
            row = {group: float(value) for group, value in published(number, name).items()}
            assert max(row["boosting"], row["suppressing"]) < row["random"], (number, name)
        cosine = {group: float(value) for group, value in published(3, name).items()}
        assert max(cosine["boosting-random"], cosine["suppressing-random"]) < 0 < cosine["boosting-suppressing"]


# --- long form


@pytest.mark.parametrize("number", NUMBERS)
def test_the_long_form_is_the_runs_own_rows(make_run: MakeRun, number: Number) -> None:
    run = make_run()
    table = long_table(number, [run])
    assert tuple(table.columns) == COLUMNS
    statistics = {1: ["correlation"], 3: ["cosine"], 4: ["alpha_hill"]}.get(
        number, ["d_eff", "d_eff_share", "d_eff_zscored", "d_eff_zscored_share"]
    )
    assert list(table["statistic"].unique()) == statistics
    source = run.spectrum() if number == 4 else run.geometry()
    keys = [*(["matrix"] if number == 4 else []), "statistic", "group", "null"]
    values = ["value", "null_mean", "null_low", "null_high", "effect_size", "p", "n_draws"]
    wanted = source[source["statistic"].isin(statistics)].sort_values(keys)
    found = table.sort_values(keys)
    pd.testing.assert_frame_equal(
        found[keys + values].reset_index(drop=True), wanted[keys + values].reset_index(drop=True), check_dtype=False
    )
    facts = table[["table", "origin", "model", "n_params", "step", "layer", "definitions", "group_size", "n_tokens"]]
    assert facts.drop_duplicates().to_numpy().tolist() == [
        [number, "this run", "embedded series", 1000, 512, 3, "paper", 5, 12]
    ]
    assert (table["matrix"].unique().tolist() == ["W_in", "W_out"]) == (number == 4)


def test_another_step_is_another_table_and_a_missing_one_is_refused(make_run: MakeRun) -> None:
    run = make_run(steps=(0, 512))
    first, last = long_table(3, [run], 0), long_table(3, [run])
    assert (set(first["step"]), set(last["step"])) == ({0}, {512})
    assert first["value"].tolist() != last["value"].tolist()
    with pytest.raises(RunFolderError, match="no results for step 7"):
        paper_table(3, [run], 7)


def test_released_definitions_have_one_kind_of_dimension(make_run: MakeRun) -> None:
    run = make_run(definitions="released")
    assert set(long_table(2, [run])["definitions"]) == {"released"}
    assert {row[1] for row in paper_table(2, [run]).rows} == {"z-scored", "z-scored, share"}
    assert {row[1] for row in paper_table(2, [make_run()]).rows} == {
        *("covariance", "covariance, share", "z-scored", "z-scored, share")
    }


# --- the paper's layout


@pytest.mark.parametrize("number", NUMBERS)
def test_every_cell_of_the_layout_is_a_number_of_the_long_form(make_run: MakeRun, number: Number) -> None:
    run = make_run()
    table, long = paper_table(number, [run]), long_table(number, [run])
    labels = {"mean, random": "uniform", "mean, matched": "matched", "mean, directions": "marchenko-pastur"}
    checked = 0
    for row in table.rows:
        kind, name, cells = row[1], row[table.n_words - 1], row[table.n_words :]
        part = long
        if number == 2:
            stem = "d_eff_zscored" if kind.startswith("z") else "d_eff"
            part = long[long["statistic"] == (f"{stem}_share" if kind.endswith("share") else stem)]
        elif number == 4:
            part = long[long["matrix"] == kind]
        column = "value" if name == "this run" else "p" if name.startswith("p, ") else "null_mean"
        if name != "this run":
            part = part[part["null"] == labels[name.replace("p, ", "mean, ")]]
        values = part.drop_duplicates("group").set_index("group")[column].reindex(GROUPS[number])
        for text, value in zip(cells, values, strict=True):
            assert (text == "–") == bool(np.isnan(value)), row
            if text != "–":
                assert cell(text) == pytest.approx(value, abs=0.051 if number == 2 else 0.0051), row
                checked += 1
    assert checked == {1: 27, 2: 28, 3: 27, 4: 34}[number]


def test_captions_and_notes_name_what_the_numbers_rest_on(make_run: MakeRun) -> None:
    run = make_run()
    for number in NUMBERS:
        table = paper_table(number, [run])
        assert len(table.notes) == 1
        for words in (
            *("embedded series, step 512", "definitions “paper”", "layer 3, the last", "groups of 5 neurons"),
            *("12 rare tokens", "99 random groups", "99 matched groups (alike in mean |activation|)"),
        ):
            assert words in table.notes[0], number
    assert "look like counts out of 50 of z-scored" in paper_table(2, [run]).caption
    assert "W_in of Pythia and W_out of GPT-2" in paper_table(4, [run]).caption


def test_too_few_neurons_give_a_row_with_the_reason(make_run: MakeRun) -> None:
    runs = [make_run(), make_run(unavailable="There are 3 boosting neurons.", model="lab/tiny")]
    for number in NUMBERS:
        long, table = long_table(number, runs), paper_table(number, runs)
        assert long["reason"].dropna().tolist() == ["There are 3 boosting neurons."]
        assert table.rows[-1][0] == "tiny, step 512"
        assert set(table.rows[-1][table.n_words :]) == {"–"}
        assert "nothing to compare. There are 3 boosting neurons." in " ".join(table.notes)


def test_a_run_without_geometry_says_so_in_words_that_name_no_folder(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "steps" / "512" / "geometry.json").unlink()
    reason = long_table(1, [run])["reason"].iloc[0]
    assert "holds no geometry of this checkpoint" in reason
    assert str(run.path) not in reason
    assert long_table(4, [run])["reason"].isna().all()


def test_the_same_model_twice_is_told_apart(make_run: MakeRun) -> None:
    runs = [make_run(), make_run()]
    labels = list(dict.fromkeys(row[0] for row in paper_table(1, runs).rows))
    assert labels == [f"embedded series, step 512 ({run.path.name})" for run in runs]


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        *((0.0213, 3, "0.021"), (-0.0004, 3, "−0.0004"), (0.0, 3, "0.000"), (-1e-9, 3, "0.0000"), (30.0, 1, "30")),
        *((33.316, 1, "33.3"), (None, 2, "–"), (float("inf"), 2, "–"), (-1.5, 2, "−1.50")),
    ],
)
def test_numbers_are_printed_as_in_the_paper(value: float | None, decimals: int, text: str) -> None:
    assert fixed(value, decimals) == text


# --- beside the paper's


def test_the_papers_values_stand_beside_its_own_models(make_run: MakeRun) -> None:
    run = of_hub(make_run(steps=(None,)), "EleutherAI/pythia-70m")
    for number in NUMBERS:
        table, long = paper_table(number, [run]), long_table(number, [run])
        row = table.rows[-1]
        assert row[table.n_words - 1] == "paper: Pythia-70M"
        values = published(number, "Pythia-70M")
        assert row[table.n_words :] == tuple(value.replace("-", "−") for value in values.values())
        printed = long[long["origin"] == "paper"]
        assert dict(zip(printed["group"], printed["value"], strict=True)) == {k: float(v) for k, v in values.items()}
        assert set(printed["group_size"]) == {50}
        assert "the paper's values are of groups of 50" in " ".join(table.notes)
    assert (paper_table(4, [run]).rows[-1][1], paper_table(2, [run]).rows[-1][1]) == ("not said", "not said")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("EleutherAI/pythia-70m-deduped", "trained on deduplicated text, so not the paper's Pythia-70M"),
        ("EleutherAI/pythia-160m", None),
        ("somebody/gpt2", None),
    ],
)
def test_other_models_have_none_of_the_papers_values(make_run: MakeRun, source: str, said: str | None) -> None:
    run = of_hub(make_run(), source)
    notes = " ".join(paper_table(1, [run]).notes)
    assert set(all_tables([run])["origin"]) == {"this run"}
    assert "paper:" not in tables_text([run], "md")
    assert ("paper's" in notes) == (said is not None)
    assert said is None or said in notes


def test_a_folder_of_the_same_name_and_another_layer_have_none(make_run: MakeRun) -> None:
    folder = make_run(model="EleutherAI/pythia-70m")  # no commit: it wasn't loaded from the Hub
    assert set(long_table(1, [folder])["origin"]) == {"this run"}
    assert long_table(1, [folder])["model"].iloc[0] == "pythia-70m"
    middle = of_hub(make_run(), "gpt2-xl", config={"layer": 3}, n_layers=48)
    assert set(long_table(1, [middle])["origin"]) == {"this run"}
    assert "are of the last layer" in " ".join(paper_table(1, [middle]).notes)
    last = of_hub(make_run(), "gpt2-xl", config={"layer": 3}, n_layers=4)
    assert "paper" in set(long_table(1, [last])["origin"])


def test_an_early_checkpoint_is_told_from_the_papers(make_run: MakeRun) -> None:
    notes = [
        " ".join(paper_table(1, [of_hub(make_run(steps=(step,)), "EleutherAI/pythia-410m")]).notes)
        for step in (512, 143_000, None)
    ]
    assert ["presumably of the last checkpoint, 143,000; this is another one" in note for note in notes] == [
        *(True, False, False)
    ]


# --- as text


def test_markdown_is_a_table_whatever_the_model_is_called(make_run: MakeRun) -> None:
    run = make_run(model="a|b*c_`d`<i>\n[x](y)\u202e\ud800")
    text = as_markdown(paper_table(4, [run]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert r"a\|b\*c_\`d\`\<i>↵\[x](y)⟨U+202E⟩⟨U+D800⟩, step 512" in lines[2]
    assert lines[3].startswith("|  |  | mean, random |"), "what repeats is left out"
    assert lines[9].startswith("|  | W_out | this run |")


def test_latex_is_balanced_and_escaped(make_run: MakeRun) -> None:
    text = as_latex(paper_table(1, [make_run(model="50%_{x}~^&#$\\")]))
    assert r"50\%\_\{x\}\textasciitilde{}\textasciicircum{}\&\#\$\textbackslash{}, step 512" in text
    assert re.search(r"[^\x00-\x7f]", text) is None
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    rows = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}
    assert all(row.endswith(r"\\") for row in rows)
    assert r"\begin{tabular}{llrrrrrrr}" in text
    assert r"\textbar{}$\Delta$\textbar{}" in text


def test_csv_holds_all_digits(make_run: MakeRun) -> None:
    run = make_run()
    rows = list(csv.DictReader(io.StringIO(table_text(3, [run], "csv"))))
    assert [float(row["value"]) for row in rows] == long_table(3, [run])["value"].tolist()
    everything = list(csv.DictReader(io.StringIO(tables_text([run, run], "csv"))))
    assert len(everything) == 2 * sum(len(long_table(number, [run])) for number in NUMBERS)


def test_files_are_written_whole_beside_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    paths = write_tables(run)
    assert paths == [run.path / "tables" / f"table-{number}.csv" for number in NUMBERS]
    assert [path.read_text() for path in paths] == [table_text(number, [run], "csv") for number in NUMBERS]
    for form, suffix in (("md", "md"), ("latex", "tex")):
        found = save_tables([run], tmp_path / form, form)
        assert [path.suffix for path in found] == [f".{suffix}"] * 4
        assert "\n".join(path.read_text() for path in found) == tables_text([run], form)
    assert not list(run.path.rglob("*partial"))


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_the_same_runs_give_the_same_text(make_run: MakeRun, form: str) -> None:
    run = make_run()
    assert tables_text([run], form) == tables_text([Run(run.path)], form)
