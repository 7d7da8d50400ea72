"""Which types are whole English words (App. 5.3.1, stage 2).

A token is a word where it begins one in the text (`places`), and where its text is alphabetic, of two letters or more,
and known to pyspellchecker in lower case. The second is a property of its type, found here.

Decoding one id alone may lose its leading space ("▁rare" → "rare"), or add one that belongs to the decoder. Each id is
decoded behind an anchor instead, and by its name where the tokenizer has no decoder. What follows a token is not looked
at: "fast" in "fast|ening" counts as a word.
"""

import json
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool
from spellchecker import SpellChecker
from tokenizers import decoders

from rareneuron.errors import NoRareTokens, VocabularyMismatch

ANCHOR = "a"
LEAST_LETTERS = 2  # pyspellchecker knows every single letter
N_SHOWN = 6  # types of a vocabulary without words


def word_types(tokenizer: Any, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """Mark the types whose text, spaces around it aside, is a word; special and unused types never are."""
    special = special_types(tokenizer, vocab_size)
    bare = [text.strip() for text in type_texts(tokenizer, vocab_size)]
    candidates = {i for i, word in enumerate(bare) if len(word) >= LEAST_LETTERS and word.isalpha() and not special[i]}
    known = english().known({bare[i].lower() for i in candidates})
    words = np.zeros(vocab_size, bool)
    words[[i for i in candidates if bare[i].lower() in known]] = True
    return words


@cache
def english() -> SpellChecker:
    """Load the word list once: it takes a third of a second."""
    return SpellChecker(language="en")


def refuse_wordless(words: Bool[np.ndarray, " vocab"], tokenizer: Any) -> None:
    """Refuse a vocabulary of which no type is an English word: the filter would leave no target in any text."""
    if words.any():
        return
    special, texts = special_types(tokenizer, len(words)), type_texts(tokenizer, len(words))
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
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is None:
        return texts_of_names(backend, tokenizer.convert_ids_to_tokens(range(n))) + [""] * (vocab_size - n)
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


def texts_of_names(backend: Any, names: list[str | None]) -> list[str]:
    """The text of types by their names, for a tokenizer without a decoder: decoding would put spaces between all.

    Names are spelled as the steps before the model spell text: bytes as letters, spaces as "▁".
    """
    steps = [
        json.loads(step.__getstate__()) for step in (backend.normalizer, backend.pre_tokenizer) if step is not None
    ]
    spelled = json.dumps(steps, ensure_ascii=False)
    within = getattr(backend.model, "continuing_subword_prefix", None) or ""
    behind = getattr(backend.model, "end_of_word_suffix", None) or ""
    texts = [(name or "").removeprefix(within).removesuffix(behind) for name in names]
    if '"ByteLevel"' in spelled:
        return [decoders.ByteLevel().decode([text]) for text in texts]
    return [text.replace("▁", " ") for text in texts] if "▁" in spelled else texts
