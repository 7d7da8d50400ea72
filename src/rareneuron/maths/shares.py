r"""How much of what groups of neurons do goes through a mechanism, beside other neurons.

A group's share is $1 - \sum |\Delta'| / \sum |\Delta|$ over its neurons and the tokens of some contexts, Δ′ being what
is left of an effect without the mechanism (`mechanism`). It may be below 0: mechanisms can work against each other.
Oracle: tests/maths/test_shares.py, loops over groups, contexts and neurons.
"""

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.claims import Comparison
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.specificity import beside_groups, membership


def group_share(
    rest: Float[np.ndarray, "context neuron"],
    whole: Float[np.ndarray, "context neuron"],
    members: Int[np.ndarray, "group size"],
    weights: Float[np.ndarray, "draw context"],
) -> Float[np.ndarray, "draw group"]:
    """Return each group's share, with each context counted as often as the weights of a draw say.

    `rest` and `whole` are |Δ′| and |Δ| summed over each context's tokens. A group without any effect has none: NaN.
    """
    within = membership(members, whole.shape[1])
    left, all_of_it = (weights @ (sums.astype(np.float64) @ within) for sums in (rest, whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - left / all_of_it)


def share_tests(
    rest: Float[np.ndarray, "context neuron"],
    whole: Float[np.ndarray, "context neuron"],
    groups: NeuronGroups,
    label: str,
    rng: np.random.Generator,
    n_tokens: int | None = None,
) -> list[Comparison]:
    """Return the tests of either group: its share beside uniform and matched groups, and above that of matched ones.

    `label` names the statistic in the results; `n_tokens` is the number of rare tokens behind it.
    """

    def share(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return group_share(rest, whole, members, weights)

    return beside_groups(share, len(whole), groups, label, rng, n_tokens)
