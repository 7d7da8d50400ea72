import time

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rareneuron.data.words import refuse_wordless, special_types, type_texts, word_types
from rareneuron.errors import NoRareTokens, VocabularyMismatch


def ids_of(tokenizer, mask) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(np.flatnonzero(mask).tolist()))


def test_byte_level_words(bpe):
    words = ids_of(bpe, word_types(bpe, len(bpe) + 5))
    assert {"Ġquick", "Ġfoxes", "Ġdogs", "The", "Quick"} <= words
    assert not words & {"<|endoftext|>", "<|padding|>", "a", "Ġa", ",", ".", "Ċ", "Ġ", "Ġf"}


def test_metaspace_words(metaspace):
    words = ids_of(metaspace, word_types(metaspace, len(metaspace)))
    assert words == {"▁rare", "▁word", "▁Fox", "rare", "ing"}  # "ing" is a word to pyspellchecker


@pytest.mark.parametrize(
    ("before", "names", "texts"),
    [
        (pre_tokenizers.Whitespace(), ["kind", "ness"], ["kind", "ness"]),
        (pre_tokenizers.ByteLevel(), ["Ġkind", "ness"], [" kind", "ness"]),
        (pre_tokenizers.Metaspace(), ["▁kind", "ness"], [" kind", "ness"]),
    ],
)
def test_types_without_a_decoder_are_spelled_by_their_names(before, names, texts):
    """Decoding would put a space between any two of them."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0} | {name: i + 1 for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = before
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert tokenizer.decode([2, 2], clean_up_tokenization_spaces=False) == "ness ness"
    assert type_texts(tokenizer, 4) == ["<unk>", *texts, ""]


@pytest.mark.parametrize("name", ["bpe", "metaspace"])
def test_type_texts_spell_the_encoded_text(request, name):
    tokenizer = request.getfixturevalue(name)
    text = "a rare word\na foxing quick"
    texts = type_texts(tokenizer, len(tokenizer) + 3)
    spelled = "".join(texts[i] for i in tokenizer.encode(text, add_special_tokens=False))
    assert spelled.removeprefix(" ") == text
    assert texts[-3:] == [""] * 3


def test_special_and_padding_rows_are_special(bpe):
    special = special_types(bpe, len(bpe) + 5)
    assert special[-5:].all()
    assert ids_of(bpe, special[:-5]) == {"<|endoftext|>", "<|padding|>"}  # the latter isn't named by the tokenizer


def test_a_vocabulary_smaller_than_the_tokenizer_is_cut(bpe):
    whole = word_types(bpe, len(bpe))
    assert np.array_equal(word_types(bpe, 300), whole[:300])
    assert len(special_types(bpe, 300)) == 300


def test_a_tokenizer_without_letters_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    digits = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(VocabularyMismatch, match=r"writes the letter 'a' as '<unk>'.*--words off"):
        type_texts(digits, 2)


@pytest.mark.parametrize(("name", "n_types", "n_words"), [("gpt-neox", 50_304, 29_327), ("gpt2", 50_257, 33_722)])
def test_published_tokenizers(reference_data, name, n_types, n_words):
    tokenizer = AutoTokenizer.from_pretrained(reference_data / "tokenizers" / name)
    start = time.perf_counter()
    words = word_types(tokenizer, n_types)
    assert time.perf_counter() - start < 30  # measured 0.6 s; the room is for a loaded machine
    assert ids_of(tokenizer, words) >= {"Ġword", "Ġthe", "Ġdivergence", "ĠWord", "The", "word"}
    assert not ids_of(tokenizer, words) & {"ĠÃ©", "Ġ123", "ĠI", "Ġa", "Ġqu", "'t"}
    assert words.sum() == pytest.approx(n_words, rel=0.05)  # counted with pyspellchecker 0.9.1; its dictionary moves
    assert not words[len(tokenizer) :].any()


def test_a_vocabulary_without_words_is_refused_in_words_that_help(bpe):
    letters = {"<unk>": 0} | {c: i + 1 for i, c in enumerate("abcdefgh")} | {"qx": 9, "zzk": 10}
    wordless = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(letters, unk_token="<unk>")), unk_token="<unk>"
    )
    with pytest.raises(NoRareTokens, match=r"None of the 10 types .*such as 'a'.*--words off.*whole words") as refused:
        refuse_wordless(word_types(wordless, 12), wordless)
    assert str(refused.value).count("'") <= 12, "a few types are enough"
    refuse_wordless(word_types(bpe, len(bpe)), bpe)
