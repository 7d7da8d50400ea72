"""The paper's layout: numbers of the long form, and the paper's beside its own models alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rareneuron.present.published import GROUPS, Number, paper_row
from rareneuron.present.tables import all_tables, long_table, paper_table, tables_text
from rareneuron.present.tables.layouts import NUMBERS
from rareneuron.present.tables.paper_form import fixed
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def of_hub(run: Run, source: str, **changes: Any) -> Run:
    """The same run, its weights from the Hub."""
    for path in (run.path / "steps").glob("*/step.json"):
        record = read_json(path)
        record["model"] |= {"source": source, "commit": "c" * 40}
        write_json(path, record)
    manifest = read_json(run.path / "run.json")
    manifest["config"] |= {"model": source} | changes.pop("config", {})
    write_json(run.path / "run.json", manifest | changes)
    return Run(run.path)


def cell(text: str) -> float:
    return float(text.replace("−", "-"))


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
        else:
            part = long[
                long["statistic"]
                == {"ρ": "correlation", "|ρ|": "abs_correlation", "|cosine|": "abs_cosine"}.get(kind, kind)
            ]
        column = "value" if name == "this run" else "p" if name.startswith("p, ") else "null_mean"
        if name != "this run":
            part = part[part["null"] == labels[name.replace("p, ", "mean, ")]]
        values = part.drop_duplicates("group").set_index("group")[column].reindex(GROUPS[number])
        for text, value in zip(cells, values, strict=True):
            assert (text == "–") == bool(np.isnan(value)), row
            if text != "–":
                assert cell(text) == pytest.approx(value, abs=0.051 if number == 2 else 0.0051), row
                checked += 1
    assert checked == {1: 54, 2: 28, 3: 54, 4: 34}[number]


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


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        *((0.0213, 3, "0.021"), (-0.0004, 3, "−0.0004"), (0.0, 3, "0.000"), (-1e-9, 3, "0.0000"), (30.0, 1, "30")),
        *((33.316, 1, "33.3"), (None, 2, "–"), (float("inf"), 2, "–"), (-1.5, 2, "−1.50")),
    ],
)
def test_numbers_are_printed_as_in_the_paper(value: float | None, decimals: int, text: str) -> None:
    assert fixed(value, decimals) == text


def test_the_papers_values_stand_beside_its_own_models(make_run: MakeRun) -> None:
    run = of_hub(make_run(steps=(None,)), "EleutherAI/pythia-70m")
    for number in NUMBERS:
        table, long = paper_table(number, [run]), long_table(number, [run])
        row = table.rows[-1]
        assert row[table.n_words - 1] == "paper: Pythia-70M"
        values = paper_row(number, "Pythia-70M")
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
