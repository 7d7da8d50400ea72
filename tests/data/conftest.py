"""Two small tokenizers: byte-level BPE as GPT-2 and GPT-NeoX have, and Unigram with metaspaces as Llama has."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "The quick foxes were running past the lazy dogs.\nQuick thinking, the dogs said.\n"


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|padding|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", "\n", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += ["▁rare", "rare", "▁word", "ing", "▁a", "▁qzx", "▁Fox"]
    vocabulary = [(piece, 0.0 if len(piece) > 2 else -9.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
