"""From a run's results to the verdicts of `maths.claims`, kept as `claims.json`.

The hypotheses stand in `conclude.hypotheses`, the rule in `maths.claims`; here are the statistics that bring them
together. What a run doesn't hold (groups, a common target, several checkpoints) makes a claim inconclusive and says so.
Oracles: tests/maths/test_claims.py for the rule; tests/conclude/test_claims.py, random models, for the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.conclude.checks import checks
from rareneuron.conclude.hypotheses import HYPOTHESES, hypothesis
from rareneuron.conclude.trajectory import onsets, trajectory
from rareneuron.errors import RareNeuronError, TooFewNeurons
from rareneuron.maths.claims import Claims, Comparison, Hypothesis, against_groups, bootstrap_test, judge
from rareneuron.maths.groups import NeuronGroups, neuron_groups
from rareneuron.maths.kink import slope_discontinuity
from rareneuron.maths.phases import FEWEST_NEURONS, Phases
from rareneuron.maths.significance import LEVEL, AgainstNull, against_null
from rareneuron.maths.specificity import ROLES, EffectPerMove, specificity_tests
from rareneuron.maths.trend import drift
from rareneuron.runs.claims import FILE, as_record, read_claims
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.groups import MATCHED_ON, MOST_CANDIDATES
from rareneuron.runs.layout import kept_rows
from rareneuron.runs.options import with_option
from rareneuron.runs.rankings import LAST_DRAWS, fit_ranking
from rareneuron.runs.run import Run

FEWEST_STEPS = 6  # of a trend: with five, the least p is 1/16
FEWEST_TOKENS = 60  # common ones, of equal weight
SIGN = {"boosting": 1, "suppressing": -1}  # of the effect that a group is named for
EXCESS = "joint effect less the sum of single ones, over the sum of their sizes"
LABELS = {"d_eff_zscored": "effective dimension of z-scored activations", "alpha_hill": "α_Hill"}
RELEASED = (
    "The run computed this by the released scripts' definitions, and claims are judged by the paper's. Run the study "
    "with --definitions paper in another folder."
)
Evidence = tuple[Hypothesis, Sequence[Comparison] | str]


def claims_of(run: Run) -> Claims:
    """Every claim of docs/claims.md about a run's last checkpoint and its way there."""
    step = run.steps[-1]
    seed = run.manifest.config.seed
    makers: list[Callable[[Run, np.random.Generator], list[Evidence]]] = [
        phase_claims, geometry_claims, spectrum_claims, specificity_claims, joint_claims,
    ]  # fmt: skip
    evidence = [found for k, make in enumerate(makers) for found in make(run, np.random.default_rng([seed, 7, k]))]
    return Claims(claims=judge(evidence), checks=checks(run, np.random.default_rng([seed, 8])), step=step)


def tests_or_reason(make: Callable[[], Sequence[Comparison] | str]) -> Sequence[Comparison] | str:
    """Return the tests of a claim, or the reason why they can't be made."""
    try:
        return make()
    except RareNeuronError as error:
        return with_option(error)


def phase_claims(run: Run, rng: np.random.Generator) -> list[Evidence]:
    """Return the evidence for three phases, a growing plateau and a kink of the slope."""
    return [
        (hypothesis("three-phases"), tests_or_reason(lambda: three_phases(run))),
        (hypothesis("plateau-grows"), tests_or_reason(lambda: plateau_growth(run, rng))),
        (hypothesis("slope-kink"), tests_or_reason(lambda: slope_kink(run, rng))),
    ]


def three_phases(run: Run) -> list[Comparison]:
    """Return the test of the outcome "three phases" at the last checkpoint, against the null that it beats least."""
    found = run.phases(ranking="all", definitions="paper")
    assert isinstance(found, Phases)
    if found.n_draws < LAST_DRAWS:  # of a run that had other steps then, or other definitions
        found = fit_ranking(run.effects(), run.context_sums(), "all", run.manifest.config.seed, LAST_DRAWS)
    name, p = max(found.null_p.items(), key=lambda item: item[1])
    there = found.outcome == "three phases"
    return [
        Comparison(
            statistic=f"κ of the middle (outcome: {found.outcome})",
            group="all neurons",
            value=found.kappa,
            null=f"{name} samples",
            null_mean=np.nan,
            effect=float(there),
            effect_low=np.nan,
            effect_high=np.nan,
            effect_size=np.nan,
            p=p if there or p > LEVEL else 1.0,  # the bootstrap band has said no
            least_p=1 / (1 + found.n_draws),
        )
    ]


