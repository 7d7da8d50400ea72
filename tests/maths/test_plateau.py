"""The head's height against a loop; a head that only rare targets have is found, one that both have is not."""

import numpy as np
import pytest

from rareneuron.maths.plateau import Ranks, head_height, rare_only_test

RANKS = Ranks(head=10, first=21, last=120)
N_CONTEXTS, N_NEURONS = 60, 200


def sums_of(rng, lift):
    rank = np.arange(1, N_NEURONS + 1)
    level = np.exp(-0.5 * np.log(rank) + lift * (rank <= RANKS.head))
    return level * rng.gamma(4.0, 0.25, size=(N_CONTEXTS, N_NEURONS))


def test_the_height_agrees_with_a_loop():
    y = np.log(np.sort(sums_of(np.random.default_rng(0), 0.7), axis=1)[:3, ::-1])
    for draw, found in zip(y, head_height(y, RANKS), strict=True):
        x = [np.log(r) for r in range(RANKS.first, RANKS.last + 1)]
        slope, start = np.polyfit(x, draw[RANKS.first - 1 : RANKS.last], 1)
        slow = [draw[r - 1] - (start + slope * np.log(r)) for r in range(1, RANKS.head + 1)]
        assert found == pytest.approx(np.mean(slow), rel=1e-9)


@pytest.mark.parametrize(("at_common", "seen"), [(0.0, True), (0.6, False)])
def test_a_head_of_rare_targets_alone_is_found(at_common, seen):
    rng = np.random.default_rng(1)
    test = rare_only_test(sums_of(rng, 0.6), sums_of(rng, at_common), RANKS, rng)
    assert (test.p < 0.01) == seen
    assert test.effect == pytest.approx(0.6 - at_common, abs=0.1)
    assert test.effect_low < 0.6 - at_common < test.effect_high


@pytest.mark.slow  # a simulation
def test_where_there_is_nothing_p_keeps_its_promise(through):
    beyond = [
        rare_only_test(sums_of(rng, 0.3), sums_of(rng, 0.3), RANKS, rng).p <= 0.05
        for rng in map(np.random.default_rng, through(range(100)))
    ]
    assert np.mean(beyond) <= 0.12  # five of a hundred, and three standard errors
