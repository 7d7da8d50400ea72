"""A tiny series on disk with a tokenizer and a text of real English words, whose frequencies follow Zipf."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rareneuron.pipeline.config import StudyConfig

WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy process music market sense nation plan college interest death experience
effect use class control field development role effort rate heart drug show leader light voice wife police mind price
report decision son view relationship town road arm difference value
""".split()  # noqa: SIM905 - a list of 150 lines would hide the rest

# Half of a tiny vocabulary never occurs, so a percentile over types would call exactly those rare.
RARITY = {"rarity": "occurrences", "percentile": 40}


def write_texts(path: Path, n_words: int = 12_000, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, len(WORDS) + 1)
    drawn = rng.choice(WORDS, n_words, p=p / p.sum())
    lines = [" ".join(drawn[i : i + 12]) + "." for i in range(0, n_words, 12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def large_weights(model, seed):
    """Weights large enough that effects are far above rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    return model


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "texts.txt")


@pytest.fixture(scope="session")
def tokenizer(text_file) -> PreTrainedTokenizerFast:
    return make_tokenizer(text_file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def series(tmp_path_factory, tokenizer) -> Path:
    """GPT-NeoX with 40 neurons a layer, at steps 0, 2 and 10."""
    folder = tmp_path_factory.mktemp("series")
    tokenizer.save_pretrained(folder)
    for step in (0, 2, 10):
        config = GPTNeoXConfig(
            vocab_size=len(tokenizer) + 4,  # padded, as real embeddings are
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
        large_weights(GPTNeoXForCausalLM(config), step).save_pretrained(folder / f"step{step}")
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tokenizer) -> Path:
    """An RMSNorm, gated model of unknown step."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    large_weights(LlamaForCausalLM(config), 3).save_pretrained(folder)
    return folder


@pytest.fixture
def config(series, text_file, tmp_path):
    """Settings of a study that takes about a second."""

    def build(**changes) -> StudyConfig:
        settings = {
            "model": str(series),
            "data": str(text_file),
            "n_tokens": 120,
            "context_length": 32,
            "group_size": 6,
            **RARITY,
            "out": str(tmp_path / "run"),
        }
        return StudyConfig(**settings | changes)

    return build
