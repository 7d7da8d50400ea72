r"""Do neurons of a group fall into clusters that act together? The modularity of their graph of correlations.

Weights are w = ρ where the signs of activations mean something, else |ρ|. Of a partition, with strengths $k_i$,
$Q = \frac{1}{2w^+ + 2w^-} \sum_{ij \text{ together}} [w_{ij} - (\frac{k_i^+ k_j^+}{2w^+} - \frac{k_i^- k_j^-}{2w^-})]$
(Gómez, Jensen & Arenas 2009; Newman's where no weight is negative): 0 for what strengths alone give. The partition is
found by merging the pair of clusters that gains most, again and again, for as long as one gains (Clauset, Newman &
Moore 2004), for many groups at once. It isn't the best partition, but the same search for a group and for every null.
Nulls: matched groups, and graphs whose neurons keep their strengths, while what the weights have beyond them changes
places. Clusters add errors of their own, which random groups lack: that of Q over contexts is found by leaving out one
twentieth of them at a time (jackknife). Oracle: tests/maths/test_modularity.py, networkx's greedy search and loops.
"""

import numpy as np
from jaxtyping import Float, Int

from rareneuron.maths.geometry import Moments
from rareneuron.maths.groups import NeuronGroups

MOST_DRAWS = 600  # of each null
ROUNDS = 50  # of rescaling to given strengths
ENTRIES_AT_ONCE = 2**19  # of stacked [graph, size, size]
NULLS = ("matched", "same strengths")
BLOCKS = 20  # of contexts, one of which is left out at a time


