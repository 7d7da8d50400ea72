"""Tests the claims about phases: there are three, the plateau grows, the slope has a kink."""

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.errors import TooFewNeurons, Unavailable
from rareneuron.maths.claims import Comparison
from rareneuron.maths.kink import slope_discontinuity
from rareneuron.maths.phases import FEWEST_NEURONS, Phases
from rareneuron.maths.significance import LEVEL
from rareneuron.maths.trend import drift, walk_noise
from rareneuron.runs.rankings import LAST_DRAWS, fit_ranking

FEWEST_STEPS = 6  # of a trend: with five, the least p is 1/16


def three_phases(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the test of the outcome "three phases" at the last checkpoint, against the null with the largest p."""
    run = case.run
    found = run.phases(ranking="all", definitions="paper")
    assert isinstance(found, Phases)
    if found.n_draws < LAST_DRAWS:  # this wasn't the last step when they were fitted, or definitions differ
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
            p=p if there or p > LEVEL else 1.0,  # the bootstrap band decided against it
            least_p=1 / (1 + found.n_draws),
        )
    ]


def plateau_growth(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the test that the plateau's share of the layer rises over the checkpoints."""
    table = case.trajectory
    if "plateau_share" not in table:
        return Unavailable("The run has released definitions, which know no plateau that could grow.")
    share = table.loc[table["outcome"] != "unavailable", "plateau_share"].fillna(0.0).to_numpy()
    if len(share) < FEWEST_STEPS:
        return Unavailable(f"There are {len(share)} checkpoints, and a trend needs {FEWEST_STEPS}.")
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
            over="steps",
            noise=None if np.isnan(tau) else walk_noise(share, rng),
        )
    ]


def slope_kink(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of the largest kink in the last rank curve's slope."""
    curve = case.run.rank_curve()
    if curve.n_positive < FEWEST_NEURONS:
        raise TooFewNeurons(f"A curve of {curve.n_positive} neurons is too short to tell a kink from noise.")
    return slope_discontinuity(np.log(curve.value[: curve.n_positive].astype(np.float64)), rng)


PHASES: dict[str, Maker] = {
    "three-phases": three_phases,
    "plateau-grows": plateau_growth,
    "slope-kink": slope_kink,
}
