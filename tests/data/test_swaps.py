"""Places and words of the rare-word swap, held against a loop that reads like the rules."""

import numpy as np
import pytest

from rareneuron.data.records import Unfinished
from rareneuron.data.swaps import (
    CONTEXTS_PER_DOCUMENT,
    LEAST_BEFORE,
    NEVER,
    PER_DOCUMENT,
    document_of,
    form_of,
    swap_pairs,
    swap_places,
    swap_words,
    token_stream,
    unseen,
)
from rareneuron.embedded.recipe import make_tokenizer
from rareneuron.errors import MissingText
from tests.tiny_series import WORDS

LENGTH = 24


def texts(n=80, n_words=90, seed=0):
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(rng.choice(WORDS, n_words, p=p / p.sum())) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([" ".join(texts())], vocab_size=900)


@pytest.fixture(scope="module")
def stream(tokenizer):
    return token_stream(texts(), tokenizer, 10**6)


@pytest.fixture(scope="module")
def words(tokenizer, stream):
    counts = np.bincount(stream.ids, minlength=len(tokenizer)).astype(float)
    frequency = np.where(counts > 0, counts / counts.sum(), np.nan)
    return swap_words(tokenizer, frequency, counts < np.quantile(counts[counts > 0], 0.7))


def made(stream, words, tokenizer, seed=0, **changes):
    settings = {"context_length": LENGTH, "analysed": np.empty(0, np.int64), "n_items": 200, "n_following": 0}
    return swap_pairs(stream, words, tokenizer, rng=np.random.default_rng(seed), **settings | changes)


def stride_of(tokenizer):
    return LENGTH - (tokenizer.bos_token_id is not None)


def test_the_stream_is_the_texts_joined_as_a_study_joins_them(tokenizer, stream):
    eos = [tokenizer.eos_token_id]
    expected = [i for text in texts() for i in tokenizer.encode(text, add_special_tokens=False) + eos]
    assert stream.ids.tolist() == expected
    assert (stream.text[stream.ids == tokenizer.eos_token_id] == NEVER).all()
    cut = token_stream([Unfinished(texts()[0] + "\n"), texts()[1]], tokenizer, 10**6)
    assert set(cut.text.tolist()) == {0, NEVER}, "pieces of one text"
    assert cut.place[:-1].tolist() == list(range(len(cut.ids) - 1))
    assert len(token_stream(texts(), tokenizer, 100).ids) < len(stream.ids)


@pytest.mark.parametrize("n_following", [0, 3])
def test_places_are_those_of_a_loop(tokenizer, stream, words, n_following):
    stride = stride_of(tokenizer)
    expected = []
    for i, word in enumerate(stream.ids):
        offset = stream.place[i] % stride
        is_word = stream.begins[i] and words.shape[word, 0] != NEVER and offset >= LEAST_BEFORE
        if not is_word or i + 1 >= len(stream.ids) or stream.text[i + 1] != stream.text[i]:
            continue
        text = tokenizer.decode([stream.ids[i + 1]])
        if not stream.begins[i + 1] and (text[0].isalnum() or text[0] in "'’-_"):
            continue
        inside = all(
            i + k < len(stream.ids) and stream.text[i + k] == stream.text[i] and offset + k < stride
            for k in range(n_following + 1)
        )
        expected += [i] if inside else []
    assert len(expected) > 300
    assert np.flatnonzero(swap_places(stream, words, stride, n_following)).tolist() == expected


def test_pairs_follow_the_rules(tokenizer, stream, words):
    pairs = made(stream, words, tokenizer)
    assert len(pairs) > 60
    assert 0.2 < pairs.rare.mean() < 0.8
    window = pairs.windows[pairs.context]
    assert (window[np.arange(len(pairs)), pairs.position + 1] == pairs.original).all()
    for i in range(len(pairs)):
        one, other = (form_of(tokenizer.decode([w])) for w in (pairs.original[i], pairs.swap[i]))
        assert one[:2] == other[:2], "space and casing"
        assert 0.5 < words.frequency[pairs.original[i]] / words.frequency[pairs.swap[i]] < 2
        assert words.rare[pairs.original[i]] == words.rare[pairs.swap[i]] == pairs.rare[i]
        assert pairs.swap[i] not in window[i]
    for kind in (True, False):
        of = pairs.rare == kind
        assert sorted(pairs.original[of]) == sorted(pairs.swap[of]), "the same words out as in"
        each = np.unique(np.stack([pairs.document[of], pairs.original[of]]), axis=1, return_counts=True)[1]
        assert each.max() == 1, "a word once a document"
        assert np.unique(pairs.document[of], return_counts=True)[1].max() <= PER_DOCUMENT


def test_the_seed_decides(tokenizer, stream, words):
    first, again, other = (made(stream, words, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.swap, again.swap)
    assert np.array_equal(first.windows, again.windows)
    assert not np.array_equal(first.original, other.original)


def test_documents_of_which_anything_was_analysed_are_left_out(tokenizer, stream, words):
    stride = stride_of(tokenizer)
    analysed = np.arange(0, len(stream.ids) // stride, 6)
    seen = np.zeros(len(stream.ids), bool)
    for window in analysed:
        seen[window * stride : (window + 1) * stride] = True
    document = document_of(stream, stride)
    left = made(stream, words, tokenizer, analysed=analysed)
    touched = {d for d in np.unique(document[seen]).tolist() if d != NEVER}
    assert touched
    assert not touched & set(left.document.tolist())
    assert touched & set(made(stream, words, tokenizer).document.tolist()), "the case could tell"
    assert unseen(document, stride, np.empty(0, np.int64)).sum() == (document != NEVER).sum()
    with pytest.raises(MissingText, match=r"None of 0 documents .* Give more or other text"):
        made(stream, words, tokenizer, analysed=np.arange(len(stream.ids)))


def test_a_long_text_is_several_documents(tokenizer):
    long = token_stream([" ".join(texts())], tokenizer, 10**6)
    pieces = np.unique(document_of(long, stride_of(tokenizer)), return_counts=True)[1]
    assert pieces.max() == CONTEXTS_PER_DOCUMENT * stride_of(tokenizer)


def test_forms():
    assert form_of(" Running") == (True, "title", 1, "ing")
    assert form_of("NATO") == (False, "upper", 0, "")
    for text in (" a", "x2", " iPhone", "", " two words", "don't"):
        assert form_of(text) is None


def test_words_of_unknown_frequency_or_several_tokens_are_never_swapped(tokenizer, words):
    nan = np.full(len(tokenizer), np.nan)
    assert (swap_words(tokenizer, nan, np.zeros(len(tokenizer), bool)).shape == NEVER).all()
    known = np.flatnonzero(words.shape[:, 0] != NEVER)
    assert len(known) > 50
    for i in known:
        text = tokenizer.decode([int(i)])
        assert tokenizer.encode(text, add_special_tokens=False) == [i]
        assert np.isfinite(words.frequency[i])
