"""Tests each group's statistic against uniform and matched random groups, from the run's tables (Tables 1-4)."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.claims import Comparison, against_groups
from rareneuron.maths.significance import AgainstNull
from rareneuron.maths.specificity import ROLES
from rareneuron.runs.groups import unit_rows, without_random_pairs

LABELS = {
    "abs_correlation": "|correlation|",
    "abs_cosine": "|cosine|",
    "d_eff_zscored": "effective dimension of z-scored activations",
}
COUNTS = ("d_eff_zscored",)  # whole numbers
SIGNED = ("correlation", "cosine")  # judged by their sizes where the model leaves the signs of its neurons open
OLDER = (
    "The run was made by an earlier version, whose numbers rest on signs or lengths that this model leaves open. Run "
    "the study again in another folder."
)
RELEASED = (
    "The run computed this by the released scripts' definitions, and claims are judged by the paper's. Run the study "
    "with --definitions paper in another folder."
)
WITH_RANDOM = tuple(f"{role}-random" for role in ROLES)


def row_of(rows: pd.DataFrame, **where: str) -> AgainstNull:
    """Return the one row of a table that has these names, as a comparison with a null."""
    chosen = rows[np.logical_and.reduce([rows[column].to_numpy() == value for column, value in where.items()])]
    if len(chosen) != 1:
        raise RareNeuronError(f"The run holds {len(chosen)} comparisons of {', '.join(where.values())}, not one.")
    found = chosen.iloc[0]
    numbers: dict[str, Any] = {  # older runs lack some
        f.name: np.nan if found.get(f.name) is None else float(found[f.name]) for f in fields(AgainstNull)
    }
    numbers["n_draws"] = int(found["n_draws"])
    return AgainstNull(**numbers)


def group_tests(
    rows: pd.DataFrame, statistic: str, groups: Sequence[str], *, above: bool, label: str = "", **where: str
) -> list[Comparison]:
    """Return the tests of each group against uniform and matched random groups."""
    nulls = [null for null in ("uniform", "matched") if (rows["null"] == null).any()]
    label, step = label or LABELS.get(statistic, statistic), float(statistic in COUNTS)
    return [
        against_groups(
            row_of(rows, statistic=statistic, group=group, null=null, **where),
            label,
            group,
            null,
            above=above,
            step=step,
        )
        for group in groups
        for null in nulls
    ]


def geometry(case: Case, rng: np.random.Generator, *, statistic: str, groups: Sequence[str], above: bool) -> Evidence:
    """Return the tests of one statistic of Tables 1-3, of its size where its sign means nothing."""
    if case.run.definitions == "released":
        return Unavailable(RELEASED)
    rows = case.geometry
    if statistic in SIGNED and case.gauge.sign:
        statistic = f"abs_{statistic}"
        if not (rows["statistic"] == statistic).any():
            return Unavailable(OLDER)
    lacking = without_random_pairs(case.run.folder())
    for group in groups:
        if group in lacking:
            return Unavailable(lacking[group])
    return group_tests(rows, statistic, groups, above=above)


def heavy_tail(case: Case, rng: np.random.Generator, *, matrix: str) -> Evidence:
    """Return the tests of Table 4 on one weight matrix; `differs_since` in claims.json says since which step."""
    if case.run.definitions == "released":
        return Unavailable(RELEASED)
    rows, of_unit_rows = case.spectrum, matrix in unit_rows(case.run.folder())
    if matrix in case.gauge.open_lengths and not of_unit_rows:
        return Unavailable(OLDER)
    label = f"α_Hill in {matrix}" + (", rows of length 1" if of_unit_rows else "")
    return group_tests(rows, "alpha_hill", ROLES, above=False, label=label, matrix=matrix)


# Dimensions are those of z-scored activations, so that neurons with large activations don't decide them.
TABLES: dict[str, Maker] = {
    "correlation-within": partial(geometry, statistic="correlation", groups=ROLES, above=True),
    "correlation-random": partial(geometry, statistic="correlation", groups=WITH_RANDOM, above=False),
    "dimension": partial(geometry, statistic="d_eff_zscored", groups=ROLES, above=False),
    "cosine-within": partial(geometry, statistic="cosine", groups=ROLES, above=True),
    "cosine-across": partial(geometry, statistic="cosine", groups=("boosting-suppressing",), above=True),
    "cosine-random": partial(geometry, statistic="cosine", groups=WITH_RANDOM, above=False),
    "heavy-tail-W_in": partial(heavy_tail, matrix="W_in"),
    "heavy-tail-W_gate": partial(heavy_tail, matrix="W_gate"),
    "heavy-tail-W_out": partial(heavy_tail, matrix="W_out"),
}
