"""What the commands print of runs: tables, and text over several lines. Colours are the command line's."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from rareneuron.conclude.layers import layer_profile
from rareneuron.conclude.mechanism import SHARES, chosen_neurons, mechanisms
from rareneuron.errors import RareNeuronError
from rareneuron.maths.claims import Claims
from rareneuron.maths.phases import Phases
from rareneuron.maths.released import FIT, LATE_FIT, ReleasedPhases
from rareneuron.runs.claims import as_record
from rareneuron.runs.run import Run

GROUP_COLUMNS = ["role", "neuron", "rank", "delta_loss", "delta_loss_se", "abs_delta_loss", "common_delta_loss"]


def groups_table(run: Run, step: int | None = None) -> pd.DataFrame:
    """Return the boosting and suppressing groups, largest mean |Δ| first; what wasn't measured is missing."""
    groups = run.groups(step)
    table = run.effects(step)
    members = [table.iloc[index] for index in (groups.boosting, groups.suppressing)]
    return pd.concat(members).reindex(columns=GROUP_COLUMNS).reset_index(drop=True)


UNIT_COLUMNS = ["unit", "abs_delta_loss", "abs_delta_loss_se", "abs_delta_loss_half_width", "delta_loss"]
UNIT_COLUMNS += ["common_abs_delta_loss", "here_share", "certainty", "undecided"]


def largest_units(run: Run, step: int | None, units: str, top: int) -> pd.DataFrame:
    """Return the units with the largest mean |Δ| of all layers, neurons and heads apart or together."""
    table = run.layers(step)
    if units != "both":
        table = table[table["kind"] == units.removesuffix("s")]
    return table.nlargest(top, "abs_delta_loss").reindex(columns=UNIT_COLUMNS).reset_index(drop=True)


def layer_profiles(run: Run, step: int | None, units: str) -> pd.DataFrame:
    """Return one row per layer and kind of unit: shares of all effects, rare over common, with intervals."""
    there = set(run.layers(step)["kind"])
    kinds = [kind for kind in ("neurons", "heads") if kind.removesuffix("s") in there and units in ("both", kind)]
    if not kinds:
        raise RareNeuronError(f"The study of {run.path} looked at no {units}. Those it has: {', '.join(there)}.")
    return pd.concat([layer_profile(run, step, kind).assign(kind=kind) for kind in kinds], ignore_index=True)


MECHANISM_COLUMNS = ["neuron", "delta_loss", "abs_delta_loss", *SHARES, "entropy_change", "null_space_share"]
MECHANISM_COLUMNS += ["frequency_cosine", "role", "kind"]


def mechanism_table(run: Run, step: int | None, top: int, neurons: tuple[str, ...]) -> pd.DataFrame:
    """Return how the largest neurons act, or those that are named."""
    table = mechanisms(run, step)
    return chosen_neurons(table, neurons) if neurons else table.head(top)


def mechanism_text(table: pd.DataFrame) -> str:
    """Return the table without intervals, which --json has."""
    shown = table[[name for name in MECHANISM_COLUMNS if name in table]]
    return shown.to_string(index=False, na_rep="–", float_format="{:.3g}".format)


def published_text(table: pd.DataFrame, model: str) -> str:
    """Return the neurons of a published list beside what they are here, and how many agree."""
    columns = ["neuron", "published", "kind", "agrees", *SHARES, "null_space_share", "frequency_cosine"]
    shown = table[[name for name in columns if name in table]]
    of_kind = table.groupby("published", sort=False)["agrees"].agg(["sum", "size"])
    counts = ", ".join(f"{row['sum']} of {row['size']} {kind}" for kind, row in of_kind.iterrows())
    text = shown.to_string(index=False, na_rep="–", float_format="{:.3g}".format)
    return f"{text}\n\nPublished for {model} and found here: {counts} neurons."


