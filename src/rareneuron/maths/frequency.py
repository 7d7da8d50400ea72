"""The logarithm of how frequent each type is, as a direction among logits.

Oracle: tests/maths/test_mechanism.py, a loop over types.
"""

import numpy as np
from jaxtyping import Bool, Float64

from rareneuron.errors import UnusableCounts


def log_frequency(
    p: Float64[np.ndarray, " vocab"], seen: Bool[np.ndarray, " vocab"] | None = None
) -> Float64[np.ndarray, " vocab"]:
    """Return f: log p less its mean over the types seen, and 0 for those never seen. By default all are."""
    known = (p > 0) if seen is None else seen & (p > 0)
    f = np.zeros(len(p))
    f[known] = np.log(p[known])
    f[known] -= f[known].mean() if known.any() else 0.0
    if not np.ptp(f) > 0:
        raise UnusableCounts(
            "All types that were seen are equally frequent, so there is no direction of frequency among the logits. "
            "Count a text in which some are more frequent than others."
        )
    return f
