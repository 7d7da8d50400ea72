"""Which neurons act: boosting and suppressing groups, and the random ones they are compared with.

A single random group has no distribution, so nulls here are many groups. Uniform ones answer "is this group
unlike any neurons?", matched ones "is it unlike neurons that are like it in a covariate, such as how far their ablation
moves the residual stream?".
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rareneuron.errors import InvalidConfig, TooFewNeurons
from rareneuron.shown import Shown

STRATUM = 20  # neurons: fine enough to match, and enough to choose from


@dataclass(frozen=True, kw_only=True)
class NeuronGroups(Shown):
    """Neuron indices of one layer at one checkpoint. Groups are ordered by mean |Δ|, largest first."""

    boosting: Int[np.ndarray, " size"]  # mean Δ > 0: ablation hurts
    suppressing: Int[np.ndarray, " size"]  # mean Δ < 0
    random: Int[np.ndarray, "draw size"]  # from neither group, uniformly
    matched_random: Int[np.ndarray, "both_draws size"] | None  # like boosting, then as many like suppressing
    matched_on: str | None
    matched_pairs: Int[np.ndarray, "pair both_sizes"] | None = None  # like boosting beside like suppressing, disjoint

    @property
    def size(self) -> int:
        """Neurons per group."""
        return len(self.boosting)

    @property
    def matched(self) -> dict[str, Int[np.ndarray, "draw size"]]:
        """Random groups that look like each group; empty where nothing was matched."""
        if self.matched_random is None:
            return {}
        like_boosting, like_suppressing = np.array_split(self.matched_random, 2)
        return {"boosting": like_boosting, "suppressing": like_suppressing}


def remedy(fit: int) -> str:
    """Return what to do where only groups of `fit` neurons can be made."""
    return f"Use groups of {fit} neurons or fewer." if fit >= 2 else "This layer is too small for groups."


def top_neurons(
    delta_loss: Float[np.ndarray, " neuron"], abs_delta_loss: Float[np.ndarray, " neuron"], size: int
) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
    """Return the `size` boosting (mean Δ > 0) and suppressing (< 0) neurons with the largest mean |Δ|."""
    order = np.argsort(-abs_delta_loss, kind="stable")
    boosting, suppressing = order[delta_loss[order] > 0], order[delta_loss[order] < 0]
    if min(len(boosting), len(suppressing)) < size:
        fit = min(len(boosting), len(suppressing))
        raise TooFewNeurons(
            f"There are {len(boosting)} boosting and {len(suppressing)} suppressing neurons, and groups of {size} were "
            f"asked for: a smaller group would not be what its name says. {remedy(fit)}",
            argument="size",
        )
    return boosting[:size], suppressing[:size]


def random_groups(
    pool: Int[np.ndarray, " candidate"], size: int, n_draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draw size"]:
    """Draw groups from `pool`, without repeats within a group."""
    if len(pool) < size:
        raise TooFewNeurons(
            f"Outside the two groups the layer has {len(pool)} neurons, fewer than a random group of {size}: there is "
            f"nothing to compare with. {remedy(len(pool) // 2)}",
            argument="size",
        )
    return np.stack([rng.choice(pool, size, replace=False) for _ in range(n_draws)])


def matched_groups(
    members: Int[np.ndarray, " size"],
    pool: Int[np.ndarray, " candidate"],
    covariate: Float[np.ndarray, " neuron"],
    n_draws: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "draw size"]:
    """Draw groups that look like `members` in `covariate`, from them and `pool` together.

    Neurons in order of the covariate form strata of about 20; each draw takes of every stratum as many as `members`
    has there. If membership says nothing beyond the stratum, members are one more such draw, and a p-value from the
    draws is exact; a wide stratum at the covariate's end leaves some of the covariate in it (docs/geometry.md). Were
    members left out, draws at the end would repeat the few neurons beside them, and would vary less than groups do.
    """
    if len(pool) < len(members):
        raise TooFewNeurons(
            f"Outside the two groups the layer has {len(pool)} neurons, fewer than a matched group of {len(members)}. "
            f"{remedy(len(pool) // 2)}",
            argument="size",
        )
    taken = [
        (stratum, n) for stratum in strata(members, pool, covariate) if (n := int(np.isin(stratum, members).sum()))
    ]
    return np.stack(
        [np.concatenate([rng.choice(stratum, n, replace=False) for stratum, n in taken]) for _ in range(n_draws)]
    )


def strata(
    members: Int[np.ndarray, " member"], pool: Int[np.ndarray, " candidate"], covariate: Float[np.ndarray, " neuron"]
) -> list[Int[np.ndarray, " stratum"]]:
    """Return members and pool in order of the covariate, cut into strata of about 20."""
    candidates = np.concatenate([members, pool])
    in_order = candidates[np.argsort(covariate[candidates], kind="stable")]
    return np.array_split(in_order, max(1, len(in_order) // STRATUM))


def matched_pairs(
    first: Int[np.ndarray, " size"],
    second: Int[np.ndarray, " size"],
    pool: Int[np.ndarray, " candidate"],
    covariate: Float[np.ndarray, " neuron"],
    n_draws: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "draw both_sizes"]:
    """Draw disjoint pairs of groups that look like `first` and `second`, from both of them and `pool` together.

    Of every stratum each draw takes as many as the two have there, and shares them out as they have them. Neurons may
    change sides: if membership and side say nothing beyond the covariate, the pair itself is one more such draw.
    """
    taken = []
    for stratum in strata(np.concatenate([first, second]), pool, covariate):
        n, both = (int(np.isin(stratum, of).sum()) for of in (first, np.concatenate([first, second])))
        if both:
            taken.append((stratum, n, both))
    out = []
    for _ in range(n_draws):
        drawn = [(rng.choice(stratum, both, replace=False), n) for stratum, n, both in taken]
        out.append(np.concatenate([some[:n] for some, n in drawn] + [some[n:] for some, n in drawn]))
    return np.stack(out)


def neuron_groups(
    delta_loss: Float[np.ndarray, " neuron"],
    abs_delta_loss: Float[np.ndarray, " neuron"],
    *,
    size: int = 50,
    n_draws: int = 1000,
    most: int | None = None,
    covariate: Float[np.ndarray, " neuron"] | None = None,
    matched_on: str | None = None,
    rng: np.random.Generator,
) -> NeuronGroups:
    """Choose the boosting and the suppressing group, and draw the random groups that they are compared with.

    Boosting neurons have mean Δ > 0, suppressing ones < 0; of either sign those with the largest mean |Δ| are taken.
    Random groups hold neurons of neither group. Matched ones look like a group in the covariate; they may hold neurons
    of the group that they look like, never of the other. Matched pairs may hold those of both.

    Args:
        delta_loss: mean Δ of each neuron in nats per token, [neuron].
        abs_delta_loss: mean |Δ| of each neuron in nats per token, [neuron].
        size: neurons per group.
        n_draws: random groups of each kind; a p-value needs 99 or more.
        most: how many neurons outside the groups, chosen at random, random groups are drawn from; all where None.
        covariate: what matched groups look alike in, [neuron], such as how far an ablation moves the residual stream;
            without it there are none.
        matched_on: name of the covariate, kept with the result.
        rng: source of all random numbers.

    Returns:
        Neuron indices of both groups, largest mean |Δ| first, and of the random groups, [draw, size].

    Raises:
        TooFewNeurons: the layer has too few neurons of a sign, or outside the groups.
        InvalidConfig: no draws were asked for, or the covariate is not finite.

    Source:
        Sec. 2 and App. 5.3.2 of “Emergent Specialization: Rare Token Neurons in Language Models”, which has one
        random group; matched ones are this package's (docs/geometry.md).

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> delta = np.array([0.3, -0.2, 0.1, -0.4, 0.02, 0.01, -0.03, 0.05])
        >>> groups = rn.neuron_groups(delta, np.abs(delta), size=2, n_draws=200, rng=np.random.default_rng(0))
        >>> groups.boosting, groups.suppressing, groups.random.shape
        (array([0, 2]), array([3, 1]), (200, 2))
    """
    if n_draws < 1:
        raise InvalidConfig(f"n_draws = {n_draws} random groups are nothing to compare with. Draw 200 or more.")
    if covariate is not None and not np.isfinite(covariate).all():
        raise InvalidConfig(
            f"The covariate {matched_on or ''} is not finite for {int((~np.isfinite(covariate)).sum())} neurons, so "
            "groups can't be matched on it. Mend it, or leave it out."
        )
    boosting, suppressing = top_neurons(delta_loss, abs_delta_loss, size)
    pool = np.setdiff1d(np.arange(len(delta_loss)), np.concatenate([boosting, suppressing]))
    if most is not None and len(pool) > most:
        pool = np.sort(rng.choice(pool, most, replace=False))
    uniform = random_groups(pool, size, n_draws, rng)
    matched = pairs = None
    if covariate is not None:
        drawn = [matched_groups(members, pool, covariate, n_draws, rng) for members in (boosting, suppressing)]
        matched = np.concatenate(drawn)
        pairs = matched_pairs(boosting, suppressing, pool, covariate, n_draws, rng)
    return NeuronGroups(
        boosting=boosting,
        suppressing=suppressing,
        random=uniform,
        matched_random=matched,
        matched_on=matched_on,
        matched_pairs=pairs,
    )


def spread_from_outside(draws: Int[np.ndarray, "draw size"]) -> float:
    """Return by how much more a group from outside strays from the draws' mean than a draw itself does.

    Draws share the N neurons that they come from, whose mean is theirs: their means over n neurons have the variance
    s²/n (1 − n/N), and that of n other neurons lies s²/n (1 + n/N) about it. So it is √((N + n)/(N − n)).
    """
    pool, size = len(np.unique(draws)), draws.shape[1]
    if pool == size:
        raise TooFewNeurons(
            f"All random groups hold the same {size} neurons, so they don't show how groups differ. "
            f"{remedy(size // 2)}",
            argument="size",
        )
    return float(np.sqrt((pool + size) / (pool - size)))


def disjoint_partners(draws: Int[np.ndarray, "draw size"], rng: np.random.Generator) -> Int[np.ndarray, "draw size"]:
    """Draw for every group another one, of neurons that were ever drawn, without a neuron of that group."""
    pool, size = np.unique(draws), draws.shape[1]
    if len(pool) < 2 * size:
        raise TooFewNeurons(
            f"The random groups hold {len(pool)} neurons in all, fewer than two groups of {size} without a common one: "
            f"there is no null for a comparison of two groups. {remedy((len(pool) + 2 * size) // 4)}",
            argument="size",
        )
    return np.stack([rng.choice(np.setdiff1d(pool, draw), size, replace=False) for draw in draws])
