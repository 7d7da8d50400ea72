"""How often the tests about mechanisms say yes where there is something to find, and where there is nothing.

Per test and planted difference: the share of simulated studies with p at most 5 %, for the conjunction of a group's
three tests and for the worst of them. Kinds of neurons: the share of planted neurons found, and of others called one.

    python benchmarks/mechanism_power.py --studies 400
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.known_kinds import KINDS
from rareneuron.maths.shares import share_tests

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.maths.test_neuron_kinds import judged, layer, planted  # the layers that the suite plants

CONTEXTS, NEURONS, SIZE, DRAWS = 60, 400, 50, 199
TESTS = ("uniform", "matched", "contexts")


def study(rng: np.random.Generator, difference: float) -> list[float]:
    """P of the three tests of a group whose neurons have `difference` more of a mechanism than others.

    Shares differ between neurons (sd 0.2) and between contexts (sd 0.3), as on the embedded series.
    """
    whole = rng.exponential(size=(CONTEXTS, NEURONS)) + 0.1
    shares = 0.2 + 0.2 * rng.standard_normal(NEURONS)
    order = rng.permutation(NEURONS)
    members, others = order[: 2 * SIZE], order[2 * SIZE :]
    shares[members[:SIZE]] += difference
    rest = np.abs(whole * (1 - shares + 0.3 * rng.standard_normal(whole.shape)))
    draws = np.stack([rng.choice(others, SIZE, replace=False) for _ in range(3 * DRAWS)])
    groups = NeuronGroups(
        boosting=members[:SIZE],
        suppressing=members[SIZE:],
        random=draws[:DRAWS],
        matched_random=draws[DRAWS:],
        matched_on="move",
    )
    return [test.p for test in share_tests(rest, whole, groups, "share", rng)[:3]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--layers", type=int, default=20)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for difference in (0.0, 0.05, 0.1, 0.2):
        p = np.array([study(rng, difference) for _ in range(options.studies)])
        row = {"difference": difference, **dict(zip(TESTS, (p <= 0.05).mean(0), strict=True))}
        rows.append(row | {"all three": (p.max(1) <= 0.05).mean()})
    print(pd.DataFrame(rows).to_string(index=False))
    found = {kind: [] for kind in KINDS}
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
