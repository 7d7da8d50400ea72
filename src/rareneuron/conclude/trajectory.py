"""Follows the rank curve and its phases through training (Fig. 1a, 2, 3b): one table over checkpoints, and its trends.

All checkpoints are measured at the same tokens, so neurons can be followed. Columns that compare rankings are empty
where there is nothing to compare: without a plateau, without an earlier step, or for the last step with itself.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rareneuron.conclude.layers import shares
from rareneuron.errors import NotMeasured, RunFolderError
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import participation_ratio, rank_curve
from rareneuron.maths.reliability import overlap, rank_correlation
from rareneuron.maths.trend import onset, trend
from rareneuron.runs.layers import read_layers
from rareneuron.runs.rankings import SIGNS
from rareneuron.runs.run import Run

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}  # of mean |Δ| over neurons
TOP = 50  # neurons of the largest effects, whose overlap is given beside the plateau's, which may be absent
RELEASED_NUMBERS = ("kappa", "beta", "kappa_late", "beta_late")
FEWEST_STEPS = 3  # for a trend: two steps always show one
BETWEEN = ("correlation", "cosine", "abs_correlation", "abs_cosine")  # without signs where the model leaves them open
WITHIN = (*BETWEEN, "d_eff", "d_eff_zscored")  # statistics of the geometry that the table has


@dataclass(frozen=True, kw_only=True)
class CheckpointRanking:
    """One checkpoint's neurons ranked by mean |Δ|."""

    value: Float[np.ndarray, " neuron"]  # in the layer's order
    neuron: Int[np.ndarray, " rank"]
    phases: Phases | None

    @property
    def plateau(self) -> Int[np.ndarray, " member"] | None:
        """The plateau's neurons, or None where there is no plateau."""
        return None if self.phases is None or self.phases.plateau_end is None else self.top(self.phases.plateau_end)

    def top(self, n: int) -> Int[np.ndarray, " member"]:
        """Return the n neurons of the largest effects."""
        return self.neuron[:n]


def trajectory(run: Run) -> pd.DataFrame:
    """Return one row per finished checkpoint; docs/run-folder.md describes the columns.

    Phases are those of all neurons; by released definitions, those of each sign, in columns named for it.
    """
    rows, steps = [], run.steps
    last = ranking_at(run, steps[-1])
    before: CheckpointRanking | None = None
    for step in steps:
        here, record = ranking_at(run, step), run.step_record(step)
        after = None if step == steps[-1] else last
        rows.append(
            {
                "step": step,
                "loss_rare": record.loss_rare,
                "loss_common": record.loss_common,
                **{f"abs_delta_loss_{name}": float(np.quantile(here.value, q)) for name, q in QUANTILES.items()},
                "n_eff": participation_ratio(here.value),
                "definitions": run.definitions,
                **(released_columns(run, step) if run.definitions == "released" else phase_columns(here.phases)),
                **group_columns(run, step),
                **overlaps(here, after, "last"),
                **overlaps(here, before, "previous"),
                "rank_correlation_last": None if after is None else rank_correlation(here.value, after.value),
                **share_columns(run, step),
            }
        )
        before = here
    table = pd.DataFrame(rows)
    kinds = {"step": "Int64", "definitions": "str", "outcome": "str"}
    return table.astype({name: kinds.get(str(name), "float64") for name in table})


def share_columns(run: Run, step: int | None) -> dict[str, float]:
    """Return each layer's share of all effects at rare and at common targets; nothing for a study of one layer."""
    if not run.has_layers(step):
        return {}
    found = read_layers(run.folder(step))
    if "neurons.layer" not in found.sums:
        return {}
    out: dict[str, float] = {}
    for of, prefix in (("rare", ""), ("common", "common_")):
        totals = found.sums[f"neurons.{of}.abs_delta_loss"].astype(np.float64).sum(0)
        if totals.any():
            of_layers = zip(found.sums["neurons.layer"].tolist(), shares(totals), strict=True)
            out |= {f"{prefix}share_layer_{layer}": float(share) for layer, share in of_layers}
    return out


def ranking_at(run: Run, step: int | None) -> CheckpointRanking:
    """Return a checkpoint's ranking, with its phases where they are known by the paper's definitions."""
    value = run.effects(step)["abs_delta_loss"].to_numpy()
    phases = None
    if run.definitions == "paper":
        with suppress(NotMeasured):
            phases = run.phases(step)
    return CheckpointRanking(
        value=value, neuron=rank_curve(value).neuron, phases=phases if isinstance(phases, Phases) else None
    )


def phase_columns(phases: Phases | None) -> dict[str, float | str | None]:
    """Return the table's columns about phases; the outcome is `unavailable` where they are unknown."""
    if phases is None:
        numbers = "kappa kappa_low kappa_high beta r_squared plateau_end plateau_share plateau_height decay_start"
        return {"outcome": "unavailable"} | dict.fromkeys(numbers.split())
    low, high = phases.intervals.get("kappa", (None, None))
    end = phases.plateau_end
    return {
        "outcome": phases.outcome,
        "kappa": phases.kappa,
        "kappa_low": low,
        "kappa_high": high,
        "beta": phases.beta,
        "r_squared": phases.r_squared,
        "plateau_end": end,
        "plateau_share": phases.plateau_share,
        "plateau_height": None if end is None else float(phases.deviation[:end].mean()),
        "decay_start": phases.decay_start,
    }