def plateau_growth(run: Run, rng: np.random.Generator) -> list[Comparison] | str:
    """Return the test that the plateau's share of the layer rises over the checkpoints."""
    table = trajectory(run)
    if "plateau_share" not in table:
        return "The run has released definitions, which know no plateau that could grow."
    share = table.loc[table["outcome"] != "unavailable", "plateau_share"].fillna(0.0).to_numpy()
    if len(share) < FEWEST_STEPS:
        return f"There are {len(share)} checkpoints, and a trend needs {FEWEST_STEPS}."
    tau, p, least = drift(share, rng)
    return [
        Comparison(
            statistic="Kendall's τ of the plateau's share of the layer over steps",
            group=None,
            value=0.0 if np.isnan(tau) else tau,
            null="a walk without drift",
            null_mean=0.0,
            effect=0.0 if np.isnan(tau) else tau,
            effect_low=np.nan,
            effect_high=np.nan,
            effect_size=np.nan,
            p=p,
            least_p=least,
        )
    ]


def slope_kink(run: Run, rng: np.random.Generator) -> list[Comparison]:
    """Return the tests of the largest kink in the last rank curve's slope."""
    curve = run.rank_curve()
    if curve.n_positive < FEWEST_NEURONS:
        raise TooFewNeurons(f"A curve of {curve.n_positive} neurons is too short to tell a kink from noise.")
    return slope_discontinuity(np.log(curve.value[: curve.n_positive].astype(np.float64)), rng)


def row_of(rows: pd.DataFrame, **where: str) -> AgainstNull:
    """The one comparison of a table."""
    chosen = rows
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    if len(chosen) != 1:
        raise RareNeuronError(f"The run holds {len(chosen)} comparisons of {', '.join(where.values())}, and not one.")
    found = chosen.iloc[0]
    numbers: dict[str, Any] = {
        f.name: np.nan if found[f.name] is None else float(found[f.name]) for f in fields(AgainstNull)
    }
    numbers["n_draws"] = int(found["n_draws"])
    return AgainstNull(**numbers)


def of_groups(
    rows: pd.DataFrame, statistic: str, groups: Sequence[str], *, above: bool, **where: str
) -> list[Comparison]:
    """Each group against uniform and matched random groups."""
    nulls = [null for null in ("uniform", "matched") if (rows["null"] == null).any()]
    label = LABELS.get(statistic, statistic) + "".join(f" in {value}" for value in where.values())
    return [
        against_groups(
            row_of(rows, statistic=statistic, group=group, null=null, **where), label, group, null, above=above
        )
        for group in groups
        for null in nulls
    ]


def geometry_claims(run: Run, rng: np.random.Generator) -> list[Evidence]:
    """Tables 1-3; dimensions of z-scored activations, which loud neurons don't decide."""
    pairs, released = [f"{role}-random" for role in ROLES], run.definitions == "released"
    wanted: list[tuple[str, str, Sequence[str], bool]] = [
        ("correlation-within", "correlation", ROLES, True),
        ("correlation-random", "correlation", pairs, False),
        ("dimension", "d_eff_zscored", ROLES, False),
        ("cosine-within", "cosine", ROLES, True),
        ("cosine-across", "cosine", ["boosting-suppressing"], True),
        ("cosine-random", "cosine", pairs, False),
    ]
    return [
        (
            hypothesis(name),
            RELEASED if released else tests_or_reason(lambda s=s, g=g, a=a: of_groups(run.geometry(), s, g, above=a)),
        )
        for name, s, g, a in wanted
    ]


def spectrum_claims(run: Run, rng: np.random.Generator) -> list[Evidence]:
    """Table 4, each matrix by itself; `differs_since` in claims.json adds since when."""
    if run.definitions == "released":
        return [(hypothesis(f"heavy-tail-{matrix}"), RELEASED) for matrix in ("W_in", "W_out")]
    try:
        rows = run.spectrum()
    except RareNeuronError as error:
        return [(hypothesis(f"heavy-tail-{matrix}"), with_option(error)) for matrix in ("W_in", "W_out")]
    return [
        (
            hypothesis(f"heavy-tail-{matrix}"),
            tests_or_reason(lambda m=matrix: of_groups(rows, "alpha_hill", ROLES, above=False, matrix=m)),
        )
        for matrix in rows["matrix"].unique()
    ]


def specificity_claims(run: Run, rng: np.random.Generator) -> list[Evidence]:
    """Return the evidence that the groups matter more at rare than at common targets, at any loss and at equal loss."""
    return [
        (hypothesis("rare-specific"), tests_or_reason(lambda: specificity(run, rng))),
        (hypothesis("rare-specific-loss"), tests_or_reason(lambda: specificity(run, rng, equal_loss=True))),
    ]


