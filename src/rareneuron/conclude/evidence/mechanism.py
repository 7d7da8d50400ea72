"""Tests the rivals of "rare-token neurons": do the groups act along token frequency, or through the norm, instead?

Groups are chosen on other contexts than those that judge them, as for `rare-specific`; only types are judged in those
of the study, whose effects are kept token by token.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

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
FEWEST_PAIRS = 100  # of rare targets of one type in different contexts, and of one context
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
    """Return the tests of how much the groups' effects agree between tokens of one type in different contexts.

    Groups are those of the study, chosen on these contexts, too: by mean effects, which ranks don't know.
    """
    found = case.experiments
    if "type_correlation" not in found:
        return Unavailable(
            "The run was made by an earlier version, which kept no correlations of single neurons' effects by type."
        )
    tokens = PairedTokens(found["target"], found["context"])
    pairs = {
        "of one type in different contexts": tokens.n_pairs("type"),
        "of different types in one context": tokens.n_pairs("context"),
    }
    for whose, n_pairs in pairs.items():
        if n_pairs < FEWEST_PAIRS:
            return Unavailable(
                f"The sample holds {n_pairs} pairs of rare targets {whose}, and {FEWEST_PAIRS} are needed. Analyse "
                "more tokens (--n-tokens), or more of a context (--per-context)."
            )
    groups, tests = case.run.groups(), list[Comparison]()
    for role in ROLES:
        drawn = {"uniform": groups.random, "matched": groups.matched[role]}
        tests += type_tests(tokens, found["type_correlation"], drawn, found[f"delta_rank_{role}"], role, rng)
    return tests


def type_tests(
    tokens: PairedTokens,
    of_neuron: Float[np.ndarray, " neuron"],
    drawn: Mapping[str, Int[np.ndarray, "group member"]],
    ranks: Float[np.ndarray, "token member"],
    role: str,
    rng: np.random.Generator,
) -> list[Comparison]:
    """Return the tests of the mean correlation of one group's neurons, beside those of random groups and contexts'.

    `of_neuron`: the correlation of every neuron over pairs of one type; `ranks`: of the group's effects, by token.
    """
    label, once = "correlation of effects between tokens of one type", np.ones((1, len(tokens.contexts)))
    value = float(mean_of_members(tokens.correlations(ranks, once))[0])
    tests = [
        against_groups(against_null(value, mean_of_members(of_neuron[groups])), label, role, null, above=True)
        for null, groups in drawn.items()
    ]

    def beyond_context(weights: np.ndarray) -> np.ndarray:
        of_type, of_context = (tokens.correlations(ranks, weights, by) for by in ("type", "context"))
        return mean_of_members(of_type - of_context)

    contexts, of_both = np.eye(len(tokens.contexts)), f"{label}, less that within contexts"
    return [*tests, bootstrap_test(of_both, role, contexts, beyond_context, rng, n_tokens=len(ranks))]


def mean_of_members(r: Float[np.ndarray, "group member"]) -> Float[np.ndarray, " group"]:
    """Return the mean over those members whose effects vary; NaN where none's do."""
    known = np.isfinite(r)
    with np.errstate(invalid="ignore"):
        return np.where(known, r, 0).sum(1) / known.sum(1)


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
