"""The long form: the run's own numbers, each beside its nulls."""

from collections.abc import Callable

import pandas as pd
import pytest

from rareneuron.errors import RunFolderError
from rareneuron.present.published import Number
from rareneuron.present.tables import long_table, paper_table
from rareneuron.present.tables.layouts import NUMBERS
from rareneuron.present.tables.long_form import COLUMNS
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_long_form_is_the_runs_own_rows(make_run: MakeRun, number: Number) -> None:
    run = make_run()
    table = long_table(number, [run])
    assert tuple(table.columns) == COLUMNS
    statistics = {1: ["correlation", "abs_correlation"], 3: ["cosine", "abs_cosine"], 4: ["alpha_hill"]}.get(
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