def specificity(run: Run, rng: np.random.Generator, *, equal_loss: bool = False) -> list[Comparison] | str:
    """Return the tests of `maths.specificity` on the sample of the experiments, for groups chosen on other contexts."""
    found = read_experiments(run.folder())
    if "common_n_eff" not in found:
        return "The sample holds no common targets to compare with."
    n_eff = float(found["common_n_eff"][1 if equal_loss else 0])
    if not n_eff >= FEWEST_TOKENS:  # a number that isn't one is too few
        equal = " at equal loss" if equal_loss else ""
        return (
            f"The sample's common targets say{equal} as much as {n_eff:.0f} of equal weight, and {FEWEST_TOKENS} "
            "are needed. Analyse more tokens (--n-tokens)."
        )
    groups = groups_elsewhere(run, found["context"], rng)
    length = run.effects()["W_out_norm"].to_numpy()
    suffix = "_equal_loss" if equal_loss else ""
    rare, common = (
        EffectPerMove(abs_delta_loss=found[f"{kind}_ablation{suffix}"], move=length * found[f"{kind}_shift{suffix}"])
        for kind in ("rare", "common")
    )
    label = "|Δ| for the distance moved, at rare over common targets" + (" of equal loss" if equal_loss else "")
    return specificity_tests(rare, common, groups, label, rng)


def groups_elsewhere(run: Run, context: np.ndarray, rng: np.random.Generator) -> NeuronGroups:
    """Groups by the effects in all contexts but these."""
    sums, config = run.context_sums(), run.manifest.config
    rows = kept_rows(np.unique(context), run.manifest.data.n_contexts)
    others = np.setdiff1d(np.flatnonzero(sums["n_tokens"] > 0), rows)
    if not len(others):
        raise RareNeuronError("All contexts are in the sample, and none is left to choose groups on.")
    n_tokens = sums["n_tokens"][others].sum()
    delta, absolute = (
        sums[name][others].astype(np.float64).sum(0) / n_tokens for name in ("delta_loss", "abs_delta_loss")
    )
    return neuron_groups(
        delta,
        absolute,
        size=config.group_size,
        n_draws=config.n_random,
        most=MOST_CANDIDATES,
        covariate=run.effects()[MATCHED_ON].to_numpy(),
        matched_on=MATCHED_ON,
        rng=rng,
    )


def joint_claims(run: Run, rng: np.random.Generator) -> list[Evidence]:
    """Return the evidence that a group does more at once than one by one, and that random groups do less so."""
    return [
        (hypothesis("joint-sum"), tests_or_reason(lambda: joint_beyond_sum(run, rng))),
        (hypothesis("joint-random"), tests_or_reason(lambda: joint_beyond_random(run))),
    ]


def joint_beyond_sum(run: Run, rng: np.random.Generator) -> list[Comparison]:
    """Return the tests of the joint effect less the sum of single ones, in the group's direction, over contexts."""
    found = read_experiments(run.folder())
    _, row = np.unique(found["context"], return_inverse=True)
    tests = []
    for role, sign in SIGN.items():
        excess = sign * (found[f"joint_{role}"] - found[f"sum_{role}"])
        sums = np.stack([np.bincount(row, x) for x in (excess, found[f"abs_sum_{role}"])], 1)
        tests.append(bootstrap_test(EXCESS, role, sums, lambda totals: totals[:, 0] / totals[:, 1], rng))
    return tests


def joint_beyond_random(run: Run) -> list[Comparison]:
    """Return the tests of the same excess against that of random groups, at the tokens where these were ablated."""
    found = read_experiments(run.folder())
    at, tests = found["joint_at"], []
    for role, sign in SIGN.items():
        excess = found[f"joint_{role}"][at] - found[f"sum_{role}"][at]
        value = sign * float(excess.sum() / found[f"abs_sum_{role}"][at].sum())
        for null in ("uniform", f"matched_{role}"):
            if f"joint_{null}" in found:
                together, alone, size = found[f"joint_{null}"].T
                draws = against_null(value, sign * (together - alone) / size)
                tests.append(against_groups(draws, EXCESS, role, null.split("_")[0], above=True))
    return tests


def write_claims(run: Run) -> Claims:
    """Compute the claims and keep them, unless those kept are of the same checkpoints."""
    path, steps = run.path / FILE, list(run.steps)
    try:
        if path.is_file() and read_json(path)["steps"] == steps:
            return read_claims(run.path)
    except RareNeuronError:  # damaged: made again
        pass
    claims = claims_of(run)
    table = onsets(trajectory(run))
    since = table["since"].astype(object).where(table["since"].notna(), None)
    write_json(
        path,
        {
            "step": claims.step,
            "steps": steps,
            "definitions": run.definitions,
            "level": LEVEL,
            "seed": run.manifest.config.seed,
            "smallest_effects": {h.name: h.smallest for h in HYPOTHESES},
            "differs_since": dict(zip(table["column"], since, strict=True)),
            "claims": [as_record(claim) for claim in claims.claims],
            "checks": [asdict(check) for check in claims.checks],
        },
    )
    return claims
