"""Tests whether ablating a group at once does more than its neurons one by one, and more so than for random groups."""

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.maths.claims import against_groups, bootstrap_test
from rareneuron.maths.significance import against_null

SIGN = {"boosting": 1, "suppressing": -1}  # of the effect that a group is named for
EXCESS = "joint effect less the sum of single ones, over the sum of their sizes"


def joint_beyond_sum(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of the joint effect less the sum of single ones, in the group's direction, over contexts."""
    found = case.experiments
    _, row = np.unique(found["context"], return_inverse=True)
    tests = []
    for role, sign in SIGN.items():
        excess = sign * (found[f"joint_{role}"] - found[f"sum_{role}"])
        sums = np.stack([np.bincount(row, x) for x in (excess, found[f"abs_sum_{role}"])], 1)
        test = bootstrap_test(EXCESS, role, sums, lambda totals: totals[:, 0] / totals[:, 1], rng, n_tokens=len(row))
        tests.append(test)
    return tests


def joint_beyond_random(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of the excess against that of random groups, at the tokens where both were ablated."""
    found = case.experiments
    at, tests = found["joint_at"], []
    for role, sign in SIGN.items():
        excess = found[f"joint_{role}"][at] - found[f"sum_{role}"][at]
        value = sign * float(excess.sum() / found[f"abs_sum_{role}"][at].sum())
        for null in ("uniform", f"matched_{role}"):
            if f"joint_{null}" in found:
                together, alone, size = found[f"joint_{null}"].T
                draws = against_null(value, sign * (together - alone) / size)
                tests.append(against_groups(draws, EXCESS, role, null.split("_")[0], above=True))
    return tests


JOINT: dict[str, Maker] = {"joint-sum": joint_beyond_sum, "joint-random": joint_beyond_random}