def beside_nulls(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return one row per statistic and group, with the mean of each kind of null and its p as columns."""
    kinds = [kind for kind in ("uniform", "matched", "marchenko-pastur") if kind in set(rows["null"])]
    out = rows.drop_duplicates(keys)[[*keys, "value"]]
    for kind in kinds:
        of_kind = rows[rows["null"] == kind][[*keys, "null_mean", "p"]]
        out = out.merge(of_kind.rename(columns={"null_mean": kind, "p": f"p {kind}"}), on=keys, how="left")
    return out


def claims_record(claims: Claims) -> dict[str, Any]:
    """Return claims and checks as plain JSON."""
    return {
        "step": claims.step,
        "claims": [as_record(claim) for claim in claims.claims],
        "checks": [asdict(check) | {"holds": check.holds} for check in claims.checks],
    }


def claims_text(claims: Claims) -> str:
    """Return a table of the claims, a sentence for each, and the checks of the measurement."""
    columns = ["name", "effect", "effect_low", "effect_high", "p", "p_holm", "smallest", "detectable", "verdict"]
    table = pd.DataFrame([asdict(claim) for claim in claims.claims])[columns]
    table = table.astype({"smallest": float, "detectable": float})  # None in runs of older versions
    table = table.rename(columns={"smallest": "matters", "detectable": "found_from"})
    return "\n".join(
        [
            table.to_string(index=False, na_rep="–", float_format="{:.3g}".format),
            "",
            *(f"{c.title}: {c.verdict}.\n    {c.sentence}" for c in claims.claims),
            "",
            "The measurement itself:",
            *(f"{c.title}.\n    {c.sentence}" for c in claims.checks),
        ]
    )


def claim_tests(claims: Claims) -> pd.DataFrame:
    """Return one row per test that a claim rests on; `effect` and p are in the claimed direction."""
    columns = ["group", "null", "value", "null_mean", "effect", "effect_low", "effect_high", "p", "detectable"]
    rows = [{"claim": claim.name, **asdict(test)} for claim in claims.claims for test in claim.tests]
    return pd.DataFrame(rows, columns=["claim", "statistic", *columns])


def phases_text(found: Phases, title: str) -> str:
    """Return the verdict and what it rests on, over several lines."""

    def interval(name: str, form: str) -> str:
        if name not in found.intervals:
            return ""
        low, high = found.intervals[name]
        return f" (95 % {low:{form}} … {high:{form}})"

    null = {name: f"p = {p:.2g}" for name, p in found.null_p.items()}
    plateau = decay = "none"
    if found.plateau_end is not None and found.plateau_share is not None:
        plateau = f"ranks 1 … {found.plateau_end}{interval('plateau_end', '.0f')}, {found.plateau_share:.1%} of them"
    if found.decay_start is not None and found.decay_share is not None:
        decay = f"from rank {found.decay_start}{interval('decay_start', '.0f')}, {found.decay_share:.1%} of them"
    families = ", ".join(f"{name} {null[name]}" for name in ("half-normal", "exponential", "lognormal"))
    return "\n".join(
        [
            f"{title}: {found.outcome}",
            f"Line       κ = {found.kappa:.3f}{interval('kappa', '.3f')}",
            f"           β = {found.beta:.3f}{interval('beta', '.3f')}",
            f"           ranks {found.fit_first} … {found.fit_last}, R² = {found.r_squared:.4f}",
            f"Power law  against {families}",
            f"Plateau    {plateau}; against a straight curve {null['no plateau']}",
            f"Decay      {decay}; against a power law {null['no decay']}",
            f"Breaks     of κ at ranks {', '.join(map(str, found.breaks)) or 'none'}",
            f"Neurons    {found.n_neurons:,}, {found.n_zero:,} of them without effect",
        ]
    )


def released_text(found: ReleasedPhases, title: str) -> str:
    """Return the numbers of released definitions, and say why they have no verdict."""
    fits = [f"over log rank {first} … {last}" for first, last in (FIT, LATE_FIT)]
    return "\n".join(
        [
            f"{title}: no outcome, these boundaries are constants and nothing is tested",
            f"Line       κ = {found.kappa:.3f}, β = {found.beta:.3f} {fits[0]}",
            f"           κ = {found.kappa_late:.3f}, β = {found.beta_late:.3f} {fits[1]}",
            f"Plateau    ranks 1 … {found.plateau_end}, whatever the curve",
            f"Decay      from rank {found.decay_start}, whatever the curve",
            f"Slope      truncated from rank {found.truncated_from}: kinks at log(n/6) whatever the curve",
            f"Neurons    {found.n_neurons:,}",
        ]
    )
