"""Tokens that a study analyses, against its own text: whole words, whatever the tokenizer does with spaces."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rareneuron.data.corpus import WindowStream, begins_word
from rareneuron.data.texts import open_corpus
from rareneuron.models.adapter import adapt
from rareneuron.study.tokens import choose_tokens, study_corpus
from tests.models.conftest import tiny_model
from tests.tiny_series import SHAPE


@pytest.fixture(scope="module")
def dropping(text_file):
    """Drops spaces and has no decoder, so that every piece of a word looks like a word; and a [PAD] beyond the rows."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator([text_file.read_text(encoding="utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    adapter = adapt(tiny_model("llama", vocab_size=len(tokenizer), **SHAPE), tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    adapter.provenance["weights_sha256"] = None
    return adapter


def test_analysed_words_are_no_insides_of_words(config, dropping, text_file):
    settings = config(model=str(text_file.parent), context_length=32)
    stage = choose_tokens(settings, study_corpus(settings), dropping)
    text, tokenizer = text_file.read_text(encoding="utf-8"), dropping.tokenizer
    encoding = tokenizer.backend_tokenizer.encode(text)
    stride = stage.selection.windows.shape[1]
    where = stage.selection.context_index[stage.selection.context] * stride + stage.selection.position + 1
    assert [encoding.ids[i] for i in where] == stage.selection.target.tolist()
    before = [text[encoding.offsets[i][0] - 1] if encoding.offsets[i][0] else " " for i in where]
    assert all(character.isspace() for character in before)
    # As it was: nearly every occurrence of these types began a word, to a decoder that puts spaces between them.
    inside = [i for i, (a, _) in enumerate(encoding.offsets) if a and text[a - 1].isalpha()]
    analysed = set(stage.selection.target.tolist())
    assert sum(encoding.ids[i] in analysed for i in inside) > 20, "the case shows nothing"


def test_the_mark_of_a_word_is_no_part_of_what_the_model_reads(config, dropping, text_file):
    settings = config(model=str(text_file.parent), context_length=32)
    windows = choose_tokens(settings, study_corpus(settings), dropping).selection.windows
    assert windows.max() < dropping.vocab
    stream = WindowStream(open_corpus(str(text_file)), dropping.tokenizer, 32, marks=True)
    marked = np.concatenate(list(stream))
    assert 0.3 < begins_word(marked).mean() < 0.9
    assert torch.isfinite(dropping.capture(windows[:2]).resid).all()
