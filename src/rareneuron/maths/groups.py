"""Which neurons act: boosting and suppressing groups, and the random ones they are compared with.

A single random group has no distribution, so nulls here are many groups. Uniform ones answer "is this group
unlike any neurons?", matched ones "is it unlike neurons that are as active (or as long in W_out)?".
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import TooFewNeurons


@dataclass(frozen=True, kw_only=True)
class NeuronGroups:
    """Neuron indices of one layer at one checkpoint. Groups are ordered by mean |Δ|, largest first."""

    boosting: Int[np.ndarray, " size"]  # mean Δ > 0: ablation hurts
    suppressing: Int[np.ndarray, " size"]  # mean Δ < 0
    random: Int[np.ndarray, "draw size"]  # from neither group, uniformly
    matched_random: Int[np.ndarray, "draw size"] | None  # from neither group, matched neuron by neuron
    matched_on: str | None

    @property
    def size(self) -> int:
        """Neurons per group."""
        return len(self.boosting)


def remedy(fit: int) -> str:
    """What to do where only groups of `fit` neurons can be made."""
    return f"Use --group-size {fit} or less." if fit >= 2 else "This layer is too small for groups."


def top_neurons(
    delta_loss: Float[np.ndarray, " neuron"], abs_delta_loss: Float[np.ndarray, " neuron"], size: int
) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """The `size` boosting (mean Δ > 0) and suppressing (< 0) neurons with the largest mean |Δ|."""
    order = np.argsort(-abs_delta_loss, kind="stable")
    boosting, suppressing = order[delta_loss[order] > 0], order[delta_loss[order] < 0]
    if min(len(boosting), len(suppressing)) < size:
        fit = min(len(boosting), len(suppressing))
        raise TooFewNeurons(
            f"There are {len(boosting)} boosting and {len(suppressing)} suppressing neurons, and groups of {size} were "
            f"asked for: a smaller group would not be what its name says. {remedy(fit)}"
        )
    return boosting[:size], suppressing[:size]


def random_groups(
    pool: Int[np.ndarray, " candidate"], size: int, n_draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draw size"]:
    """Seeded groups drawn from `pool`, without repeats within a group."""
    if len(pool) < size:
        raise TooFewNeurons(
            f"Outside the two groups the layer has {len(pool)} neurons, fewer than a random group of {size}: there is "
            f"nothing to compare with. {remedy(len(pool) // 2)}"
        )
    return np.stack([rng.choice(pool, size, replace=False) for _ in range(n_draws)])


def matched_groups(
    members: Int[np.ndarray, " size"],
    pool: Int[np.ndarray, " candidate"],
    covariate: Float[np.ndarray, " neuron"],
    n_draws: int,
    rng: np.random.Generator,
    *,
    neighbours: int = 20,
) -> Int[np.ndarray, "draw size"]:
    """Groups that look like `members` in `covariate`: each member gives its place to a near neighbour in rank.

    Each draw visits the members in random order and replaces each by one of its `neighbours` nearest unused pool
    neurons (by rank of the covariate over the whole layer), drawn uniformly.
    """
    if len(pool) < len(members):
        raise TooFewNeurons(
            f"Outside the two groups the layer has {len(pool)} neurons, fewer than a matched group of {len(members)}. "
            f"{remedy(len(pool) // 2)}"
        )
    rank = np.argsort(np.argsort(covariate, kind="stable"), kind="stable")
    nearest = np.argsort(np.abs(rank[members][:, None] - rank[pool][None, :]), axis=1, kind="stable")
    draws = np.empty((n_draws, len(members)), dtype=pool.dtype)
    for draw in draws:
        free = np.ones(len(pool), dtype=bool)
        for place in rng.permutation(len(members)):
            candidates = nearest[place][free[nearest[place]]][:neighbours]
            chosen = rng.choice(candidates)
            free[chosen] = False
            draw[place] = pool[chosen]
    return draws


def neuron_groups(
    delta_loss: Float[np.ndarray, " neuron"],
    abs_delta_loss: Float[np.ndarray, " neuron"],
    *,
    size: int = 50,
    n_draws: int = 200,
    covariate: Float[np.ndarray, " neuron"] | None = None,
    matched_on: str | None = None,
    rng: np.random.Generator,
) -> NeuronGroups:
    """Boosting and suppressing groups by mean |Δ|, with `n_draws` uniform and matched random groups.

    Matched groups alternate between looking like the boosting and like the suppressing group.
    """
    boosting, suppressing = top_neurons(delta_loss, abs_delta_loss, size)
    pool = np.setdiff1d(np.arange(len(delta_loss)), np.concatenate([boosting, suppressing]))
    uniform = random_groups(pool, size, n_draws, rng)
    matched = None
    if covariate is not None:
        halves = (boosting, (n_draws + 1) // 2), (suppressing, n_draws // 2)
        drawn = [matched_groups(members, pool, covariate, n, rng) for members, n in halves]
        matched = np.concatenate(drawn)
    return NeuronGroups(
        boosting=boosting, suppressing=suppressing, random=uniform, matched_random=matched, matched_on=matched_on
    )
