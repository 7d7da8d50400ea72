import time

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rareneuron.data.words import refuse_wordless, special_types, type_texts, word_types
from rareneuron.errors import NoRareTokens, VocabularyMismatch


def ids_of(tokenizer, mask) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(np.flatnonzero(mask).tolist()))


def test_byte_level_words_by_where_they_may_stand(bpe):
    words = word_types(bpe, len(bpe) + 5)
    after_space, at_line_start = ids_of(bpe, words.after_space), ids_of(bpe, words.at_line_start)
    assert {"Ġquick", "Ġfoxes", "Ġdogs"} <= after_space
    assert {"The", "Quick"} <= at_line_start
    assert all(token.startswith("Ġ") for token in after_space)
    assert not any(token.startswith("Ġ") for token in at_line_start)
    everything = after_space | at_line_start
    assert not everything & {"<|endoftext|>", "<|padding|>", "a", "Ġa", ",", ".", "Ċ", "Ġ", "Ġf"}
    assert not (words.after_space & words.at_line_start).any()


def test_metaspace_words_keep_their_leading_space(metaspace):
    i = metaspace.convert_tokens_to_ids("▁rare")
    assert metaspace.decode([i]) == "rare", "decoding alone keeps the space here, so the case shows nothing"
    words = word_types(metaspace, len(metaspace))
    assert ids_of(metaspace, words.after_space) == {"▁rare", "▁word", "▁Fox"}
    assert ids_of(metaspace, words.at_line_start) == {"rare", "ing"}  # "ing" is a word to pyspellchecker
    assert ids_of(metaspace, words.opens_line) == {"\n", "<s>", "</s>"}


@pytest.mark.parametrize("name", ["bpe", "metaspace"])
def test_type_texts_spell_the_encoded_text(request, name):
    tokenizer = request.getfixturevalue(name)
    text = "a rare word\na foxing quick"
    texts = type_texts(tokenizer, len(tokenizer) + 3)
    spelled = "".join(texts[i] for i in tokenizer.encode(text, add_special_tokens=False))
    assert spelled.removeprefix(" ") == text
    assert texts[-3:] == [""] * 3


def test_lines_are_opened_by_line_breaks_bos_and_eos(bpe):
    words = word_types(bpe, len(bpe))
    opens = ids_of(bpe, words.opens_line)
    assert {"Ċ", "<|endoftext|>"} <= opens
    assert all(token.endswith(("Ċ", "č")) for token in opens - {"<|endoftext|>"})


def test_special_and_padding_rows_are_special(bpe):
    special = special_types(bpe, len(bpe) + 5)
    assert special[-5:].all()
    assert ids_of(bpe, special[:-5]) == {"<|endoftext|>", "<|padding|>"}  # the latter isn't named by the tokenizer


def test_a_vocabulary_smaller_than_the_tokenizer_is_cut(bpe):
    whole = word_types(bpe, len(bpe))
    assert np.array_equal(word_types(bpe, 300).after_space, whole.after_space[:300])
    assert len(special_types(bpe, 300)) == 300


def test_a_tokenizer_without_letters_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    digits = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(VocabularyMismatch, match=r"writes the letter 'a' as '<unk>'.*--words off"):
        type_texts(digits, 2)


@pytest.mark.parametrize(
    ("name", "n_types", "n_words"), [("gpt-neox", 50_304, (21_479, 7_848)), ("gpt2", 50_257, (26_449, 7_273))]
)
def test_published_tokenizers(reference_data, name, n_types, n_words):
    tokenizer = AutoTokenizer.from_pretrained(reference_data / "tokenizers" / name)
    start = time.perf_counter()
    words = word_types(tokenizer, n_types)
    assert time.perf_counter() - start < 30  # measured 0.6 s; the room is for a loaded machine
    assert ids_of(tokenizer, words.after_space) >= {"Ġword", "Ġthe", "Ġdivergence", "ĠWord"}
    assert ids_of(tokenizer, words.at_line_start) >= {"The", "word"}
    assert not ids_of(tokenizer, words.after_space | words.at_line_start) & {"ĠÃ©", "Ġ123", "ĠI", "Ġa", "Ġqu", "'t"}
    found = (words.after_space.sum(), words.at_line_start.sum())
    assert found == pytest.approx(n_words, rel=0.05)  # counted with pyspellchecker 0.9.1; its dictionary moves
    assert not words.after_space[len(tokenizer) :].any()


def test_a_vocabulary_without_words_is_refused_in_words_that_help(bpe):
    letters = {"<unk>": 0} | {c: i + 1 for i, c in enumerate("abcdefgh")} | {"qx": 9, "zzk": 10}
    wordless = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(letters, unk_token="<unk>")), unk_token="<unk>"
    )
    with pytest.raises(NoRareTokens, match=r"None of the 10 types .*such as ' a'.*--words off.*whole words") as refused:
        refuse_wordless(word_types(wordless, 12), wordless)
    assert str(refused.value).count("'") <= 12, "a few types are enough"
    refuse_wordless(word_types(bpe, len(bpe)), bpe)
