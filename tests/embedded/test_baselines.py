"""The n-gram models against the recursion as textbooks write it, in dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from rareneuron.embedded.baselines import ngram_losses, probabilities

VOCAB = 7


def windows(seed, n=30, length=9, vocab=VOCAB):
    """Ids that follow each other unevenly, so that histories matter."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(vocab, 0.3), size=vocab)
    ids = np.zeros((n, length), np.int32)
    for t in range(1, length):
        ids[:, t] = [rng.choice(vocab, p=transition[i]) for i in ids[:, t - 1]]
    return ids


class KneserNey:
    """Interpolated Kneser-Ney of one order: Chen & Goodman (1999), one discount n₁/(n₁ + 2n₂) an order."""

    def __init__(self, training, vocab, order):
        self.vocab, self.counts = vocab, {}
        for n in range(1, order + 1):
            grams = [tuple(w[t - n + 1 : t + 1]) for w in training for t in range(max(1, n - 1), len(w))]
            self.counts[n] = Counter(grams)
        for n in range(1, order):  # below the highest order: in how many ways it was preceded
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.discount = {}
        for n, counts in self.counts.items():
            once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
            self.discount[n] = max(1, once) / (max(1, once) + 2 * twice)  # never 0: nothing is impossible
        self.after = {n: defaultdict(dict) for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.after[n][gram[:-1]][gram[-1]] = count

    def probability(self, word, history):
        if len(history) + 1 > len(self.counts):
            history = history[len(history) + 1 - len(self.counts) :]
        shorter = self.probability(word, history[1:]) if history else 1 / self.vocab
        n, followers = len(history) + 1, self.after[len(history) + 1].get(tuple(history))
        if not followers:
            return shorter
        total, D = sum(followers.values()), self.discount[n]
        return max(followers.get(word, 0) - D, 0) / total + D * len(followers) / total * shorter


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_those_of_the_recursion(order, seed):
    training, held_out = windows(seed), windows(seed + 100)
    slow = KneserNey(training.tolist(), VOCAB, order)
    expected = [[slow.probability(w[t], tuple(w[:t])) for t in range(1, len(w))] for w in held_out.tolist()]
    found = probabilities(training, held_out, VOCAB, order)
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64, a handful of operations
    assert np.ptp(found) > 0.1, "the case is too tame to tell right from wrong"


def test_orders_differ():
    training, held_out = windows(0), windows(100)
    first, second, third = (probabilities(training, held_out, VOCAB, order) for order in (1, 2, 3))
    assert np.abs(first - second).max() > 0.1
    assert np.abs(second - third).max() > 0.1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_over_the_vocabulary(order):
    """Also after histories never seen, and with a type that never occurred."""
    training = windows(0, n=60, length=4)
    for history in ([0, 3, 5], [1, 1, 1], [VOCAB, VOCAB, 2], [0, 2, VOCAB]):
        every = np.array([[*history, word] for word in range(VOCAB + 1)], np.int32)
        p = probabilities(training, every, VOCAB + 1, order)[:, -1]
        assert (p > 0).all()
        assert p.sum() == pytest.approx(1, abs=1e-12)  # float64


def test_losses_are_means_of_minus_log_probability():
    training, held_out = windows(0, n=200), windows(100)
    losses = ngram_losses(training, held_out, VOCAB)
    assert list(losses) == ["unigram", "bigram", "trigram"]
    for order, loss in enumerate(losses.values(), start=1):
        p = probabilities(training, held_out, VOCAB, order)
        assert loss == pytest.approx(-sum(math.log(x) for x in p.ravel()) / p.size, rel=1e-12)
    same = ngram_losses(training, windows(0, n=300)[200:], VOCAB)  # the source that was trained on
    assert same["bigram"] < same["unigram"] - 0.2


def test_keys_of_the_real_vocabulary_do_not_overflow():
    training = windows(0) * np.int32(2_340)  # ids up to 14,040
    vocab = 16_384
    slow = KneserNey(training.tolist(), vocab, 3)
    expected = [[slow.probability(w[t], tuple(w[:t])) for t in range(1, len(w))] for w in training[:3].tolist()]
    np.testing.assert_allclose(probabilities(training, training[:3], vocab, 3), expected, rtol=1e-12)
