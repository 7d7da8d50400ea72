"""Does the claim of no routing keep its level at the margin's edge, and is it supported where no head routes?

Influences of one head on 300 neurons in 60 contexts: each neuron has its own size and its own log ratio of rare to
common targets (its spread over neurons is the first column), and every context its noise. A group of 50 has a larger
ratio besides. For each such lift the share of studies in which all three tests of the group have p ≤ 5 %, and p ≤ 0.25
%, as Holm asks for among twenty claims. At the margin the first should be 3 to 7 %.

    OMP_NUM_THREADS=1 python benchmarks/routing.py
"""

import numpy as np

from rareneuron.conclude.hypotheses import hypothesis
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.routing import Influence, routing_tests

SIZE, POOL, CONTEXTS, DRAWS, REPEATS = 50, 300, 60, 399, 1500
SPREADS, LIFTS = (0.05, 0.1, 0.2), (0.0, 0.05, 0.1, 0.2)


def study(rng: np.random.Generator, lift: float, spread: float, margin: float) -> tuple[float, float]:
    """Return the largest p of the planted group's tests, and the largest margin that one of them would find."""
    ratio = spread * rng.standard_normal(POOL)
    ratio[:SIZE] += lift
    n_rare, n_common = (rng.integers(5, 15, CONTEXTS) for _ in "12")
    size = rng.exponential(size=POOL) + 0.2
    rare, common = (
        size * n[:, None] * rng.gamma(4, 0.25, (CONTEXTS, POOL)) * rng.gamma(9, 1 / 9, (CONTEXTS, 1))
        for n in (n_rare, n_common)
    )
    influence = Influence(rare=rare * np.exp(ratio), common=common, n_rare=n_rare, n_common=n_common)
    boosting, suppressing, others = np.arange(SIZE), np.arange(SIZE, 2 * SIZE), np.arange(2 * SIZE, POOL)
    # As in a study, uniform groups come from neither group, and matched ones from the group and the others.
    pools = [others, np.append(boosting, others), np.append(suppressing, others)]
    random, *matched = ([rng.choice(pool, SIZE, replace=False) for _ in range(DRAWS)] for pool in pools)
    groups = NeuronGroups(
        boosting=boosting,
        suppressing=suppressing,
        random=np.stack(random),
        matched_random=np.concatenate(matched),
        matched_on="move",
    )
    tests = routing_tests(influence, groups, "0.h0", margin, rng)[:3]
    return max(test.p for test in tests), max(test.noise.detectable(0.05, 0.8) for test in tests if test.noise)


def main() -> None:
    """Print one line for each spread and lift."""
    margin = hypothesis("no-routing").smallest
    print(f"margin {margin}")
    print("| sd over neurons | lift | p ≤ 5 %, % | p ≤ 0.25 %, % | detectable |")
    for spread in SPREADS:
        for lift in LIFTS:
            rng = np.random.default_rng(0)
            p, detectable = np.array([study(rng, lift, spread, margin) for _ in range(REPEATS)]).T
            shares = 100 * (p <= 0.05).mean(), 100 * (p <= 0.0025).mean()
            print(
                f"| {spread} | {lift} | {shares[0]:.1f} | {shares[1]:.1f} | {np.median(detectable):.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
