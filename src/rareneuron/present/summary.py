"""What a run found, in five lines, its groups as a table, and step 0 as a null: what the command line prints."""

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from rareneuron.maths import Definitions
from rareneuron.maths.claims import Claims
from rareneuron.maths.phases import Phases
from rareneuron.maths.released import ReleasedPhases
from rareneuron.present.figures.claims import claims_or_reason
from rareneuron.present.figures.verdict import found_or_reason, verdict
from rareneuron.runs.claims import as_record
from rareneuron.runs.rankings import SIGNS, Ranking
from rareneuron.runs.run import Run

MOST_NAMED = 3  # claims of a verdict, in a line
GROUP_COLUMNS = ["role", "neuron", "rank", "delta_loss", "delta_loss_se", "abs_delta_loss", "common_delta_loss"]


def study_summary(run: Run) -> dict[str, Any]:
    """The last checkpoint's headline numbers, and the same as lines to print."""
    table, record, data = run.effects().sort_values("rank"), run.step_record(), run.manifest["data"]
    top, audit = table.iloc[0], record["audit"]
    median = table["abs_delta_loss"].median()
    steps = ["final" if step is None else str(step) for step in run.steps]
    common = "" if record["loss_common"] is None else f", {record['loss_common']:.3f} on common ones"
    lines = [
        (
            f"{data['n_rare']:,} rare and {data['n_common']:,} common tokens from {data['n_contexts']:,} contexts of "
            f"{data['corpus']}; checkpoints {', '.join(steps)}; at the last {record['loss_rare']:.3f} nats on rare "
            f"targets{common}"
        ),
        largest_effect(top, median),
        (
            f"{int((table['delta_loss'] > 0).sum()):,} neurons boost rare tokens (ablation hurts), "
            f"{int((table['delta_loss'] < 0).sum()):,} suppress them; {audit_line(audit)}"
        ),
        phases_line(run),
        claims_line(run),
    ]
    return {
        "run": str(run.path),
        "steps": run.steps,
        "n_rare": data["n_rare"],
        "n_common": data["n_common"],
        "loss_rare": record["loss_rare"],
        "loss_common": record["loss_common"],
        "top_neuron": top["neuron"],
        "top_abs_delta_loss": float(top["abs_delta_loss"]),
        "median_abs_delta_loss": float(median),
        "definitions": run.definitions,
        "audit": audit,
        "lines": lines,
    }


def audit_line(audit: dict[str, Any] | None) -> str:
    """How exact the effects are."""
    if audit is None:
        return "audit: none, the patching engine is itself the standard"
    return (
        f"audit: {audit['n_pairs']:,} pairs recomputed in float64, rms error {audit['rms_error']:.1e} nats, largest "
        f"{audit['max_error']:.1e}"
    )


def claims_line(run: Run) -> str:
    """What is supported by name, the rest by number."""
    claims = claims_or_reason(run)
    if isinstance(claims, str):
        return f"Claims: none. {claims}"
    told = []
    for kind, few in (("supported", len(claims)), ("inconclusive", MOST_NAMED), ("not supported", MOST_NAMED)):
        names = [claim.name for claim in claims if claim.verdict == kind]
        told.append(f"{len(names)} {kind}" + (f" ({', '.join(names)})" if 0 < len(names) <= few else ""))
    return f"Claims: {'; '.join(told)}"


def phases_line(run: Run) -> str:
    """Phases at the last checkpoint, and whose definitions made them."""
    if run.definitions == "paper":
        return f"Phases (definitions: paper): {in_short(found_or_reason(run, None, 'all', 'paper'))}"
    told = [f"{name} {in_short(found_or_reason(run, None, name, 'released'))}" for name in SIGNS]
    return f"Phases (definitions: released, which test nothing): {'; '.join(told)}"


