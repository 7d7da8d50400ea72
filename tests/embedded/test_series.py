"""The series that is shipped: complete, sound, small, and as good as its records say."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from rareneuron.data.corpus import token_windows
from rareneuron.embedded import COUNTS, SERIES
from rareneuron.embedded.recipe import Recipe
from rareneuron.models.adapter import load_model
from rareneuron.models.checkpoints import list_checkpoints
from rareneuron.models.loading import sha256_of_weights
from rareneuron.models.loss import mean_loss

RECIPE = Recipe()
TEXTS = ("held_out_loss", "analysis_loss")


def read(name):
    return json.loads((SERIES / name).read_text())


def test_the_checkpoints_are_the_recipes_and_nothing_else_is_there():
    assert [checkpoint.step for checkpoint in list_checkpoints(str(SERIES))] == list(RECIPE.checkpoints)
    assert {path.name for path in SERIES.iterdir()} == {f"step{step}" for step in RECIPE.checkpoints} | {
        "README.md", "losses.json", "recipe.json", "tokenizer.json", "tokenizer_config.json", "training_log.json",
        "unigrams.npy",
    }  # fmt: skip
    for step in RECIPE.checkpoints:
        found = {path.name for path in (SERIES / f"step{step}").iterdir()}
        assert found == {"config.json", "losses.json", "model.safetensors"}


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in SERIES.rglob("*") if path.is_file()) < 64e6


def test_the_recipe_on_record_is_the_code():
    recorded = read("recipe.json")
    assert {name: recorded[name] for name in asdict(RECIPE)} == json.loads(json.dumps(asdict(RECIPE)))


@pytest.mark.parametrize("step", RECIPE.checkpoints)
def test_every_checkpoint_loads_and_passes_its_probes(step):
    with safe_open(SERIES / f"step{step}" / "model.safetensors", "np") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118 - not a dict
    adapter = load_model(SERIES / f"step{step}")
    assert adapter.closed_form.ok
    shape = (adapter.vocab, adapter.d_model, adapter.d_mlp, adapter.n_layers)
    assert shape == (RECIPE.vocab_size, RECIPE.d_model, RECIPE.d_mlp, RECIPE.n_layers)
    assert adapter.provenance["tied"]
    assert len(adapter.tokenizer) == RECIPE.vocab_size
    assert adapter.model.config.max_position_embeddings == RECIPE.context_length


def test_no_two_checkpoints_are_the_same():
    hashes = {sha256_of_weights(SERIES / f"step{step}") for step in RECIPE.checkpoints}
    assert len(hashes) == len(RECIPE.checkpoints)


def test_it_learned_more_than_counting_teaches():
    losses = read("losses.json")
    assert [row["step"] for row in losses["steps"]] == list(RECIPE.checkpoints)
    for row in losses["steps"]:
        assert row == read(f"step{row['step']}/losses.json")
    for text in TEXTS:
        by_step = [row[text] for row in losses["steps"]]
        assert by_step[0] == pytest.approx(math.log(RECIPE.vocab_size), abs=0.05)  # untrained: uniform, to 0.02
        assert by_step == sorted(by_step, reverse=True)
        baselines = losses["baselines"][text]
        assert baselines["unigram"] > baselines["bigram"] > baselines["trigram"]
        assert by_step[-1] < baselines["trigram"] - 0.5  # 0.7 and 1.2 nats


def test_counts_are_of_the_training_windows():
    counts, recipe = np.load(COUNTS, allow_pickle=False), read("recipe.json")
    assert counts.shape == (RECIPE.vocab_size,)
    assert counts.min() >= 0
    total = int(counts.sum(dtype=np.int64))
    windows, rest = divmod(total, RECIPE.context_length - 1)
    assert rest == 0, "whole windows, whose BOS is no target"
    # Tokens of text, an EOS after each, and without the remainder of the last window.
    n_eos = int(counts[AutoTokenizer.from_pretrained(SERIES).eos_token_id])
    assert 0 <= recipe["training_tokens"] + n_eos - total < RECIPE.context_length + 1
    assert 1_000 < n_eos < 10_000
    assert windows > RECIPE.contexts_per_step * 1_000


@pytest.mark.slow
def test_the_losses_on_record_are_those_of_the_weights(analysis):
    """On every 20th text: other windows than were recorded, and another Python's docstrings may differ."""
    adapter = load_model(SERIES / f"step{RECIPE.checkpoints[-1]}")
    windows = token_windows(analysis[::20], adapter.tokenizer, RECIPE.context_length).ids
    windows = windows[:: max(1, len(windows) // 40)]
    assert len(windows) >= 40
    found, losses = mean_loss(adapter.model, windows), read("losses.json")
    # A window's loss varies by 0.6 nats, so the mean of 40 by 0.1. A trigram's would be 1.2 higher.
    assert found == pytest.approx(losses["steps"][-1]["analysis_loss"], abs=0.5)
    untrained = mean_loss(load_model(SERIES / "step0").model, windows[:4])
    assert untrained == pytest.approx(losses["steps"][0]["analysis_loss"], abs=0.05)  # near uniform on any text
