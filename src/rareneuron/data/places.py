"""Where in a text its tokens lie, and which of them begin a word.

An id alone doesn't say so: behind a pre-tokenizer that drops spaces, "ness" is the same id in "kind|ness" and by
itself, and a decoder may put a space before either. The offsets that a tokenizer gives with its ids do say it. A token
begins a word where it begins a line, or where white space stands before its first letter that is its own or no token's
("Ġrare", or "rare" behind a space that was dropped; App. 5.3.1). Behind a space that is another token, as in "Ġ|rip",
it doesn't: the word was cut. Oracle: tests/data/test_places.py, a loop over characters.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from rareneuron.data.words import type_texts
from rareneuron.errors import VocabularyMismatch

LAST_SPACE = 0x3000  # the largest code point that is white space, to Python
LINE_ENDS = [ord("\n"), ord("\r")]
WHITE = np.array([chr(code).isspace() for code in range(LAST_SPACE + 2)])  # its last entry stands for all beyond


class Places:
    """Gives the ids of texts, and where in the text each lies."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> Iterator[tuple[Int32[np.ndarray, " token"], Int[np.ndarray, "token 2"]]]:
        """Yield each text's ids, without special tokens, and from which character to which each lies."""
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        found = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=fast, verbose=False
        )
        for i, (text, ids) in enumerate(zip(texts, found["input_ids"], strict=True)):
            if fast:
                flat = np.fromiter(chain.from_iterable(found["offset_mapping"][i]), np.int64, 2 * len(ids))
                yield np.asarray(ids, np.int32), flat.reshape(-1, 2)
            else:
                yield np.asarray(ids, np.int32), self.spelled(text, ids)

    @cached_property
    def spelling(self) -> list[str]:
        """The text of every id."""
        return type_texts(self.tokenizer, len(self.tokenizer))

    def spelled(self, text: str, ids: list[int]) -> Int[np.ndarray, "token 2"]:
        """Where ids lie in a text that they spell letter by letter; refuses those that don't."""
        pieces = [self.spelling[i] for i in ids]
        joined = "".join(pieces)
        added = joined.startswith(" ") and joined[1:] == text  # as SentencePiece begins every text with a space
        if joined != text and not added:
            raise VocabularyMismatch(
                f"The tokenizer ({type(self.tokenizer).__name__}) doesn't say where in the text its tokens lie, and "
                "they don't spell the text either, so it can't be told which tokens begin a word. Save it as "
                "tokenizer.json (`PreTrainedTokenizerFast`), or turn the word filter off: `--words off`."
            )
        stops = np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - added
        return np.stack([np.concatenate([[0], stops[:-1]])[: len(ids)], stops], axis=1).reshape(-1, 2)


def beginnings(text: str, spans: Int[np.ndarray, "token 2"], *, opens_line: bool) -> Bool[np.ndarray, " token"]:
    """Mark the tokens of a text that begin a word; `opens_line` says whether a line begins where the text does.

    Where several tokens are pieces of one character, only the first may begin a word.
    """
    if not len(spans):
        return np.zeros(0, bool)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    n, white = len(codes), WHITE[np.minimum(codes, LAST_SPACE + 1)]
    ink = np.append(np.minimum.accumulate(np.where(white, n, np.arange(n))[::-1])[::-1], n)  # at or after each
    first = ink[np.minimum(spans[:, 0], n)]
    has_ink = first < spans[:, 1]
    again = np.append(False, (first[1:] == first[:-1]) & has_ink[:-1])
    taken_to = np.append(0, np.maximum.accumulate(spans[:-1, 1]))  # by the tokens before
    own_space = np.append(False, white)[first] & (first > taken_to)
    begins_line = np.append(opens_line, np.isin(codes, LINE_ENDS))[first]
    return has_ink & ~again & (own_space | begins_line)


def ends_line(text: str) -> bool:
    """Whether a line begins right after a text."""
    return text.endswith(("\n", "\r"))
