"""Turns the scores of a task's items, with and without groups, into paired differences beside random groups.

Knows nothing of how items were scored (`swap` and `harness` do that). Oracle: tests/use/test_scores.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import ndtri

from rareneuron.maths.paired import POWER, beside_random, clustered, detectable, mean_weights, paired_change
from rareneuron.maths.significance import LEVEL

UNIFORM = "uniform"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of each item: without anything ablated, without each group, without each random group."""

    clean: Float[np.ndarray, " item"]
    without: Mapping[str, Float[np.ndarray, " item"]]  # by group
    random: Mapping[str, Float[np.ndarray, "_ item"]]  # `uniform` ones, and those `matched-…` to a group


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A task's items with all their measures."""

    task: str
    document: Int[np.ndarray, " item"]  # items of one aren't independent
    kinds: tuple[str, ...]  # such as rare and common
    kind: Int[np.ndarray, " item"]
    measures: Mapping[str, Measure]  # a larger number is better
    contrast: bool = False  # whether the first kind less the second is of interest


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some items of a task and how they are added up: those of one kind, or one kind less another."""

    name: str
    chosen: Int[np.ndarray, " chosen"]
    kind: Int[np.ndarray, " chosen"]
    sign: tuple[int, ...]

    def mean(self, values: Float[np.ndarray, "group item"]) -> Float[np.ndarray, " group"]:
        """Return the mean, or the difference of means, of each group's values."""
        return values[:, self.chosen] @ mean_weights(self.kind, self.sign)


def parts_of(scores: Scores) -> Iterator[Part]:
    """Yield each kind of item, and where there are two, the first less the second."""
    for k, name in enumerate(scores.kinds):
        chosen = np.flatnonzero(scores.kind == k)
        if len(chosen):
            yield Part(name=name, chosen=chosen, kind=np.zeros(len(chosen), np.int64), sign=(1,))
    if scores.contrast and len(np.unique(scores.kind)) == 2:
        first, second = scores.kinds
        every = np.arange(len(scores.kind))
        yield Part(name=f"{first} less {second}", chosen=every, kind=scores.kind, sign=(1, -1))


def summary(scores: Scores) -> pd.DataFrame:
    """Return one row for each part, measure, group and kind of random group; docs/run-folder.md has the columns."""
    rows: list[dict[str, Any]] = []
    for part in parts_of(scores):
        for name, measure in scores.measures.items():
            for group in measure.without:
                rows += rows_of(scores, part, name, measure, group)
    return pd.DataFrame(rows)


def rows_of(scores: Scores, part: Part, name: str, measure: Measure, group: str) -> list[dict[str, Any]]:
    """Return the rows of one group: one beside uniform, one beside matched random groups; one where there are none."""
    document = scores.document[part.chosen]
    change = (measure.without[group] - measure.clean)[part.chosen]
    found = paired_change(change, document, part.kind, part.sign)
    nulls = [null for null in (UNIFORM, f"matched-{group}") if null in measure.random]
    common = {
        "task": scores.task,
        "words": part.name,
        "group": group,
        "measure": name,
        "n_items": found.n_items,
        "n_documents": found.n_documents,
        "clean": float(part.mean(measure.clean[None])[0]),
        "change": found.change,
        "change_low": found.low,
        "change_high": found.high,
        "change_se": found.standard_error,
        "p": found.p_below,
    }
    rows = []
    for null in nulls or [""]:
        draws = measure.random.get(null, np.empty((0, len(measure.clean))))
        differences = draws[:, part.chosen] - measure.clean[part.chosen]
        weight = mean_weights(part.kind, part.sign)
        means, errors = clustered(differences, weight, part.kind, document)
        beside = beside_random(found.change, means)
        usual = float(np.median(errors)) if len(errors) else found.standard_error  # not the group's own, where known
        usual = usual if usual > 0 else np.nan  # no item changed, so nothing is known of how much they would
        rows.append(
            common
            | {
                "detectable": detectable(usual),
                "null": null.partition("-")[0],
                "null_mean": beside.mean,
                "null_low": beside.low,
                "null_high": beside.high,
                "null_p": beside.p_below if len(means) else np.nan,
                "null_groups": beside.n_groups,
                "detectable_beyond": beyond(means, usual),
            }
        )
    return rows


def beyond(draws: Float[np.ndarray, " draw"], standard_error: float) -> float:
    """Return how far below the mean of random groups a true change must lie to be found beside them, in 80 %."""
    if not len(draws):
        return np.nan
    return float(draws.mean() - np.quantile(draws, LEVEL) + ndtri(POWER) * standard_error)


def draws_table(scores: Scores) -> pd.DataFrame:
    """Return one row for each part, measure and random group: its mean change."""
    frames = []
    for part in parts_of(scores):
        for name, measure in scores.measures.items():
            for null, values in measure.random.items():
                change = part.mean(values - measure.clean)
                fixed = {"task": scores.task, "words": part.name, "null": null, "measure": name}
                frames.append(pd.DataFrame(fixed | {"draw": np.arange(len(change)), "change": change}))
    if not frames:
        return pd.DataFrame({n: [] for n in ("task", "words", "null", "measure", "draw", "change")})
    return pd.concat(frames, ignore_index=True)


def items_table(scores: Scores) -> pd.DataFrame:
    """Return one row for each item: task, document, kind, and each measure with everything and without each group."""
    columns: dict[str, Any] = {
        "task": scores.task,
        "item": np.arange(len(scores.document)),
        "document": scores.document,
        "words": np.array(scores.kinds, dtype=object)[scores.kind],
    }
    for name, measure in scores.measures.items():
        columns[name] = measure.clean
        columns |= {f"{name}_without_{group}": values for group, values in measure.without.items()}
    return pd.DataFrame(columns)