def in_short(found: Phases | ReleasedPhases | str) -> str:
    """κ, and the outcome where there can be one; or the reason."""
    if isinstance(found, str):
        return f"unknown. {found}"
    return f"κ = {found.kappa:.3f}" + (f", {verdict(found)}" if isinstance(found, Phases) else "")


def step_zero(run: Run, step: int | None, ranking: Ranking, definitions: Definitions) -> str | None:
    """The untrained checkpoint as a null of a trained one, in a sentence; None where the series has none."""
    trained = run.steps[-1] if step is None else step
    if 0 not in run.steps or trained in (0, None):
        return None
    null, found = (found_or_reason(run, at, ranking, definitions) for at in (0, trained))
    if isinstance(null, str) or isinstance(found, str):
        return None
    return (
        f"Step 0, before any training, is the null ({ranking}): it gives {in_short(null)}; step {trained:,} gives "
        f"{in_short(found)}."
    )


def largest_effect(top: pd.Series, median: float) -> str:
    """The first neuron of the rank curve; in words where there is no effect, no median to compare, or no error."""
    size, error = top["abs_delta_loss"], top["delta_loss_se"]
    if size == 0:
        return "Largest effect: none, no neuron's ablation changes the loss at any analysed token"
    times = f"{size / median:.0f} times the median neuron's" if median > 0 else "where the median neuron's is 0"
    known = f"± {error:.2g}" if math.isfinite(error) else "(a single context gives no standard error)"
    mean = f"{top['delta_loss']:+.3g} {known}"
    return f"Largest effect: neuron {top['neuron']}, mean |Δ| {size:.3g} nats, {times}; mean Δ {mean}"


def nulls_of_step_zero(run: Run) -> list[str]:
    """That sentence for the last checkpoint, once for each ranking that the run's definitions go by."""
    rankings: tuple[Ranking, ...] = ("all",) if run.definitions == "paper" else SIGNS
    told = [step_zero(run, None, ranking, run.definitions) for ranking in rankings]
    return [sentence for sentence in told if sentence is not None]


def groups_table(run: Run, step: int | None = None) -> pd.DataFrame:
    """Members of the boosting and suppressing groups, largest mean |Δ| first; what wasn't measured is missing."""
    groups = run.groups(step)
    table = run.effects(step)
    members = [table.iloc[index] for index in (groups.boosting, groups.suppressing)]
    return pd.concat(members).reindex(columns=GROUP_COLUMNS).reset_index(drop=True)


def beside_nulls(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row a statistic and group, with the mean of each kind of null and its p in columns."""
    kinds = [kind for kind in ("uniform", "matched", "marchenko-pastur") if kind in set(rows["null"])]
    out = rows.drop_duplicates(keys)[[*keys, "value"]]
    for kind in kinds:
        of_kind = rows[rows["null"] == kind][[*keys, "null_mean", "p"]]
        out = out.merge(of_kind.rename(columns={"null_mean": kind, "p": f"p {kind}"}), on=keys, how="left")
    return out


def claims_record(claims: Claims) -> dict[str, Any]:
    """Claims and checks as plain JSON."""
    return {
        "step": claims.step,
        "claims": [as_record(claim) for claim in claims.claims],
        "checks": [asdict(check) | {"holds": check.holds} for check in claims.checks],
    }


def claims_text(claims: Claims) -> str:
    """A table of the claims, then a sentence each, then the checks of the measurement."""
    columns = ["name", "effect", "effect_low", "effect_high", "p", "p_holm", "verdict"]
    table = pd.DataFrame([asdict(claim) for claim in claims.claims])[columns]
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
    """Every test that a claim rests on, one row each; `effect` and p are in the claimed direction."""
    columns = ["group", "null", "value", "null_mean", "effect", "effect_low", "effect_high", "p"]
    rows = [{"claim": claim.name, **asdict(test)} for claim in claims.claims for test in claim.tests]
    return pd.DataFrame(rows, columns=["claim", "statistic", *columns])
