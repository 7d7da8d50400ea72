"""Where words begin, against a loop over characters; and tokenizers that lose spaces, or say nothing of places."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rareneuron.data.corpus import WindowStream, begins_word, plain_ids, token_windows
from rareneuron.data.places import LAST_SPACE, WHITE, Places, beginnings
from rareneuron.data.records import Unfinished
from rareneuron.errors import VocabularyMismatch

TEXT = "the kindness of a teacher was readable\nKindness, darkness  and redness\n\tkind-hearted child\n"


def by_characters(text, spans, opens_line):
    """The definition, character by character."""
    marks, taken, firsts = [], 0, set()
    for start, stop in spans:
        first = next((i for i in range(start, stop) if not text[i].isspace()), None)
        begins = False
        if first is not None and first not in firsts:
            before = text[first - 1] if first else None
            begins = opens_line if before is None else before in "\r\n" or (before.isspace() and first - 1 >= taken)
        firsts = set() if first is None else {first}
        taken = max(taken, stop)
        marks.append(bool(begins))
    return marks


def test_white_space_is_pythons():
    assert [i for i in range(0x110000) if chr(i).isspace()] == np.flatnonzero(WHITE).tolist()
    assert not WHITE[LAST_SPACE + 1]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab \n\t\u3000é", min_size=1, max_size=14),
    cuts=st.lists(st.integers(0, 14), max_size=12),
    dropped=st.sets(st.integers(0, 12)),
    opens_line=st.booleans(),
)
def test_beginnings_agree_with_a_loop_over_characters(text, cuts, dropped, opens_line):
    """Spans are any cuts of the text, empty ones too, and some are left out as a tokenizer drops spaces."""
    edges = [*sorted({0, len(text)} | {min(cut, len(text)) for cut in cuts}), len(text)]
    pairs = [pair for i, pair in enumerate(pairwise(edges)) if i not in dropped]
    spans = np.array(pairs, np.int64).reshape(-1, 2)
    assert beginnings(text, spans, opens_line=opens_line).tolist() == by_characters(text, pairs, opens_line)


def test_pieces_of_one_character_begin_one_word_at_most():
    assert beginnings(" é", np.array([[0, 2], [1, 2]]), opens_line=True).tolist() == [True, False]


# --- tokenizers


def trained(model, trainer, before, decoder=None, normalizer=None, **options):
    backend = Tokenizer(model)
    backend.pre_tokenizer = before
    if decoder is not None:
        backend.decoder = decoder
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator([TEXT] * 5, trainer(special_tokens=["<unk>"], show_progress=False, **options))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def kinds():
    """Tokenizers that cut words into pieces, each by its own pipeline."""
    bpe, small = {"vocab_size": 40}, trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lower = normalizers.BertNormalizer()
    return {
        "whitespace": trained(models.BPE(unk_token="<unk>"), small, pre_tokenizers.Whitespace(), **bpe),
        "whitespace, fused": trained(
            models.BPE(unk_token="<unk>"), small, pre_tokenizers.Whitespace(), decoders.BPEDecoder(), **bpe
        ),
        "byte-level": trained(
            models.BPE(),
            small,
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
            vocab_size=285,
            initial_alphabet=alphabet,
        ),
        "metaspace": trained(
            models.Unigram(),
            trainers.UnigramTrainer,
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
            vocab_size=45,
            unk_token="<unk>",
        ),
        "word pieces": trained(
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer,
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(),
            lower,
            vocab_size=70,
        ),
    }


@pytest.fixture(scope="module")
def tokenizers():
    return kinds()


@pytest.mark.parametrize(
    "name", ["whitespace", "whitespace, fused", "byte-level", "metaspace", "word pieces"]
)  # fmt: skip
def test_the_inside_of_a_word_begins_none(tokenizers, name):
    tokenizer = tokenizers[name]
    ids, spans = next(Places(tokenizer)([TEXT]))
    marks = beginnings(TEXT, spans, opens_line=True)
    begun = [TEXT[a:b].strip() for (a, b), mark in zip(spans.tolist(), marks, strict=True) if mark]
    inside = [a for (a, _), mark in zip(spans.tolist(), marks, strict=True) if a and not mark and TEXT[a].isalpha()]
    assert any(TEXT[a - 1].isalpha() for a in inside), "no word is cut, so the case shows nothing"
    places = np.flatnonzero(marks)
    for i in places:
        start = spans[i][0] + len(TEXT[spans[i][0] : spans[i][1]]) - len(TEXT[spans[i][0] : spans[i][1]].lstrip())
        assert start == 0 or not TEXT[start - 1].isalpha()
    cut_from_space = sum(TEXT[a:b] == " " for a, b in spans.tolist())  # "Ġ|rip": a word whose space is another token
    n_words = sum(word[0].isalpha() for word in TEXT.split())
    assert len(begun) >= n_words - cut_from_space > 5, f"{len(begun)} of {n_words} words begin: too few are found"
    assert len(ids) == len(spans)


def test_marks_travel_with_the_windows_and_are_no_part_of_the_fingerprint(bpe):
    texts = ["The quick foxes\n", "were running unquick"] * 9
    marked = WindowStream(texts, bpe, 6, marks=True)
    windows = np.concatenate(list(marked))
    plain = token_windows(texts, bpe, 6)
    assert np.array_equal(plain_ids(windows), plain.ids)
    assert marked.fingerprint == plain.fingerprint
    assert begins_word(windows).any()
    assert not begins_word(plain.ids).any()
    assert not begins_word(windows[:, 0]).any(), "an inserted BOS"


def marked_words(tokenizer, texts):
    stream = np.concatenate([block[:, 1:].ravel() for block in WindowStream(texts, tokenizer, 3, marks=True)])
    return [tokenizer.decode([i]) for i in plain_ids(stream[begins_word(stream)])]


def test_a_text_begins_a_word_behind_eos_and_its_pieces_only_behind_a_line(bpe):
    assert marked_words(bpe, ["dogs said", "dogs"] * 2).count("dogs") == 0, "as in the vocabulary without a space"
    word = bpe.encode("Quick")
    assert len(word) == 1
    assert marked_words(bpe, ["Quick"] * 6).count("Quick") == 6
    assert marked_words(bpe, [Unfinished("Quick")] * 6).count("Quick") == 1
    assert marked_words(bpe, [Unfinished("Quick\n")] * 6).count("Quick") == 6
    assert marked_words(bpe, ["<|endoftext|>Quick and Quick,Quick"] * 4).count("Quick") == 4


class Silent:
    """A tokenizer that gives no places, as those written in Python do."""

    is_fast, bos_token_id, eos_token_id, all_special_ids, added_tokens_decoder = False, None, None, [], {}

    def __init__(self, tokenizer, *, loses=False):
        self.inner, self.loses = tokenizer, loses

    def __len__(self):
        return len(self.inner)

    def __call__(self, texts, *, return_offsets_mapping, **options):
        assert not return_offsets_mapping
        texts = [text.replace("k", "") for text in texts] if self.loses else texts
        return self.inner(texts, **options)

    def __getattr__(self, name):
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self.inner, name)


@pytest.mark.parametrize("name", ["byte-level", "metaspace"])
def test_without_places_the_tokens_spelling_says_where_they_lie(tokenizers, name):
    tokenizer = tokenizers[name]
    text = "the kindness of a child was readable"
    ids, spans = next(Places(tokenizer)([text]))
    same, spelled = next(Places(Silent(tokenizer))([text]))
    assert np.array_equal(ids, same)
    expected = beginnings(text, spans, opens_line=True)
    assert beginnings(text, np.maximum(spelled, 0), opens_line=True).tolist() == expected.tolist()


def test_tokens_that_say_neither_are_refused(tokenizers):
    silent = Silent(tokenizers["byte-level"], loses=True)
    with pytest.raises(VocabularyMismatch, match=r"Silent.*tokenizer\.json.*--words off"):
        list(Places(silent)(["the kindness"]))
