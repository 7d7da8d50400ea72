"""Which types are whole English words, and where (App. 5.3.1, stage 2).

A token is a word where it starts one - it begins with a space, or it begins a line - and its text is alphabetic,
of two letters or more, and known to pyspellchecker in lower case. Whether a word without a leading space begins
a line depends on the token before it, so that is left to `selection`, with the masks it needs.

Decoding one id alone loses the leading space of SentencePiece-like tokenizers ("▁rare" → "rare"), and then "ing"
would pass for a word wherever it stands. Each id is decoded behind an anchor instead, which holds for every
tokenizer that can decode a sequence. What follows a token is not looked at: "fast" in "fast|ening" counts as a word.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from spellchecker import SpellChecker

from rareneuron.errors import NoRareTokens, VocabularyMismatch

ANCHOR = "a"
LEAST_LETTERS = 2  # pyspellchecker knows every single letter
N_SHOWN = 6  # types of a vocabulary without words


@dataclass(frozen=True, kw_only=True)
class WordTypes:
    """Types that are whole words, by where they may stand, and the types after which a line begins."""

    after_space: Bool[np.ndarray, " vocab"]  # begins with white space: a word wherever it stands
    at_line_start: Bool[np.ndarray, " vocab"]  # a word only where the token before it opens a line
    opens_line: Bool[np.ndarray, " vocab"]  # ends with a line break, or is BOS or EOS


def word_types(tokenizer: Any, vocab_size: int) -> WordTypes:
    """Judge for every type of a vocabulary whether it is a word; special and unused types never are."""
    special = special_types(tokenizer, vocab_size)
    texts = type_texts(tokenizer, vocab_size)
    bare = [text.strip() for text in texts]
    candidates = {i for i, word in enumerate(bare) if len(word) >= LEAST_LETTERS and word.isalpha() and not special[i]}
    known = SpellChecker(language="en").known({bare[i].lower() for i in candidates})
    words = sorted(i for i in candidates if bare[i].lower() in known)
    after_space, at_line_start, opens_line = (np.zeros(vocab_size, bool) for _ in range(3))
    for i in words:
        (after_space if texts[i][0].isspace() else at_line_start)[i] = True
    opens_line[[i for i, text in enumerate(texts) if text.endswith(("\n", "\r"))]] = True
    ends = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None and i < vocab_size]
    opens_line[ends] = True
    return WordTypes(after_space=after_space, at_line_start=at_line_start, opens_line=opens_line)


def refuse_wordless(words: WordTypes, tokenizer: Any) -> None:
    """Refuse a vocabulary of which no type is an English word: the filter would leave no target in any text."""
    if (words.after_space | words.at_line_start).any():
        return
    special = special_types(tokenizer, len(words.after_space))
    texts = type_texts(tokenizer, len(words.after_space))
    used = [text for text, is_special in zip(texts, special, strict=True) if text.strip() and not is_special]
    some = ", ".join(repr(text) for text in used[:: 1 + len(used) // N_SHOWN])
    such = f" (such as {some})" if used else ""
    raise NoRareTokens(
        f"None of the {len(used):,} types of the tokenizer{such} is a whole English word of {LEAST_LETTERS} letters or "
        "more. Only such words are analysed, so no token of any text would be left. Analyse rare types of every kind "
        "(`--words off`), or study a model whose tokenizer has whole words. If this tokenizer should have them, it is "
        "damaged, or not the one that the model was trained with."
    )


def special_types(tokenizer: Any, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Mark types that are never analysed: BOS, EOS and their like, and embedding rows that no token uses."""
    special = np.zeros(vocab_size, bool)
    ids = set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special[[i for i in ids if i < vocab_size]] = True
    special[len(tokenizer) :] = True
    return special


def type_texts(tokenizer: Any, vocab_size: int) -> list[str]:
    """The text that each type adds to a line, leading space included; "" for ids beyond the tokenizer."""
    n = min(vocab_size, len(tokenizer))
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)[-1:]
    before = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    if before.strip() != ANCHOR:
        raise VocabularyMismatch(
            f"The tokenizer writes the letter {ANCHOR!r} as {before!r}, so its types can't be told apart as "
            "English words. Turn the word filter off: `--words off`."
        )
    # An array, since of lists transformers looks at every number's type.
    behind = np.stack([np.full(n, anchor[0]), np.arange(n)], axis=1)
    pairs = tokenizer.batch_decode(behind, clean_up_tokenization_spaces=False)
    texts = [pair[len(before) :] if pair.startswith(before) else "" for pair in pairs]
    return texts + [""] * (vocab_size - n)
