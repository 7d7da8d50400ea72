"""Tests whether the groups matter more at rare than at common targets, per distance moved, at any and at equal loss."""

from functools import partial

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.errors import Unavailable
from rareneuron.maths.specificity import EffectPerMove, specificity_tests

FEWEST_TOKENS = 60  # common targets, in numbers of equal weight


def specificity(case: Case, rng: np.random.Generator, *, equal_loss: bool) -> Evidence:
    """Return the tests of `maths.specificity` on the sample of the experiments, for groups chosen on other contexts."""
    found = case.experiments
    if "common_n_eff" not in found:
        return Unavailable("The sample holds no common targets to compare with.")
    n_eff = float(found["common_n_eff"][1 if equal_loss else 0])
    if not n_eff >= FEWEST_TOKENS:  # true for NaN, too
        equal = " at equal loss" if equal_loss else ""
        return Unavailable(
            f"The sample's common targets{equal} are worth {n_eff:.0f} targets of equal weight, and {FEWEST_TOKENS} "
            "are needed. Analyse more tokens (--n-tokens)."
        )
    length = case.run.effects()["W_out_norm"].to_numpy()
    suffix = "_equal_loss" if equal_loss else ""
    rare, common = (
        EffectPerMove(abs_delta_loss=found[f"{kind}_ablation{suffix}"], move=length * found[f"{kind}_shift{suffix}"])
        for kind in ("rare", "common")
    )
    label = "|Δ| for the distance moved, at rare over common targets" + (" of equal loss" if equal_loss else "")
    return specificity_tests(rare, common, case.groups_elsewhere, label, rng, len(found["context"]))


SPECIFICITY: dict[str, Maker] = {
    "rare-specific": partial(specificity, equal_loss=False),
    "rare-specific-loss": partial(specificity, equal_loss=True),
}
