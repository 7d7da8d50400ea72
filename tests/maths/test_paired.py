"""Paired differences: errors are those of a loop over documents, intervals hold the truth, and p is what it says."""

import numpy as np
import pytest

from rareneuron.maths.paired import beside_random, clustered, detectable, mean_weights, paired_change


def simulated(rng, n_documents=60, effect=0.0, sizes=(1, 6)):
    document = np.repeat(np.arange(n_documents), rng.integers(*sizes, n_documents))
    shared = rng.normal(size=n_documents)[document]
    return effect + shared + rng.normal(size=len(document)), document


def loop(values, weight, kind, document):
    """The definition of the module's docstring, one document at a time."""
    n, total = len(set(document.tolist())), 0.0
    for c in set(document.tolist()):
        inner = 0.0
        for i in np.flatnonzero(document == c):
            inner += weight[i] * (values[i] - values[kind == kind[i]].mean())
        total += inner**2
    return sum(w * x for w, x in zip(weight, values, strict=True)), (n / (n - 1) * total) ** 0.5


@pytest.mark.parametrize("sign", [(1,), (1, -1)])
def test_errors_are_those_of_a_loop(sign):
    rng = np.random.default_rng(0)
    values, document = simulated(rng)
    kind = rng.integers(0, len(sign), len(values))
    weight = mean_weights(kind, sign)
    mean, error = clustered(np.stack([values, 2 * values]), weight, kind, document)
    for k in range(2):
        expected = loop((k + 1) * values, weight, kind, document)
        assert (mean[k], error[k]) == pytest.approx(expected, rel=1e-12)
    found = paired_change(values, document, kind, sign)
    assert (found.change, found.standard_error) == pytest.approx(loop(values, weight, kind, document), rel=1e-12)


def test_intervals_hold_the_truth_and_items_alone_would_not(through):
    inside, naive, p = [], [], []
    for seed in through(range(400)):
        values, document = simulated(np.random.default_rng(seed), effect=0.3)
        found = paired_change(values, document)
        inside.append(found.low < 0.3 < found.high)
        alone = paired_change(values, np.arange(len(values)))
        naive.append(alone.low < 0.3 < alone.high)
        p.append(paired_change(values - 0.3, document).p_below)
    assert np.mean(inside) > 0.92
    assert np.mean(naive) < 0.85, "clustering makes no difference here, so the case shows nothing"
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_the_detectable_size_is_found_four_times_in_five(through):
    found = []
    for seed in through(range(400)):
        values, document = simulated(np.random.default_rng(seed))
        size = detectable(paired_change(values, document).standard_error)
        found.append(paired_change(values - size, document).p_below <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_beside_random_groups():
    draws = np.arange(100) / 100
    found = beside_random(0.035, draws)
    assert (found.p_below, found.p_above) == (5 / 101, 97 / 101)
    assert found.mean == pytest.approx(0.495)
    nothing = beside_random(0.1, np.empty(0))
    assert nothing.p_below == 1
    assert np.isnan(nothing.mean)


def test_one_document_says_nothing_of_others():
    found = paired_change(np.array([1.0, 2.0]), np.zeros(2, np.int64))
    assert found.change == 1.5
    assert np.isnan([found.standard_error, found.low, found.p_below]).all()
    same = paired_change(np.zeros(4), np.arange(4))
    assert (same.change, same.low, same.p_below) == (0, 0, 1)
