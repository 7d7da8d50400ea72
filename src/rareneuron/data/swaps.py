"""Pairs of sentences that differ in one word, made from a text: the rules of the rare-word swap.

An item is a place in a text where a whole word is one token, and another word that stands there in its stead. The other
word is as frequent (the same power of two), cased and spaced alike, as long, and has the same ending, which speaks for
its part of speech; it is another item's own word (`maths.exchange`). Where no word is left with this length and ending,
any other of that frequency and casing will do. So neither frequency nor form tells which of the two was written there:
the context has to. Documents are texts, long ones in pieces of a few contexts; those of which a
study analysed anything are left out, since its groups were chosen on them. Oracle: tests/data/test_swaps.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from rareneuron.data.corpus import text_batches
from rareneuron.data.places import Places, beginnings, ends_line
from rareneuron.data.records import Unfinished
from rareneuron.data.words import LEAST_LETTERS, type_texts
from rareneuron.errors import MissingText
from rareneuron.maths.exchange import NOBODY, exchange

CONTEXTS_PER_DOCUMENT = 8  # of a longer text, each piece of so many contexts is a document of its own
PER_DOCUMENT = 4  # items with a rare word at most, and as many with a common one
LEAST_BEFORE = 8  # tokens of the context before a word: with fewer, nothing tells which word fits
ENDINGS = ("ing", "ed", "ly", "ion", "er", "al", "s")  # the first that fits; the rest are one class
LENGTHS = (5, 8)  # letters at which the next class of lengths begins
WORD_LETTERS = "'’-_"  # beside letters and digits, what goes on with a word
COARSE = 2  # how much of a form is left for words of which no other has the whole form: space and casing
NEVER = -1


@dataclass(frozen=True, kw_only=True)
class SwapWords:
    """Which types of a vocabulary may be swapped, and how they look."""

    frequency: Float[np.ndarray, " vocab"]  # unigram probability; NaN where it isn't known
    rare: Bool[np.ndarray, " vocab"]
    shape: Int[np.ndarray, "vocab 2"]  # classes of form, fine and coarse; `NEVER` where a type isn't swapped
    goes_on: Bool[np.ndarray, " vocab"]  # behind a word, its text would be more of that word


def swap_words(tokenizer: Any, frequency: Float[np.ndarray, " vocab"], rare: Bool[np.ndarray, " vocab"]) -> SwapWords:
    """Return the words of a vocabulary whose frequency is known, by their form."""
    texts = type_texts(tokenizer, len(frequency))
    shape = np.full((len(texts), 2), NEVER)
    classes: dict[tuple[Any, ...], int] = {}
    for i in np.flatnonzero(np.isfinite(frequency)):
        form = form_of(texts[i])
        if form is not None and tokenizer.encode(texts[i], add_special_tokens=False) == [i]:
            shape[i] = [classes.setdefault(part, len(classes)) for part in (form, form[:COARSE])]
    goes_on = np.array([bool(text) and (text[0].isalnum() or text[0] in WORD_LETTERS) for text in texts])
    return SwapWords(frequency=frequency, rare=rare, shape=shape, goes_on=goes_on)


def form_of(text: str) -> tuple[Any, ...] | None:
    """Return how a type's text looks: space before it, casing, length, ending. None for what is no plain word."""
    word = text.removeprefix(" ")
    if len(word) < LEAST_LETTERS or not word.isalpha():
        return None
    casing = "lower" if word.islower() else "upper" if word.isupper() else "title" if word.istitle() else None
    if casing is None:
        return None
    ending = next((end for end in ENDINGS if word.lower().endswith(end)), "")
    return text.startswith(" "), casing, sum(len(word) >= limit for limit in LENGTHS), ending


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """A text as one row of ids, texts joined as a study joins them."""

    ids: Int32[np.ndarray, " token"]
    begins: Bool[np.ndarray, " token"]  # a word
    text: Int[np.ndarray, " token"]  # which text; the EOS behind a text belongs to none
    place: Int[np.ndarray, " token"]  # within its text


