r"""Does a head of an earlier layer write to a group's neurons at rare targets, more than it does at common ones?

The influence of a head on neuron i at token s is $|n'_i - n_i| / σ_i$, with n′ the activation where the head's output
is replaced by its mean, and σ the standard deviation of the activation over the tokens. Of a group,
$R = \log \frac{\text{mean influence at rare targets}}{\text{mean influence at common targets}}$. Everything about
tokens that isn't special to the group is in the R of other neurons, too, so R less theirs is what the head does for the
group. That it does nothing is an absence, which is shown by a margin (`equivalence`).
Oracle: tests/maths/test_routing.py, loops over groups, contexts and neurons; levels in benchmarks/routing.py.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.claims import Comparison
from rareneuron.maths.equivalence import widened, within_margin_of_groups, within_margin_over_contexts
from rareneuron.maths.groups import NeuronGroups, spread_from_outside
from rareneuron.maths.specificity import CONTEXT_DRAWS, FEW_GROUPS, ROLES, membership


@dataclass(frozen=True, kw_only=True)
class Influence:
    """The influence of one head: sums over each context's tokens, in standard deviations of a neuron's activation."""

    rare: Float[np.ndarray, "context neuron"]
    common: Float[np.ndarray, "context neuron"]
    n_rare: Int[np.ndarray, " context"]
    n_common: Int[np.ndarray, " context"]

    def log_ratio(
        self, members: Int[np.ndarray, "group size"], weights: Float[np.ndarray, "draw context"]
    ) -> Float[np.ndarray, "draw group"]:
        """Return R of each group, with each context counted as often as the weights of a draw say.

        NaN or infinite where the head doesn't reach a group at one kind of token.
        """
        within = membership(members, self.rare.shape[1])
        means = [
            weights @ (sums.astype(np.float64) @ within) / (weights @ n)[:, None]
            for sums, n in ((self.rare, self.n_rare), (self.common, self.n_common))
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.log(means[0] / means[1]))


def routing_tests(
    influence: Influence, groups: NeuronGroups, head: str, margin: float, rng: np.random.Generator
) -> list[Comparison]:
    """Return the tests that R of either group is less than the margin off that of uniform and of matched groups.

    The last test of a role resamples contexts, and takes the mean R of matched groups off. `head` is its printed name.
    """
    tests, n_contexts = [], len(influence.n_rare)
    once, n_tokens = np.ones((1, n_contexts)), int(influence.n_rare.sum())
    label = f"log of the influence of head {head} at rare over common targets"
    for role in ROLES:
        members, matched = getattr(groups, role)[None], groups.matched[role]
        value = float(influence.log_ratio(members, once)[0, 0])
        for null, drawn in {"uniform": groups.random, "matched": matched}.items():
            draws = influence.log_ratio(drawn, once)[0]
            if null == "uniform":  # these alone never hold the group's own neurons
                draws = widened(draws, spread_from_outside(drawn))
            tests.append(within_margin_of_groups(value, draws, label, role, f"{null} random groups", margin))

        def beyond_matched(
            weights: np.ndarray, members: np.ndarray = members, matched: np.ndarray = matched[:FEW_GROUPS]
        ) -> np.ndarray:
            return influence.log_ratio(members, weights)[:, 0] - influence.log_ratio(matched, weights).mean(1)

        tests.append(
            within_margin_over_contexts(
                f"{label}, less that of matched groups",
                role,
                np.eye(n_contexts),
                beyond_matched,
                rng,
                margin,
                n_draws=CONTEXT_DRAWS,
                n_tokens=n_tokens,
            )
        )
    return tests
