"""What a run found, in six lines and in single sentences, as the command line, the report and the card say it."""

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from rareneuron.maths import Definitions
from rareneuron.maths.phases import Phases
from rareneuron.maths.released import ReleasedPhases
from rareneuron.maths.significance import few_contexts
from rareneuron.present.engines import engine_words
from rareneuron.present.readable import claims_or_reason, found_or_reason, lacking_parts, verdict
from rareneuron.present.whose import counts_line, disagreement
from rareneuron.runs.layers import read_layers
from rareneuron.runs.rankings import SIGNS, Ranking
from rareneuron.runs.records import StepRecord
from rareneuron.runs.run import Run

MOST_NAMED = 3  # claims of a verdict, in a line


def study_summary(run: Run) -> dict[str, Any]:
    """Return the last checkpoint's headline numbers, and the same as lines to print."""
    table, record, data = run.effects().sort_values("rank"), run.step_record(), run.manifest.data
    top, audit = table.iloc[0], record.audit
    median = table["abs_delta_loss"].median()
    steps = ["final" if step is None else str(step) for step in run.steps]
    common = "" if record.loss_common is None else f", {record.loss_common:.3f} on common ones"
    lines = [
        (
            f"{data.n_rare:,} rare and {data.n_common:,} common tokens from {data.n_contexts:,} contexts of "
            f"{data.corpus}; checkpoints {', '.join(steps)}; at the last {record.loss_rare:.3f} nats on rare "
            f"targets{common}"
        ),
        *([f"Text: {data.description}"] if "; left out: " in data.description else []),
        *([f"Warning: {few}"] if (few := few_contexts(data.n_contexts)) else []),
        counts_line(data.counts),
        *([warned] if (warned := disagreement(data.counts)) else []),
        largest_effect(top, median),
        (
            f"{int((table['delta_loss'] > 0).sum()):,} neurons boost rare tokens (ablation hurts), "
            f"{int((table['delta_loss'] < 0).sum()):,} suppress them; {audit_line(record)}"
        ),
        phases_line(run),
        *layers_lines(run),
        claims_line(run),
        *missing_lines(run),
    ]
    return {
        "run": str(run.path),
        "steps": run.steps,
        "n_rare": data.n_rare,
        "n_common": data.n_common,
        "loss_rare": record.loss_rare,
        "loss_common": record.loss_common,
        "top_neuron": top["neuron"],
        "top_abs_delta_loss": float(top["abs_delta_loss"]),
        "median_abs_delta_loss": float(median),
        "definitions": run.definitions,
        "counts": asdict(data.counts),
        "audit": None if audit is None else asdict(audit),
        "lines": lines,
    }


def audit_line(record: StepRecord) -> str:
    """Say how exact the effects of a checkpoint are."""
    audit = record.audit
    if audit is None:
        return f"audit: {engine_words(record.engine).in_short}"
    how = engine_words(record.engine).audited
    return f"audit: {audit.n_pairs:,} pairs {how}, rms error {audit.rms_error:.1e} nats, largest {audit.max_error:.1e}"


def missing_lines(run: Run) -> list[str]:
    """Return a line where the last checkpoint lacks groups, tables or nulls, which say why; most runs lack nothing."""
    lacking = lacking_parts(run)
    return [f"Missing: {'; '.join(f'{what} ({why})' for what, why in lacking.items())}"] if lacking else []


def layers_lines(run: Run) -> list[str]:
    """Return a line about the units of all layers, where a study looked at them."""
    if not run.has_layers():
        return []
    found = read_layers(run.folder())
    told = []
    for kind in ("neuron", "head"):
        of_kind = found.table[found.table["kind"] == kind]
        if len(of_kind):
            top = of_kind.nsmallest(1, "rank").iloc[0]
            size = f"mean |Δ| {top['abs_delta_loss']:.3g} nats, {top['certainty']}"
            told.append(f"the largest {kind} of all layers is {top['unit']} ({size})")
    record = found.record
    screen = (found.table["certainty"] == "screen").any()
    how = "nothing was verified, so the order is a screen" if screen else f"{record.n_patched:,} cells patched"
    undecided = f"; {len(record.undecided)} undecided at rank {record.rank}" if record.undecided else ""
    return [f"Layers: {'; '.join(told)}; {how}{undecided}"]


def claims_line(run: Run) -> str:
    """Name the supported claims, and count the others."""
    claims = claims_or_reason(run)
    if isinstance(claims, str):
        return f"Claims: none. {claims}"
    told = []
    for kind, few in (("supported", len(claims)), ("inconclusive", MOST_NAMED), ("not supported", MOST_NAMED)):
        names = [claim.name for claim in claims if claim.verdict == kind]
        told.append(f"{len(names)} {kind}" + (f" ({', '.join(names)})" if 0 < len(names) <= few else ""))
    return f"Claims: {'; '.join(told)}"


def phases_line(run: Run) -> str:
    """Say which phases the last checkpoint has, and by whose definitions."""
    if run.definitions == "paper":
        return f"Phases (definitions: paper): {in_short(found_or_reason(run, None, 'all', 'paper'))}"
    told = [f"{name} {in_short(found_or_reason(run, None, name, 'released'))}" for name in SIGNS]
    return f"Phases (definitions: released, which test nothing): {'; '.join(told)}"


def in_short(found: Phases | ReleasedPhases | str) -> str:
    """Return κ and the outcome, or the reason why there are no phases."""
    if isinstance(found, str):
        return f"unknown. {found}"
    return f"κ = {found.kappa:.3f}" + (f", {verdict(found)}" if isinstance(found, Phases) else "")


def step_zero(run: Run, step: int | None, ranking: Ranking, definitions: Definitions) -> str | None:
    """Return a sentence that sets a trained checkpoint beside step 0, its null; None for a series without step 0."""
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
    """Describe the neuron of the largest effect, also where no effect, no median or no error is known."""
    size, error = top["abs_delta_loss"], top["delta_loss_se"]
    if size == 0:
        return "Largest effect: none, no neuron's ablation changes the loss at any analysed token"
    times = f"{size / median:.0f} times the median neuron's" if median > 0 else "where the median neuron's is 0"
    known = f"± {error:.2g}" if math.isfinite(error) else "(a single context gives no standard error)"
    mean = f"{top['delta_loss']:+.3g} {known}"
    return f"Largest effect: neuron {top['neuron']}, mean |Δ| {size:.3g} nats, {times}; mean Δ {mean}"


def nulls_of_step_zero(run: Run) -> list[str]:
    """Return that sentence for the last checkpoint, once for each ranking of the run's definitions."""
    rankings: tuple[Ranking, ...] = ("all",) if run.definitions == "paper" else SIGNS
    told = [step_zero(run, None, ranking, run.definitions) for ranking in rankings]
    return [sentence for sentence in told if sentence is not None]
