"""What a run found in a few sentences, also where there is nothing to compare."""

import json
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from rareneuron.present.summary import largest_effect, nulls_of_step_zero, step_zero, study_summary
from rareneuron.runs.files import read_json, read_table, write_json, write_table
from rareneuron.runs.run import Run, open_run

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


def test_the_summary_says_whose_phases_they_are(make_run: MakeRun) -> None:
    said = [study_summary(make_run(n_neurons=600, definitions=name))["lines"] for name in ("paper", "released")]
    paper, released = (next(line for line in lines if line.startswith("Phases")) for lines in said)
    assert "(definitions: paper): unknown. The run folder holds no phases" in paper
    assert re.fullmatch(
        r"Phases \(definitions: released, which test nothing\): boosting κ = \d\.\d+; suppressing κ = \d\.\d+", released
    )


def test_step_0_is_the_null_of_a_later_one(make_run: MakeRun) -> None:
    run = make_run(n_neurons=600, steps=(0, 8, 512), definitions="released")
    for step, ranking in ((8, "boosting"), (None, "suppressing")):
        null, found = (run.phases(at, ranking).kappa for at in (0, step))
        assert step_zero(run, step, ranking, "released") == (
            f"Step 0, before any training, is the null ({ranking}): it gives κ = {null:.3f}; step {step or 512} gives "
            f"κ = {found:.3f}."
        )
    assert [sentence.split("(")[1].split(")")[0] for sentence in nulls_of_step_zero(run)] == ["boosting", "suppressing"]


@pytest.mark.parametrize(("steps", "step"), [((8, 512), None), ((0, 512), 0), ((0,), None), ((0, None), None)])
def test_there_is_no_null_without_step_0_or_a_later_one(make_run: MakeRun, steps: tuple, step: int | None) -> None:
    run = make_run(n_neurons=600, steps=steps, definitions="released")
    assert step_zero(run, step, "boosting", "released") is None


def test_what_a_folder_of_text_leaves_out_is_said(make_run: MakeRun) -> None:
    path, said = make_run().path / "run.json", []
    for description in ("1 file in c (1 .txt)", "1 file in c (1 .txt); left out: LICENSE.txt"):
        record = read_json(path)
        write_json(path, record | {"data": record["data"] | {"description": description}})
        lines = study_summary(open_run(path.parent))["lines"]
        said.append([line for line in lines if line.startswith("Text")])
    assert said == [[], ["Text: 1 file in c (1 .txt); left out: LICENSE.txt"]]


def test_what_is_missing_is_said_and_why(make_run: MakeRun) -> None:
    run = make_run()
    assert not [line for line in study_summary(run)["lines"] if line.startswith("Missing")]
    path = run.folder() / "geometry.json"
    why = "The random groups hold 72 neurons in all."
    write_json(path, read_json(path) | {"missing": {"boosting-suppressing": why, "random-random": why}})
    assert study_summary(run)["lines"][-1] == (
        "Missing: random pairs for boosting-suppressing and random pairs for random-random "
        "(The random groups hold 72 neurons in all.)"
    )
    none = make_run(unavailable="There are 3 boosting neurons.")
    assert study_summary(none)["lines"][-1] == "Missing: geometry and spectrum (There are 3 boosting neurons.)"
