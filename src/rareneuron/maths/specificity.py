r"""Are groups of neurons about rare tokens, or large everywhere?

Of a group, $S = (\sum |\Delta| / \sum m)_{rare} / (\sum |\Delta| / \sum m)_{common}$ over its neurons and the tokens of
some contexts, with m = |n̄ − n| ‖w_out‖ the distance that an ablation moves the residual stream. Per distance, since
activations spread differently at the two kinds of token. S stands beside the same of random groups, and beside zero
when contexts are resampled and the mean of matched groups is taken off. The groups must have been chosen on other
contexts: chosen for large effects at the same rare tokens, any group would seem to be about them. Oracle:
tests/maths/test_specificity.py, loops over groups, contexts and neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.claims import Comparison, against_groups, bootstrap_test
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.significance import against_null

FEW_GROUPS = 200  # matched ones, whose mean is subtracted in every draw of contexts
CONTEXT_DRAWS = 1000
ROLES = ("boosting", "suppressing")


@dataclass(frozen=True, kw_only=True)
class EffectPerMove:
    """Sums over each context's tokens of one kind: |Δ| in nats, and how far the ablation moves the residual stream."""

    abs_delta_loss: Float[np.ndarray, "context neuron"]
    move: Float[np.ndarray, "context neuron"]

    def stacked(self) -> Float[np.ndarray, "2 context neuron"]:
        """Return both in one array, in float64."""
        return np.stack([self.abs_delta_loss, self.move]).astype(np.float64)


def membership(groups: Int[np.ndarray, "group size"], n_neurons: int) -> Float[np.ndarray, "neuron group"]:
    """Return 1 where a neuron is in a group, else 0: sums over groups are then one product."""
    within = np.zeros((n_neurons, len(groups)))
    within[groups.T, np.arange(len(groups))] = 1
    return within


def specificity_ratio(
    rare: Float[np.ndarray, "2 context neuron"],
    common: Float[np.ndarray, "2 context neuron"],
    groups: Int[np.ndarray, "group size"],
    weights: Float[np.ndarray, "draw context"],
) -> Float[np.ndarray, "draw group"]:
    """Return S of each group, with each context counted as often as the weights of a draw say.

    A group that doesn't move at either kind of token has no ratio: NaN or infinity.
    """
    within = membership(groups, rare.shape[-1])
    parts = []
    for sums in (rare, common):
        ablation, distance = weights @ sums @ within
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(ablation / distance)
    return np.asarray(parts[0] / parts[1])


def specificity_tests(
    rare: EffectPerMove,
    common: EffectPerMove,
    groups: NeuronGroups,
    label: str,
    rng: np.random.Generator,
    n_tokens: int | None = None,
) -> list[Comparison]:
    """Return the tests of either group: S beside uniform and matched groups, and above that of matched ones.

    `label` names the statistic in the results; `n_tokens` is the number of rare tokens behind it.
    """
    at_rare, at_common = rare.stacked(), common.stacked()

    def ratio(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return specificity_ratio(at_rare, at_common, members, weights)

    return beside_groups(ratio, at_rare.shape[1], groups, label, rng, n_tokens)


# Of the groups [group, size], with each context counted as often as the weights of a draw [draw, context] say.
GroupStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def beside_groups(
    statistic: GroupStatistic,
    n_contexts: int,
    groups: NeuronGroups,
    label: str,
    rng: np.random.Generator,
    n_tokens: int | None = None,
) -> list[Comparison]:
    """Return the tests of either group: its statistic beside uniform and matched groups, and above that of matched.

    `n_tokens` is the number of rare tokens behind it.
    """
    tests, once = [], np.ones((1, n_contexts))
    for role in ROLES:
        members, matched = getattr(groups, role)[None], groups.matched[role]
        value = float(statistic(members, once)[0, 0])
        for null, drawn in {"uniform": groups.random, "matched": matched}.items():
            draws = statistic(drawn, once)[0]
            tests.append(against_groups(against_null(value, draws), label, role, null, above=True))
        test = beyond_matched(statistic, n_contexts, members, matched[:FEW_GROUPS], label, role, rng)
        tests.append(replace(test, n_tokens=n_tokens))
    return tests


def beyond_matched(
    statistic: GroupStatistic,
    n_contexts: int,
    members: Int[np.ndarray, "1 size"],
    matched: Int[np.ndarray, "group size"],
    label: str,
    role: str,
    rng: np.random.Generator,
) -> Comparison:
    """Return the test that a group's statistic exceeds the mean of matched groups, by a bootstrap over contexts."""

    def excess(weights: np.ndarray) -> np.ndarray:
        return np.asarray(statistic(members, weights)[:, 0] - statistic(matched, weights).mean(1))

    return bootstrap_test(
        f"{label}, less that of matched groups", role, np.eye(n_contexts), excess, rng, n_draws=CONTEXT_DRAWS
    )