def token_stream(texts: Iterable[str], tokenizer: Any, max_tokens: int) -> TokenStream:
    """Read texts until there are `max_tokens` tokens, or they end."""
    parts: list[tuple[np.ndarray, ...]] = []
    n = 0
    for part in stream_parts(texts, tokenizer):
        parts.append(part)
        n += len(part[0])
        if n >= max_tokens:
            break
    ids, begins, text, place = (np.concatenate(x) for x in zip(*parts, strict=True)) if parts else ([],) * 4
    return TokenStream(
        ids=np.asarray(ids, np.int32),
        begins=np.asarray(begins, bool),
        text=np.asarray(text, np.int64),
        place=np.asarray(place, np.int64),
    )


def stream_parts(texts: Iterable[str], tokenizer: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield ids, which begin a word, their text and their place in it, for each text or piece of one."""
    places, eos = Places(tokenizer), tokenizer.eos_token_id
    number, length, opens_line = 0, 0, True
    for batch in text_batches(texts):
        for text, (ids, spans) in zip(batch, places(batch), strict=True):
            marks = beginnings(text, spans, opens_line=opens_line)
            ends = not isinstance(text, Unfinished)
            closed = ends and eos is not None
            opens_line = closed or (ends_line(text) if text else opens_line)
            place = length + np.arange(len(ids))
            yield (
                np.append(ids, np.int32(eos)) if closed else ids,
                np.append(marks, False) if closed else marks,
                np.append(np.full(len(ids), number), NEVER) if closed else np.full(len(ids), number),
                np.append(place, NEVER) if closed else place,
            )
            length = 0 if ends else length + len(ids)
            number += ends


@dataclass(frozen=True, kw_only=True)
class SwapPairs:
    """Items of the rare-word swap: contexts, and in each some words that have another in their stead."""

    windows: Int32[np.ndarray, "context position"]  # filled up to the right, which no earlier position sees
    context: Int[np.ndarray, " item"]  # row of `windows`
    position: Int[np.ndarray, " item"]  # t, where the word at t + 1 is predicted
    document: Int[np.ndarray, " item"]
    original: Int[np.ndarray, " item"]
    swap: Int[np.ndarray, " item"]
    rare: Bool[np.ndarray, " item"]
    n_places: int  # where a word could have been swapped, of which these were drawn
    n_alone: int  # drawn, and without another word that fits
    n_documents: int  # left to draw from

    def __len__(self) -> int:
        return len(self.context)


def swap_pairs(
    stream: TokenStream,
    words: SwapWords,
    tokenizer: Any,
    *,
    context_length: int,
    analysed: Int[np.ndarray, " context"],
    n_items: int,
    n_following: int,
    rng: np.random.Generator,
) -> SwapPairs:
    """Draw places in documents that were not analysed, `n_items` of either kind at most, and exchange their words.

    `analysed` are the windows of the stream that a study looked at; `n_following` tokens stand behind each word in its
    context.
    """
    bos = tokenizer.bos_token_id
    stride = context_length - (bos is not None)
    document = document_of(stream, stride)
    open_to = unseen(document, stride, analysed)
    places = swap_places(stream, words, stride, n_following) & open_to
    drawn = drawn_places(np.flatnonzero(places), stream.ids, document, words.rare, n_items, rng)
    if not len(drawn):
        raise MissingText(
            f"None of {len(np.unique(document[open_to])):,} documents that the study didn't analyse has a word that "
            "could be swapped. Give more or other text (--data)."
        )
    start = drawn - stream.place[drawn] % stride
    starts, context = np.unique(start, return_inverse=True)
    windows = contexts_at(stream, starts, stride, bos)
    original, of = stream.ids[drawn].astype(np.int64), document[drawn]
    rare = words.rare[original]
    octave = np.floor(np.log2(words.frequency[original])).astype(np.int64)
    nearby = [frozenset(windows[row].tolist()) for row in context]
    giver = np.full(len(drawn), NOBODY)
    for shape in words.shape[original].T:
        left = np.flatnonzero(giver == NOBODY)
        strata = np.stack([rare, shape, octave], 1)[left]
        stratum = np.unique(strata, axis=0, return_inverse=True)[1].ravel()
        found = exchange(stratum, original[left], of[left], [nearby[i] for i in left], rng)
        giver[left] = np.where(found == NOBODY, NOBODY, left[found])
    kept = giver != NOBODY
    used, context = np.unique(context[kept], return_inverse=True)
    return SwapPairs(
        windows=windows[used],
        context=context,
        position=(drawn - start)[kept] - 1 + (bos is not None),
        document=of[kept],
        original=original[kept],
        swap=original[giver[kept]],
        rare=rare[kept],
        n_places=int(places.sum()),
        n_alone=int((~kept).sum()),
        n_documents=len(np.unique(document[open_to])),
    )


def document_of(stream: TokenStream, stride: int) -> Int[np.ndarray, " token"]:
    """Return the document of each token: its text, or the piece of a long one; `NEVER` for the EOS between texts."""
    piece = stream.place // (stride * CONTEXTS_PER_DOCUMENT)
    found = np.unique(np.stack([stream.text, piece], 1), axis=0, return_inverse=True)[1].ravel()
    return np.where(stream.text == NEVER, NEVER, found)


def unseen(
    document: Int[np.ndarray, " token"], stride: int, analysed: Int[np.ndarray, " context"]
) -> Bool[np.ndarray, " token"]:
    """Mark the tokens of documents that lie in none of the windows analysed."""
    in_window = np.zeros(len(document), bool)
    for window in analysed:
        in_window[window * stride : (window + 1) * stride] = True
    return ~np.isin(document, np.unique(document[in_window])) & (document != NEVER)


def swap_places(stream: TokenStream, words: SwapWords, stride: int, n_following: int) -> Bool[np.ndarray, " token"]:
    """Mark tokens that are a whole word which may be swapped, with enough of their context before and behind."""
    ids, offset = stream.ids, stream.place % stride
    fits = stream.begins & (words.shape[ids, 0] != NEVER) & (offset >= LEAST_BEFORE)
    behind = np.append(ids[1:], 0)
    same_text = np.append(stream.text[1:] == stream.text[:-1], False)
    is_whole = same_text & (np.append(stream.begins[1:], False) | ~words.goes_on[behind])
    last = np.minimum(np.arange(len(ids)) + n_following, len(ids) - 1)
    has_rest = (offset + n_following < stride) & (stream.text[last] == stream.text)
    return fits & is_whole & has_rest


def drawn_places(
    places: Int[np.ndarray, " place"],
    ids: Int32[np.ndarray, " token"],
    document: Int[np.ndarray, " token"],
    rare: Bool[np.ndarray, " vocab"],
    n_items: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " drawn"]:
    """Draw a place with a rare word and one with a common word from each document, in a random order.

    Where that isn't enough, each gives a second of either, with other words, and so on.
    """
    by_document: dict[int, dict[int, int]] = {}
    for place in rng.permutation(places).tolist():
        by_document.setdefault(int(document[place]), {}).setdefault(int(ids[place]), place)  # one place a word
    both = [
        [[place for word, place in found.items() if rare[word] == kind] for kind in (True, False)]
        for found in by_document.values()
    ]
    chosen: list[int] = []
    n_rare = 0
    for turn in range(PER_DOCUMENT):
        for of_rare, of_common in both:
            if n_rare < n_items and turn < len(of_rare):
                chosen += [of_rare[turn], *of_common[turn : turn + 1]]
                n_rare += 1
    return np.sort(np.array(chosen, np.int64))


def contexts_at(
    stream: TokenStream, starts: Int[np.ndarray, " context"], stride: int, bos: int | None
) -> Int32[np.ndarray, "context position"]:
    """Return the contexts that begin at some tokens of the stream, each within its text, filled up with its last id."""
    place = starts[:, None] + np.arange(stride)
    inside = place < len(stream.ids)
    inside[inside] &= stream.text[place[inside]] == np.repeat(stream.text[starts], inside.sum(1))
    last = starts + inside.sum(1) - 1
    ids = stream.ids[np.where(inside, place, last[:, None])]
    return ids if bos is None else np.concatenate([np.full((len(ids), 1), bos, np.int32), ids], axis=1)
