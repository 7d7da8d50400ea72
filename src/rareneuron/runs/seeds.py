"""All streams of random numbers of a study, by name: no two share a seed, and adding one changes no other.

A generator is seeded by the study's seed, the number of its stream, and a name or index where a stream has several
generators. A number is never given to another stream, since reported values depend on it. `claims` and
`checks` are seeded by the name of each claim, so that a further one leaves the p-values of the others as they are.
"""

from hashlib import sha256

import numpy as np

STREAMS = {
    "tokens": 0,  # which contexts are analysed, and which of their tokens
    "audit": 1,  # which effects an engine computes again; the signs of random readouts
    "groups": 2,  # random and matched groups
    "phases": 3,  # null samples and bootstrap, by the index of the ranking
    "geometry": 4,
    "spectrum": 5,
    "experiments": 6,  # which contexts whole groups are ablated in
    "claims": 7,  # by name
    "checks": 8,  # by name
    "layers": 10,  # signs of random readouts, which cells are patched, which tokens the closed form checks
    "layer profile": 11,  # contexts resampled
    "modularity": 12,  # graphs with the strengths of each group's
    "routing": 16,  # tokens at which heads are estimated; the signs of their random readouts, by name
    "swaps": 15,  # which words of the text are swapped, and for which
    "reference text": 9,  # in which order contexts say what the model predicts on average; of seed 0 always
}


def generator(seed: int, stream: str, *which: str | int) -> np.random.Generator:
    """Return the generator of one stream; `which` names one of several in a stream.

    >>> bool(generator(0, "claims", "slope-kink").random() == generator(0, "claims", "dimension").random())
    False
    """
    parts = [part if isinstance(part, int) else number(part) for part in which]
    return np.random.default_rng([seed, STREAMS[stream], *parts])


def number(name: str) -> int:
    """Return 32 bits of a name's SHA-256, the same in every process."""
    return int.from_bytes(sha256(name.encode()).digest()[:4], "big")
