"""How often the tests about mechanisms say yes where there is something to find, and where there is nothing.

Per claim and planted difference: the share of simulated studies with p at most 5 %, for each test and for all of a
group's tests together. Kinds of neurons: the share of planted neurons found, and of others called one.

    python benchmarks/mechanism_power.py --studies 400
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rareneuron.conclude.evidence.mechanism import type_tests
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.intraclass import PairedTokens, type_correlations
from rareneuron.maths.known_kinds import KINDS
from rareneuron.maths.plateau import Ranks, rare_only_test
from rareneuron.maths.shares import share_tests

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.maths.test_neuron_kinds import judged, layer, planted  # the layers that the suite plants

CONTEXTS, NEURONS, SIZE, DRAWS = 60, 400, 50, 199
MANY_CONTEXTS = 400  # as many as a study of 2,000 rare tokens of the embedded corpus has
TOKENS, TYPES = 600, 250
TESTS = ("uniform", "matched", "contexts")


def groups_of(rng: np.random.Generator) -> NeuronGroups:
    """Two groups, and random ones of other neurons; matched ones are uniform here, since nothing sets neurons apart."""
    order = rng.permutation(NEURONS)
    members, others = order[: 2 * SIZE], order[2 * SIZE :]
    draws = np.stack([rng.choice(others, SIZE, replace=False) for _ in range(3 * DRAWS)])
    return NeuronGroups(
        boosting=members[:SIZE],
        suppressing=members[SIZE:],
        random=draws[:DRAWS],
        matched_random=draws[DRAWS:],
        matched_on="move",
    )


def shares(rng: np.random.Generator, difference: float) -> list[float]:
    """P of the tests of a group whose neurons have `difference` more of a mechanism than others.

    Shares differ between neurons (sd 0.2) and between contexts (sd 0.3), as on the embedded series.
    """
    groups, whole = groups_of(rng), rng.exponential(size=(CONTEXTS, NEURONS)) + 0.1
    of_neuron = 0.2 + 0.2 * rng.standard_normal(NEURONS)
    of_neuron[groups.boosting] += difference
    rest = np.abs(whole * (1 - of_neuron + 0.3 * rng.standard_normal(whole.shape)))
    return [test.p for test in share_tests(rest, whole, groups, "share", rng)[:3]]


def types(rng: np.random.Generator, difference: float) -> list[float]:
    """P of the tests of a group in whose effects a type has `difference` more of the variance than in others'.

    Half of what is left is the token's own and the same for all neurons, and effects are heavy-tailed.
    """
    groups = groups_of(rng)
    kind, context = rng.zipf(1.3, TOKENS) % TYPES, np.repeat(np.arange(CONTEXTS), TOKENS // CONTEXTS)
    of_neuron = np.full(NEURONS, 0.1)
    of_neuron[groups.boosting] += difference
    of_type, noise = rng.standard_normal((TYPES, NEURONS)), rng.standard_normal((TOKENS, NEURONS))
    noise = np.sqrt(0.5) * (noise + rng.standard_normal((TOKENS, 1)))
    effects = np.sinh(2 * (np.sqrt(of_neuron) * of_type[kind] + np.sqrt(1 - of_neuron) * noise))
    tokens = PairedTokens(kind, context)
    of_all, ranks = type_correlations(tokens, effects)
    drawn = {"uniform": groups.random, "matched": groups.matched["boosting"]}
    return [test.p for test in type_tests(tokens, of_all, drawn, ranks[:, groups.boosting], "boosting", rng)]


def plateau(rng: np.random.Generator, difference: float, n_contexts: int = CONTEXTS) -> list[float]:
    """P of the test of a head that stands `difference` higher at rare targets."""
    rank, both = np.arange(1, NEURONS + 1), []
    for lift in (0.3 + difference, 0.3):
        level = np.exp(-0.5 * np.log(rank) + lift * (rank <= 10))
        both.append(level * rng.gamma(1.0, 1.0, size=(n_contexts, NEURONS)))
    return [rare_only_test(*both, Ranks(head=10, first=21, last=250), rng).p]


def table(simulate: Callable[[np.random.Generator, float], list[float]], sizes: list[float], n: int) -> str:
    """Return one row per planted difference: how often each test, and all of them, have p at most 5 %."""
    rng, rows = np.random.default_rng(0), []
    for difference in sizes:
        p = np.array([simulate(rng, difference) for _ in range(n)])
        names = TESTS if p.shape[1] == len(TESTS) else ("contexts",)
        rows.append({"difference": difference, **dict(zip(names, (p <= 0.05).mean(0), strict=True))})
        rows[-1]["all of them"] = (p.max(1) <= 0.05).mean()
    return pd.DataFrame(rows).to_string(index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--layers", type=int, default=20)
    options = parser.parse_args()
    print("frequency-explains, norm-explains:", table(shares, [0.0, 0.05, 0.1, 0.2], options.studies), sep="\n")
    for n_contexts in (CONTEXTS, MANY_CONTEXTS):
        found_in = partial(plateau, n_contexts=n_contexts)
        sizes = table(found_in, [0.0, 0.05, 0.1, 0.2], options.studies)
        print(f"rare-only-plateau, {n_contexts} contexts:", sizes, sep="\n")
    print("type-specific:", table(types, [0.0, 0.05, 0.1, 0.2], options.studies), sep="\n")
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    false = []
    for seed in range(options.layers):
        for norm in ("layer", "rms"):
            of_layer = judged(*planted(seed, norm))[1]
            for place, kind in enumerate(KINDS):
                found[kind].append(of_layer[place] == kind)
            false.append((judged(*layer(seed, norm)[:6])[1] != "").mean())
    print("planted neurons found:", {kind: float(np.mean(hits)) for kind, hits in found.items()})
    print("neurons of an untrained layer called a kind:", float(np.mean(false)), "at most", float(np.max(false)))


if __name__ == "__main__":
    main()
