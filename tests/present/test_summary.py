"""What the command line prints of a run, where there is nothing to compare, too."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from rareneuron.pipeline.run import Run
from rareneuron.pipeline.store import read_table, write_table
from rareneuron.present.summary import groups_table, largest_effect, study_summary

MakeRun = Callable[..., Run]


def row(**changes: float) -> pd.Series:
    return pd.Series({"neuron": "3.7", "abs_delta_loss": 0.05, "delta_loss": -0.02, "delta_loss_se": 0.004} | changes)


def test_the_largest_effect_stands_beside_the_median() -> None:
    assert largest_effect(row(), 0.01) == (
        "Largest effect: neuron 3.7, mean |Δ| 0.05 nats, 5 times the median neuron's; mean Δ -0.02 ± 0.004"
    )


@pytest.mark.parametrize(
    ("changes", "median", "said"),
    [
        ({"abs_delta_loss": 0.0, "delta_loss": 0.0, "delta_loss_se": 0.0}, 0.0, "none, no neuron's ablation changes"),
        ({}, 0.0, "where the median neuron's is 0;"),
        ({"delta_loss_se": np.nan}, 0.01, "a single context gives no standard error"),
    ],
)
def test_what_cannot_be_had_is_said_in_words(changes: dict[str, float], median: float, said: str) -> None:
    line = largest_effect(row(**changes), median)
    assert said in line
    assert "nan" not in line
    assert "inf" not in line


def test_a_run_of_zeros_has_a_summary_in_valid_json(make_run: MakeRun) -> None:
    run = make_run(steps=(5,))
    path = run.path / "steps" / "5" / "effects.parquet"
    table = read_table(path)
    zeros = {name: 0.0 for name in table if "loss" in name or "kl" in name}
    write_table(path, table.assign(**zeros))
    summary = study_summary(run)
    json.dumps(summary, allow_nan=False)
    assert any("no neuron's ablation changes the loss" in line for line in summary["lines"])


def test_groups_without_common_targets_lack_only_those(make_run: MakeRun) -> None:
    columns = {common: groups_table(make_run(common=common)) for common in (True, False)}
    assert list(columns[True]) == list(columns[False])
    assert columns[True].notna().all(axis=None)
    assert list(columns[False].columns[columns[False].isna().any()]) == ["common_delta_loss"]