class BlockMoments:
    """Second moments of some neurons over each block of contexts, so that any block can be left out.

    Memory 8 · blocks · neurons² bytes; for the neurons of a few groups.
    """

    def __init__(self, neurons: Int[np.ndarray, " kept"], blocks: int = BLOCKS) -> None:
        self.neurons, self.blocks = np.unique(neurons), blocks
        kept = len(self.neurons)
        self.n, self.sums, self.products = np.zeros(blocks), np.zeros((blocks, kept)), np.zeros((blocks, kept, kept))
        self.origin: np.ndarray | None = None

    def add(self, acts: Float[np.ndarray, "token neuron"], context: Int[np.ndarray, " token"]) -> None:
        """Add tokens of the whole layer; those of one context belong to one block."""
        if not len(acts):
            return
        rows = acts[:, self.neurons].astype(np.float64)
        self.origin = rows[0] if self.origin is None else self.origin
        rows = rows - self.origin
        for block in np.unique(context % self.blocks):
            some = rows[context % self.blocks == block]
            self.n[block] += len(some)
            self.sums[block] += some.sum(0)
            self.products[block] += some.T @ some

    def without_each(self, group: Int[np.ndarray, " size"]) -> Float[np.ndarray, "block size size"]:
        """Return ρ of a group's neurons without each block that has tokens; NaN where a neuron is constant."""
        at = np.searchsorted(self.neurons, group)
        left = self.n > 0
        n = (self.n.sum() - self.n)[left, None, None]
        sums = (self.sums.sum(0) - self.sums)[left][:, at]
        products = (self.products.sum(0) - self.products)[left][:, at[:, None], at]
        covariance = products - sums[:, :, None] * sums[:, None, :] / n
        length = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2).clip(min=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((covariance / (length[:, :, None] * length[:, None, :])).clip(-1, 1))


def correlation_graphs(
    correlation: Float[np.ndarray, "graph size size"], *, signed: bool
) -> Float[np.ndarray, "graph size size"]:
    """Return graphs of ρ or |ρ|, 0 for a neuron with itself and for those that never vary."""
    weights = np.nan_to_num(correlation)
    weights[:, np.arange(weights.shape[1]), np.arange(weights.shape[1])] = 0
    return weights if signed else np.abs(weights)


def jackknife_error(without: Float[np.ndarray, " block"]) -> float:
    """Return the standard error of a statistic from its values without each block."""
    b = len(without)
    return float(np.sqrt((b - 1) / b * ((without - without.mean()) ** 2).sum())) if b > 1 else np.nan


def beyond_strengths(weights: Float[np.ndarray, "graph size size"]) -> Float[np.ndarray, "graph size size"]:
    """Return what each pair adds to Q if it is together; 0 for a graph without any weight."""
    out, total = weights.copy(), np.zeros((len(weights), 1, 1))
    for sign in (1, -1):
        part = np.maximum(sign * weights, 0)
        strength, sum_of_part = part.sum(-1), part.sum((-2, -1))[:, None, None]
        expected = strength[:, :, None] * strength[:, None, :]
        out -= sign * np.divide(expected, sum_of_part, out=np.zeros_like(expected), where=sum_of_part > 0)
        total += sum_of_part
    return np.divide(out, total, out=np.zeros_like(out), where=total > 0)


def modularity(weights: Float[np.ndarray, "graph size size"]) -> Float[np.ndarray, " graph"]:
    """Return Q of the partition that greedy merging finds in each symmetric graph.

    Two cliques of two neurons each:

    >>> pair = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> float(modularity(np.kron(np.eye(2), pair)[None])[0])
    0.5
    """
    gain = beyond_strengths(weights)
    size = gain.shape[1]
    Q, graph = np.trace(gain, axis1=1, axis2=2), np.arange(len(gain))
    gain[:, np.arange(size), np.arange(size)] = -np.inf
    while len(graph):
        row = np.arange(len(graph))
        first, second = np.divmod(gain.reshape(len(gain), -1).argmax(1), size)
        best = gain[row, first, second]
        gains = best > 0
        gain, graph, first, second, best = gain[gains], graph[gains], first[gains], second[gains], best[gains]
        row = np.arange(len(graph))
        Q[graph] += 2 * best
        merged = gain[row, first] + gain[row, second]
        merged[row, first] = merged[row, second] = -np.inf
        gain[row, first], gain[row, :, first] = merged, merged
        gain[row, second], gain[row, :, second] = -np.inf, -np.inf
    return Q


def same_strengths(
    weights: Float[np.ndarray, "size size"], n_draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw size size"]:
    """Draw graphs whose neurons have the strengths of this one, of either sign apart.

    The ratio of each pair's weight to what strengths expect is given to another pair; then rows and columns are
    rescaled until strengths are as they were.
    """
    upper = np.triu_indices(len(weights), 1)
    out = np.zeros((n_draws, *weights.shape))
    order = rng.permuted(np.tile(np.arange(len(upper[0])), (n_draws, 1)), axis=1)
    for sign in (1, -1):
        part = np.maximum(sign * weights, 0)
        strength = part.sum(-1)
        expected = np.outer(strength, strength)[upper]
        ratio = np.divide(part[upper], expected, out=np.zeros_like(expected), where=expected > 0)
        drawn = np.zeros_like(out)
        drawn[:, upper[0], upper[1]] = drawn[:, upper[1], upper[0]] = ratio[order] * expected
        for _ in range(ROUNDS):
            now = drawn.sum(-1)
            scale = np.sqrt(np.divide(strength, now, out=np.ones_like(now), where=now > 0))
            drawn *= scale[:, :, None] * scale[:, None, :]
        out += sign * drawn
    return out


def modularity_of_groups(
    moments: Moments, blocks: BlockMoments, groups: NeuronGroups, rng: np.random.Generator, *, signed: bool
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Return Q of both groups, of matched groups, and of graphs with each group's strengths, by name.

    Names are `boosting`, `boosting error` (its standard error over contexts), `boosting matched`, `boosting same
    strengths`, and those of suppressing. Time O(draw · size³).
    """

    def graphs(some: np.ndarray) -> np.ndarray:
        return correlation_graphs(moments.correlation(some, some), signed=signed)

    out = {}
    for role, drawn in groups.matched.items():
        members = getattr(groups, role)
        own = graphs(members[None])
        out[role] = modularity(own)
        without = modularity(correlation_graphs(blocks.without_each(members), signed=signed))
        out[f"{role} error"] = np.array([jackknife_error(without)])
        drawn = drawn[:MOST_DRAWS]
        at_once = max(1, ENTRIES_AT_ONCE // own.size)
        parts = [drawn[i : i + at_once] for i in range(0, len(drawn), at_once)]
        out[f"{role} matched"] = np.concatenate([modularity(graphs(part)) for part in parts])
        shuffled = [modularity(same_strengths(own[0], len(part), rng)) for part in parts]
        out[f"{role} same strengths"] = np.concatenate(shuffled)
    return out
