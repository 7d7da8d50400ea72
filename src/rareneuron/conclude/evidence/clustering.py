"""Tests whether the graph of a group's correlations is no more clustered, and no less, than it should be by chance."""

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.hypotheses import hypothesis
from rareneuron.maths.equivalence import within_margin_of_groups
from rareneuron.maths.modularity import NULLS
from rareneuron.maths.specificity import ROLES
from rareneuron.runs.groups import read_modularity

NAMED = {"matched": "matched random groups", "same strengths": "graphs of the same strengths"}


def no_clustering(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests that Q of either group is within the margin of Q of matched groups, and of shuffled graphs.

    Draws get the error of the group's Q over contexts besides their own: clusters have more of it than random groups.
    """
    found, margin = read_modularity(case.run.folder()), hypothesis("no-clustering").smallest
    of = "|correlation|" if case.gauge.sign else "correlation"
    tests = []
    for role in ROLES:
        value, error = float(found[role][0]), float(found[f"{role} error"][0])
        for null in NULLS:
            draws = found[f"{role} {null}"] + error * rng.standard_normal(len(found[f"{role} {null}"]))
            tests.append(within_margin_of_groups(value, draws, f"modularity by {of}", role, NAMED[null], margin))
    return tests


CLUSTERING: dict[str, Maker] = {"no-clustering": no_clustering}
