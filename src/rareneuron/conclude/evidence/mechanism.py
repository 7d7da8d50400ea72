"""Tests the rivals of "rare-token neurons": do the groups act along token frequency, or through the norm, instead?

Groups are chosen on other contexts than those that judge them, as for `rare-specific`.
"""

from functools import partial

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.evidence.specificity import FEWEST_TOKENS
from rareneuron.errors import Unavailable
from rareneuron.maths.shares import share_tests
from rareneuron.maths.specificity import EffectPerMove, specificity_tests

NOT_TAKEN_APART = (
    "Effects weren't taken apart: that needs the closed form, the frequencies of all types, and the last planned "
    "checkpoint of a run of this version. Run the study again in another folder."
)
BEYOND_FREQUENCY = "beyond_frequency_abs_delta_loss"


def share(case: Case, rng: np.random.Generator, *, rest: str, label: str) -> Evidence:
    """Return the tests of a mechanism's share of the groups' mean |Δ| at rare targets."""
    sums = case.judging_sums
    if rest not in sums:
        return Unavailable(NOT_TAKEN_APART)
    return share_tests(sums[rest], sums["abs_delta_loss"], case.groups_elsewhere, label, rng)


def rare_beyond_frequency(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of `rare-specific` on what is left of effects without the direction of token frequency."""
    sums = case.judging_sums
    if BEYOND_FREQUENCY not in sums or "abs_shift" not in sums:
        return Unavailable(NOT_TAKEN_APART)
    n_common = int(sums["common_n_tokens"].sum())
    if n_common < FEWEST_TOKENS:
        return Unavailable(
            f"The contexts that judge the groups hold {n_common} common targets, and {FEWEST_TOKENS} are needed. "
            "Analyse more tokens (--n-tokens)."
        )
    length = case.run.effects()["W_out_norm"].to_numpy()
    rare, common = (
        EffectPerMove(abs_delta_loss=sums[f"{kind}{BEYOND_FREQUENCY}"], move=length * sums[f"{kind}abs_shift"])
        for kind in ("", "common_")
    )
    label = "|Δ| without the direction of frequency, for the distance moved, at rare over common targets"
    return specificity_tests(rare, common, case.groups_elsewhere, label, rng)


MECHANISM: dict[str, Maker] = {
    "frequency-explains": partial(share, rest=BEYOND_FREQUENCY, label="share of |Δ| that goes along token frequency"),
    "norm-explains": partial(
        share, rest="direct_abs_delta_loss", label="share of |Δ| that goes through the final norm"
    ),
    "rare-beyond-frequency": rare_beyond_frequency,
}
