"""Tests whether heads of earlier layers write to the groups at rare targets as they do to other neurons."""

import numpy as np

from rareneuron.conclude.evidence.case import Case, Evidence, Maker
from rareneuron.conclude.hypotheses import hypothesis
from rareneuron.maths.claims import Comparison
from rareneuron.maths.routing import routing_tests
from rareneuron.runs.routing import read_routing


def no_routing(case: Case, rng: np.random.Generator) -> Evidence:
    """Return the tests of the heads with the most influence on the groups, which were chosen on other contexts."""
    margin, tests = hypothesis("no-routing").smallest, list[Comparison]()
    for head, influence in read_routing(case.run.folder()).influence.items():
        tests += routing_tests(influence, case.groups_elsewhere, head, margin, rng)
    return tests


ROUTING: dict[str, Maker] = {"no-routing": no_routing}
