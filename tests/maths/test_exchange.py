"""Words are exchanged within strata: the same words out as in, so whoever scores words by themselves gains nothing."""

import numpy as np
import pytest

from rareneuron.maths.exchange import NOBODY, exchange


def items(rng, n=120, n_words=60, n_strata=4):
    word = rng.integers(0, n_words, n)
    stratum = word % n_strata
    document = rng.integers(0, 30, n)
    nearby = [frozenset({int(w)} | set(rng.integers(0, n_words, 3).tolist())) for w in word]
    return stratum, word, document, nearby


@pytest.mark.parametrize("seed", range(5))
def test_every_item_gets_a_fitting_word_of_its_stratum(seed):
    stratum, word, document, nearby = items(np.random.default_rng(seed))
    giver = exchange(stratum, word, document, nearby, np.random.default_rng(seed))
    has = giver != NOBODY
    assert has.mean() > 0.8
    for i in np.flatnonzero(has):
        j = giver[i]
        assert stratum[i] == stratum[j]
        assert document[i] != document[j]
        assert word[i] != word[j]
        assert int(word[j]) not in nearby[i]


def test_what_comes_in_is_what_goes_out(through):
    """So that a unigram score has a mean difference of exactly 0, and is right half of the time; others aren't."""
    rights = []
    for seed in through(range(60)):
        rng = np.random.default_rng(seed)
        stratum, word, document, nearby = items(rng)
        giver = exchange(stratum, word, document, nearby, rng)
        has = giver != NOBODY
        assert sorted(word[has]) == sorted(word[giver[has]])
        score = rng.normal(size=60)
        difference = score[word[has]] - score[word[giver[has]]]
        assert abs(difference.sum()) < 1e-9
        rights.append((difference > 0).mean())
    assert np.mean(rights) == pytest.approx(0.5, abs=0.02)
    unfit = score[word[has]] - score[rng.integers(0, 60, has.sum())]
    assert abs(unfit.sum()) > 1e-3, "any other swap has a difference"


def test_who_fits_nobody_is_left_alone():
    nothing = [frozenset()] * 3
    word, document = np.array([1, 1, 2]), np.array([0, 1, 2])
    alone = exchange(np.array([0, 1, 2]), word, document, nothing, np.random.default_rng(0))
    assert (alone == NOBODY).all()
    same_word = exchange(np.array([0, 0, 1]), word, document, nothing, np.random.default_rng(0))
    assert (same_word == NOBODY).all()
    pair = exchange(np.array([0, 1, 0]), word, document, nothing, np.random.default_rng(0))
    assert pair.tolist() == [2, NOBODY, 0]


def test_the_seed_decides():
    stratum, word, document, nearby = items(np.random.default_rng(0))
    first, again, other = (exchange(stratum, word, document, nearby, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
