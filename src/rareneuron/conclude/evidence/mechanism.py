"""Tests the rivals of "rare-token neurons": do the groups act along token frequency, or through the norm, instead?

Groups are chosen on other contexts than those that judge them, as for `rare-specific`.
"""

from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.evidence.specificity import FEWEST_TOKENS
from rareneuron.errors import Unavailable
from rareneuron.maths.claims import Comparison, against_groups, bootstrap_test
from rareneuron.maths.intraclass import PairedTokens
from rareneuron.maths.phases import Phases
from rareneuron.maths.plateau import Ranks, rare_only_test
from rareneuron.maths.shares import share_tests
from rareneuron.maths.significance import against_null
from rareneuron.maths.specificity import ROLES, EffectPerMove, specificity_tests

NOT_TAKEN_APART = (
    "Effects weren't taken apart: that needs the closed form, the frequencies of all types, and the last planned "
    "checkpoint of a run of this version. Run the study again in another folder."
)
FEWEST_PAIRS = 100  # of rare targets of one type in different contexts
BEYOND_FREQUENCY = "beyond_frequency_abs_delta_loss"


def share(case: Case, rng: np.random.Generator, *, rest: str, label: str) -> Evidence:
    """Return the tests of a mechanism's share of the groups' mean |Δ| at rare targets."""
    sums = case.judging_sums
    if rest not in sums:
        return Unavailable(NOT_TAKEN_APART)
    n_tokens = int(sums["n_tokens"].sum())
    return share_tests(sums[rest], sums["abs_delta_loss"], case.groups_elsewhere, label, rng, n_tokens)


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
    return specificity_tests(rare, common, case.groups_elsewhere, label, rng, int(sums["n_tokens"].sum()))


def type_specific(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of how much the groups' effects agree between tokens of one type in different contexts."""
    found = case.experiments
    if "sum_uniform" not in found:
        return Unavailable("The run was made by an earlier version, which kept no effects of random groups by token.")
    tokens = PairedTokens(found["target"], found["context"])
    if tokens.n_pairs < FEWEST_PAIRS:
        return Unavailable(
            f"The sample holds {tokens.n_pairs} pairs of rare targets of one type in different contexts, and "
            f"{FEWEST_PAIRS} are needed. Analyse more tokens (--n-tokens)."
        )
    tests: list[Comparison] = []
    for role in ROLES:
        sums = found[f"sum_{role}"][:, None], found["sum_uniform"], found[f"sum_matched_{role}"]
        tests += type_tests(tokens, *sums, role, rng)
    return tests


def type_tests(
    tokens: PairedTokens,
    own: Float[np.ndarray, "token 1"],
    uniform: Float[np.ndarray, "token group"],
    matched: Float[np.ndarray, "token group"],
    role: str,
    rng: np.random.Generator,
) -> list[Comparison]:
    """Return the tests of one group's summed effect at each token, beside those of random groups."""
    label, once = "correlation of effects between tokens of one type", np.ones((1, len(tokens.contexts)))
    value = float(tokens.correlations(own, once)[0, 0])
    tests = [
        against_groups(against_null(value, tokens.correlations(drawn, once)[0]), label, role, null, above=True)
        for null, drawn in {"uniform": uniform, "matched": matched}.items()
    ]

    def beyond_context(weights: np.ndarray) -> np.ndarray:
        of_type, of_context = (tokens.correlations(own, weights, by)[:, 0] for by in ("type", "context"))
        return of_type - of_context

    contexts, of_both = np.eye(len(tokens.contexts)), f"{label}, less that within contexts"
    return [*tests, bootstrap_test(of_both, role, contexts, beyond_context, rng, n_tokens=len(own))]


def rare_only_plateau(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the test that the largest effects stand higher above the curve's line at rare than at common targets."""
    sums = case.run.context_sums()
    both = (sums["n_tokens"] > 0) & (sums["common_n_tokens"] > 0)
    if not both.any():
        return Unavailable("The run has no context with rare and common targets to compare.")
    found = case.run.phases(ranking="all", definitions="paper")
    assert isinstance(found, Phases)
    head = found.fit_first - 1
    if head < 1:
        return Unavailable("The line of the rank curve begins at its first rank, so nothing stands before it.")
    ranks = Ranks(head=head, first=found.fit_first, last=found.fit_last)
    test = rare_only_test(sums["abs_delta_loss"][both], sums["common_abs_delta_loss"][both], ranks, rng)
    return [replace(test, n_tokens=int(sums["n_tokens"][both].sum()))]


MECHANISM: dict[str, Maker] = {
    "frequency-explains": partial(share, rest=BEYOND_FREQUENCY, label="share of |Δ| that goes along token frequency"),
    "norm-explains": partial(
        share, rest="direct_abs_delta_loss", label="share of |Δ| that goes through the final norm"
    ),
    "rare-beyond-frequency": rare_beyond_frequency,
    "type-specific": type_specific,
    "rare-only-plateau": rare_only_plateau,
}