def released_columns(run: Run, step: int | None) -> dict[str, float | None]:
    """Return the numbers of both lines for each sign; the boundaries are constants, so they aren't listed."""
    out: dict[str, float | None] = {}
    for ranking in SIGNS:
        found = None
        with suppress(NotMeasured):
            found = run.phases(step, ranking)
        out |= {f"{name}_{ranking}": getattr(found, name, None) for name in RELEASED_NUMBERS}
    return out


def group_columns(run: Run, step: int | None) -> dict[str, float]:
    """Return geometry and spectrum of both groups: value, mean of random groups, and the larger of both nulls' p.

    p is 1 where the value is above one null and below the other: it differs from both, but not in one direction.
    Empty where there are no groups, or where an older run lacks a part.
    """
    out: dict[str, float] = {}
    with suppress(NotMeasured, RunFolderError):
        wanted = set(geometry_columns())
        names = [(row, f"{row['statistic']}_{row['group'].replace('-', '_')}") for row in as_rows(run.geometry(step))]
        out |= against_nulls([(row, name) for row, name in names if name in wanted])
    with suppress(NotMeasured, RunFolderError):
        rows = [row for row in as_rows(run.spectrum(step)) if row["statistic"] == "alpha_hill"]
        out |= against_nulls(
            [(row, f"alpha_hill_{row['matrix']}_{row['group']}") for row in rows if row["group"] != "random"]
        )
    return out


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's comparisons with random groups, row by row, which is quicker than to filter it many times."""
    numbers = table.astype(dict.fromkeys(("value", "null_mean", "p"), "float64"))
    return [row for row in numbers.to_dict("records") if row["null"] in ("uniform", "matched")]


def against_nulls(named_rows: list[tuple[dict[str, Any], str]]) -> dict[str, float]:
    """Return the columns of each name: its value, the nulls' means, and p."""
    of_name: dict[str, list[dict[str, Any]]] = {}
    for row, name in named_rows:
        of_name.setdefault(name, []).append(row)
    out: dict[str, float] = {}
    for name, rows in of_name.items():
        out[name] = rows[0]["value"]
        means = {row["null"]: row["null_mean"] for row in rows}
        out |= {f"{name}_null": means.get("uniform", np.nan), f"{name}_matched": means.get("matched", np.nan)}
        one_side = len({row["value"] > row["null_mean"] for row in rows}) == 1
        out[f"{name}_p"] = max((row["p"] for row in rows if np.isfinite(row["p"])), default=np.nan) if one_side else 1.0
    return out


def geometry_columns() -> list[str]:
    """Return the names of the geometry's values that the table has."""
    roles = ("boosting", "suppressing")
    pairs = ("boosting_random", "suppressing_random", "boosting_suppressing")
    return [f"{name}_{role}" for name in WITHIN for role in roles] + [
        f"{name}_{pair}" for name in BETWEEN for pair in pairs
    ]


def onsets(trajectory: pd.DataFrame) -> pd.DataFrame:
    """Return since which step each value differs from random groups, at 5 %, at that step and every later one.

    column, since (missing where it doesn't at the last), value, means of uniform and of matched groups, p (at the
    last), n (steps that have it). Steps are not corrected for one another.
    """
    rows = []
    for column in [str(name).removesuffix("_p") for name in trajectory if str(name).endswith("_p")]:
        there = trajectory[trajectory[f"{column}_p"].notna()]
        first = onset(there[f"{column}_p"].to_numpy())
        last = there.iloc[-1] if len(there) else None
        rows.append(
            {
                "column": column,
                "since": pd.NA if first is None else there["step"].iloc[first],
                **{
                    name: np.nan if last is None else last[f"{column}{suffix}"]
                    for name, suffix in (("value", ""), ("uniform", "_null"), ("matched", "_matched"), ("p", "_p"))
                },
                "n": len(there),
            }
        )
    return pd.DataFrame(rows, columns=["column", "since", "value", "uniform", "matched", "p", "n"]).astype(
        {"since": "Int64"}
    )


def overlaps(here: CheckpointRanking, other: CheckpointRanking | None, name: str) -> dict[str, float | None]:
    """Return the overlaps of the plateau and of the largest effects with those of another step."""
    plateau, others = here.plateau, None if other is None else other.plateau
    return {
        f"plateau_overlap_{name}": None if plateau is None or others is None else overlap(plateau, others),
        f"top_overlap_{name}": None if other is None else overlap(here.top(TOP), other.top(TOP)),
    }


def trends(trajectory: pd.DataFrame) -> pd.DataFrame:
    """Return Kendall's τ of every column against the order of steps: column, tau, p (two-sided), n (values present).

    p is exact up to 33 steps, else a normal approximation. Checkpoints of one training depend on one another, so p says
    that a column moves steadily here, not that another training would do the same. p isn't corrected for the number of
    columns.
    """
    rows = []
    for column in trajectory.select_dtypes("number").columns.drop("step"):
        if column.endswith("_p"):  # a p at each step: its trend means nothing
            continue
        values = trajectory[column].to_numpy(np.float64)
        if column == "plateau_share":  # no plateau counts as one of size 0, if the phases are known
            values = np.where(np.isnan(values) & (trajectory["outcome"] != "unavailable"), 0.0, values)
        there = np.flatnonzero(np.isfinite(values))
        tau, p = trend(values[there]) if len(there) >= FEWEST_STEPS else (np.nan, np.nan)
        rows.append({"column": column, "tau": tau, "p": p, "n": len(there)})
    return pd.DataFrame(rows)
