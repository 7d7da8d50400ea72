"""The text that a token id adds to a line, pieces of characters included."""

import re
from typing import Any

import numpy as np
from jaxtyping import Int

from rareneuron.data.words import type_texts
from rareneuron.errors import VocabularyMismatch

FRAGMENT = "\ufffd"  # what a piece of a character decodes to


def texts_of(tokenizer: Any, vocab: int, ids: Int[np.ndarray, " id"]) -> dict[int, str]:
    """The text that each id adds to a line; pieces of characters and what adds none go by their vocabulary name."""
    try:
        texts = type_texts(tokenizer, vocab)
    except VocabularyMismatch:  # a tokenizer without plain letters: no anchor to decode behind
        texts = [tokenizer.decode([i]) for i in range(min(vocab, len(tokenizer)))]
    known = len(tokenizer)
    out = {}
    for i in ids.tolist():
        text = texts[i] if i < len(texts) else ""
        if not text or FRAGMENT in text:
            text = fragment(tokenizer.convert_ids_to_tokens(i)) if i < known else f"⟨{i}⟩"
        out[i] = text
    return out


def fragment(name: str | None) -> str:
    """The bytes of a piece of a character as ⟨E2 80⟩, where its name spells bytes; the name where it doesn't."""
    if name is None:
        return FRAGMENT
    spelt = byte_of_letter()
    if name and re.fullmatch("<0x[0-9A-F]{2}>", name) is None and all(letter in spelt for letter in name):
        return f"⟨{' '.join(f'{spelt[letter]:02X}' for letter in name)}⟩"
    return name


def byte_of_letter() -> dict[str, int]:
    """How byte-level BPE spells bytes: those with ink of their own as they are, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
