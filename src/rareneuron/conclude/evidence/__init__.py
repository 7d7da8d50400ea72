"""Turns a run's results into verdicts, and writes them to `claims.json`.

The hypotheses stand in `conclude.hypotheses`, the rule in `maths.verdicts`; here are the statistics that they are
judged by, one function for each claim, seeded by the claim's name. A claim is inconclusive, and says why, where the run
lacks what it needs (groups, common targets, several checkpoints).
Oracles: tests/maths/test_claims.py for the rule; tests/conclude/test_claims.py, random models, for the whole.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from rareneuron.conclude.checks import checks
from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.evidence.clustering import CLUSTERING
from rareneuron.conclude.evidence.joint import JOINT
from rareneuron.conclude.evidence.layers import LAYERS
from rareneuron.conclude.evidence.mechanism import MECHANISM
from rareneuron.conclude.evidence.phases import PHASES
from rareneuron.conclude.evidence.routing import ROUTING
from rareneuron.conclude.evidence.specificity import SPECIFICITY
from rareneuron.conclude.evidence.tables import TABLES
from rareneuron.conclude.evidence.tasks import TASKS, evaluated
from rareneuron.conclude.hypotheses import HYPOTHESES, OF_LAYERS, OF_ROUTING, OF_TASKS, hypotheses
from rareneuron.conclude.trajectory import onsets
from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.claims import Claims, Hypothesis
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.significance import LEVEL, few_contexts
from rareneuron.maths.specificity import ROLES
from rareneuron.maths.verdicts import judge
from rareneuron.runs.claims import as_record, read_claims
from rareneuron.runs.evaluations import evaluation_digest
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.groups import mostly_itself
from rareneuron.runs.layout import CLAIMS
from rareneuron.runs.options import with_option
from rareneuron.runs.run import Run
from rareneuron.runs.seeds import generator

MAKERS: dict[str, Maker] = (  # by the name of the hypothesis
    PHASES | TABLES | SPECIFICITY | JOINT | MECHANISM | CLUSTERING | LAYERS | ROUTING | TASKS
)


def claims_of(case: Case) -> Claims:
    """Judge every claim of docs/claims.md about a run's last checkpoint and its way there."""
    asked = asked_of(case)
    evidence = [(hypothesis, evidence_for(case, hypothesis.name)) for hypothesis in asked]
    claims = Claims(claims=judge(evidence), checks=checks(case.run), step=case.run.steps[-1])
    with suppress(RareNeuronError):  # without groups the claims say so themselves
        claims = with_shared_groups(claims, case.run.groups())
    return with_warning(claims, case.run.manifest.data.n_contexts)


def with_shared_groups(claims: Claims, groups: NeuronGroups) -> Claims:
    """Let every claim say it whose matched groups are mostly made of the group itself."""
    found = {role: mostly_itself(role, getattr(groups, role), groups.matched.get(role)) for role in ROLES}
    warnings = [warning for warning in found.values() if warning is not None]
    if not warnings:
        return claims
    return replace(
        claims,
        claims=tuple(
            replace(claim, sentence=" ".join([claim.sentence, *warnings]))
            if any("matched" in test.null for test in claim.tests)
            else claim
            for claim in claims.claims
        ),
    )


def asked_of(case: Case) -> list[Hypothesis]:
    """Return the hypotheses that a run can be asked about."""
    return hypotheses(
        gated=case.has_gate,
        signed=not case.gauge.sign,
        layers=case.run.has_layers(),
        routing=case.run.has_routing(),
        tasks=evaluated(case.run) is not None,
    )


def with_warning(claims: Claims, n_contexts: int) -> Claims:
    """Let every claim and check say it where few contexts stand behind the run: all rest on the same tokens."""
    few = few_contexts(n_contexts)
    if few is None:
        return claims
    return replace(
        claims,
        claims=tuple(replace(claim, sentence=f"{claim.sentence} {few}.") for claim in claims.claims),
        checks=tuple(replace(check, sentence=f"{check.sentence} {few}.") for check in claims.checks),
    )


def evidence_for(case: Case, name: str) -> Evidence:
    """Return the tests of a claim, or why they can't be made."""
    try:
        return MAKERS[name](case, generator(case.run.manifest.config.seed, "claims", name))
    except RareNeuronError as error:
        return Unavailable(with_option(error))


def write_claims(run: Run, over_steps: pd.DataFrame | None = None) -> Claims:
    """Compute and write the claims; claims already written for the same results are returned as they are.

    `over_steps` is the run's trajectory, where it is at hand.
    """
    path = run.path / CLAIMS
    rests_on: dict[str, Any] = {"steps": list(run.steps)}
    if evaluated(run) is not None:
        rests_on["evaluation"] = evaluation_digest(run.path)
    try:
        if path.is_file() and are_of(read_json(path), rests_on):
            return read_claims(run.path)
    except RareNeuronError:  # damaged: made again
        pass
    case = Case(run, over_steps)
    claims = claims_of(case)
    further = [*(OF_LAYERS if run.has_layers() else ()), *(OF_ROUTING if run.has_routing() else ())]
    further += OF_TASKS if "evaluation" in rests_on else ()
    table = onsets(case.trajectory)
    since = table["since"].astype(object).where(table["since"].notna(), None)
    write_json(
        path,
        {
            "step": claims.step,
            **rests_on,
            "definitions": run.definitions,
            "level": LEVEL,
            "seed": run.manifest.config.seed,
            "smallest_effects": {h.name: h.smallest for h in (*HYPOTHESES, *further)},
            "differs_since": dict(zip(table["column"], since, strict=True)),
            "claims": [as_record(claim) for claim in claims.claims],
            "checks": [asdict(check) for check in claims.checks],
        },
    )
    return claims


def are_of(written: Mapping[str, Any], rests_on: Mapping[str, Any]) -> bool:
    """Return whether written claims rest on the results that the run has now."""
    return written["steps"] == rests_on["steps"] and written.get("evaluation") == rests_on.get("evaluation")
