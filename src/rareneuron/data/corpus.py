"""Texts to token windows, streamed, with a fingerprint.

A *context* is a window of `context_length` ids: BOS, where the tokenizer has one, then a slice of the token
stream in which texts are joined by EOS, and pieces of one text (`records.Unfinished`) by nothing. Windows never overlap
and are never padded, so the remainder at the end of the stream, shorter than a window, isn't used.

Which tokens begin a word is known from the text alone, so it is found here and travels with the ids, as one bit of each
(`BEGINS`), where it is asked for.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from rareneuron.data.places import Places, beginnings, ends_line
from rareneuron.data.records import Unfinished
from rareneuron.errors import InvalidConfig, MissingText

TEXTS_PER_BATCH = 64
CHARACTERS_PER_BATCH = 1 << 18  # novels are long: 64 of them at once would take gigabytes while they're tokenized
BEGINS = 1 << 30  # the bit of an id whose token begins a word; no vocabulary is as large


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Token windows and what they were cut from."""

    ids: Int32[np.ndarray, "context position"]
    fingerprint: str  # sha256 over the ids: same text, tokenizer and length, same fingerprint
    n_texts: int
    n_text_tokens: int  # BOS and EOS not counted


def encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """The token ids of each text, without special tokens."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def plain_ids(marked: Int32[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
    """Return ids without the marks of those that begin a word."""
    return marked & np.int32(BEGINS - 1)


def begins_word(marked: Int32[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Return which of these ids are marked as beginning a word."""
    return (marked & np.int32(BEGINS)) != 0


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts for one call of the tokenizer: many short ones, or a long one by itself."""
    batch: list[str] = []
    n_characters = 0
    for text in texts:
        if batch and (len(batch) == TEXTS_PER_BATCH or n_characters + len(text) > CHARACTERS_PER_BATCH):
            yield batch
            batch, n_characters = [], 0
        batch.append(text)
        n_characters += len(text)
    if batch:
        yield batch


class WindowStream:
    """Cuts a stream of texts into windows block by block; after iteration it knows the totals.

    Memory is that of one batch of texts, whatever the corpus. Totals and fingerprint are those of the latest
    iteration, as far as it went. With `marks`, ids that begin a word carry the bit `BEGINS`; the fingerprint is of the
    ids without it.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Any, context_length: int, *, marks: bool = False) -> None:
        if context_length < 2:
            raise InvalidConfig(
                f"context_length is {context_length}, but a window needs at least 2 positions: a token and the one it "
                "predicts. Raise `--context-length`."
            )
        self.texts, self.tokenizer, self.context_length = texts, tokenizer, context_length
        self.places = Places(tokenizer) if marks else None
        self._reset()

    def _reset(self) -> None:
        self.n_texts = self.n_text_tokens = 0
        self._digest = hashlib.sha256()
        self._opens_line = True  # does a line begin where the next text does?

    def __iter__(self) -> Iterator[Int32[np.ndarray, "context position"]]:
        self._reset()
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        stride = self.context_length - (bos is not None)
        pending, begins = np.empty(0, np.int32), True
        for batch in text_batches(self.texts):
            # Nothing here may keep the batch's lists while the next batch is encoded: the allocator would place new
            # lists beside the old ones and grow with every batch.
            ends = [not isinstance(text, Unfinished) for text in batch]
            pieces = [
                np.append(ids, np.int32(eos)) if end and eos is not None else ids
                for ids, end in zip(self._encoded(batch), ends, strict=True)
            ]
            self.n_texts += begins + sum(ends[:-1])
            begins = ends[-1]
            self.n_text_tokens += sum(map(len, pieces)) - sum(ends) * (eos is not None)
            stream = np.concatenate([pending, *pieces])
            n = len(stream) // stride
            pending = stream[n * stride :]
            if n:
                windows = stream[: n * stride].reshape(n, stride)
                if bos is not None:
                    windows = np.concatenate([np.full((n, 1), bos, np.int32), windows], axis=1)
                self._digest.update((windows if self.places is None else plain_ids(windows)).tobytes())
                yield windows

    def _encoded(self, batch: list[str]) -> Iterator[Int32[np.ndarray, " token"]]:
        """Yield the ids of each text, marked where that was asked for."""
        if self.places is None:
            yield from (np.asarray(ids, np.int32) for ids in encode(batch, self.tokenizer))
            return
        around = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None]
        for text, (ids, spans) in zip(batch, self.places(batch), strict=True):
            marks = beginnings(text, spans, opens_line=self._opens_line)
            marks[1:] |= np.isin(ids[:-1], around)  # spelled out within the text
            # Behind an EOS a text begins; without one it goes on where the text before it ended.
            is_closed = self.tokenizer.eos_token_id is not None and not isinstance(text, Unfinished)
            self._opens_line = is_closed or (ends_line(text) if text else self._opens_line)
            yield np.where(marks, ids | np.int32(BEGINS), ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ids of all windows so far."""
        return self._digest.hexdigest()


def too_short(name: str, context_length: int, remedy: str) -> MissingText:
    """The error for a text that fills no window; `remedy` says what to do about it."""
    return MissingText(
        f"{name} is shorter than one window of {context_length} tokens, so there is nothing to measure on it. {remedy}"
    )


def token_windows(texts: Iterable[str], tokenizer: Any, context_length: int = 256) -> Windows:
    """All windows of a corpus that fits in memory, and what they were cut from."""
    stream = WindowStream(texts, tokenizer, context_length)
    blocks = list(stream)
    ids = np.concatenate(blocks) if blocks else np.empty((0, context_length), np.int32)
    return Windows(ids=ids, fingerprint=stream.fingerprint, n_texts=stream.n_texts, n_text_tokens=stream.n_text_tokens)
