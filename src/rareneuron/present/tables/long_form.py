"""The tables in long form: a row for each value and null, and one for each value that the paper prints.

Values are the run's own (`geometry.json`, `spectrum.json`): nothing is computed here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from rareneuron.present.published import GROUP_SIZE, GROUPS, N_TOKENS, Number, paper_row
from rareneuron.present.readable import rows_or_reason
from rareneuron.present.subject import Subject, subject
from rareneuron.present.tables.layouts import LAYOUTS, NUMBERS
from rareneuron.runs.run import Run

COLUMNS = (
    *("table", "origin", "model", "n_params", "step", "layer", "definitions", "statistic", "matrix"),
    *("group_size", "n_tokens", "group", "value", "null", "null_mean", "null_low", "null_high"),
    *("effect_size", "p", "n_draws", "matched_on", "reason"),
)
OF_A_NULL = ("null", "null_mean", "null_low", "null_high", "effect_size", "p", "n_draws")


def long_table(number: Number, runs: Iterable[Run], step: int | None = None) -> pd.DataFrame:
    """Return a row for each run, statistic, matrix, group and null, and for each of the paper's values (`origin`)."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        of = subject(run, step)
        rows += rows_of(number, of) + printed_rows(number, of)
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(table=number)


def all_tables(runs: Sequence[Run], step: int | None = None) -> pd.DataFrame:
    """Return all four tables in one long form."""
    return pd.concat([long_table(number, runs, step) for number in NUMBERS], ignore_index=True)


def rows_of(number: Number, of: Subject) -> list[dict[str, Any]]:
    """Return a checkpoint's own rows; a checkpoint without groups has one row with the reason."""
    found = rows_or_reason(of.run, LAYOUTS[number].part, of.step)
    shared = {"origin": "this run"} | of.facts
    if isinstance(found, str):
        return [shared | {"reason": found}]
    shared["matched_on"] = of.run.groups(of.step).matched_on
    statistics = LAYOUTS[number].statistics[shared["definitions"]]
    found = found[found["statistic"].isin(list(statistics)) & found["group"].isin(GROUPS[number])]
    found = found.assign(order=found["statistic"].map(list(statistics).index)).sort_values("order", kind="stable")
    names = ["statistic", "group", "value", *OF_A_NULL, *(["matrix"] if "matrix" in found else [])]
    return [shared | row for row in found[names].to_dict("records")]


def printed_rows(number: Number, of: Subject) -> list[dict[str, Any]]:
    """Return the paper's values, where it has this model."""
    if of.in_paper is None:
        return []
    shared = {"origin": "paper", "model": of.in_paper, "group_size": GROUP_SIZE, "n_tokens": N_TOKENS}
    values = paper_row(number, of.in_paper)
    return [shared | {"group": group, "value": float(value)} for group, value in values.items()]
