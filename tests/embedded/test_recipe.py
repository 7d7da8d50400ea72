"""The recipe in parts, and whole: a tiny training that is interrupted, resumed, and no different for it."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rareneuron.embedded import docstrings, recipe
from rareneuron.embedded.recipe import (
    END_OF_TEXT,
    LogSpacedCheckpoints,
    Recipe,
    UnembeddingLoss,
    first_steps,
    make_model,
    make_tokenizer,
    train_series,
)
from rareneuron.errors import InvalidConfig

TINY = Recipe(
    vocab_size=400,
    d_model=16,
    d_mlp=32,
    n_layers=1,
    n_heads=2,
    context_length=32,
    checkpoints=(0, 1, 2, 4),
    contexts_per_step=4,
    warmup_steps=1,
    held_out_every=3,
    packages=("tokenizers", "safetensors"),
)


# --- the loss


def loss_and_gradients(loss, hidden, W_U, target, scale):
    hidden, W_U = hidden.clone().requires_grad_(), W_U.clone().requires_grad_()
    value = loss(hidden, W_U, target)
    (scale * value).backward()
    return value.detach(), hidden.grad, W_U.grad


@pytest.mark.parametrize("n", [1, 256, 300])  # one token, a whole block, a block and a part
def test_the_blocked_loss_is_cross_entropy(n):
    generator = torch.Generator().manual_seed(n)
    # Numbers that bfloat16 holds exactly, so that only its products and its probabilities round.
    hidden = torch.randn(n, 16, generator=generator).bfloat16().float()
    W_U = torch.randn(50, 16, generator=generator).bfloat16().float()
    target = torch.randint(50, (n,), generator=generator)

    def cross_entropy(x, W, y):
        return torch.nn.functional.cross_entropy(x @ W.T, y)

    fast = loss_and_gradients(UnembeddingLoss.apply, hidden, W_U, target, scale=3.0)
    slow = loss_and_gradients(cross_entropy, hidden.double(), W_U.double(), target, scale=3.0)
    assert slow[0] > 1, "the case is too tame to tell right from wrong"
    # bfloat16 rounds by 2⁻⁹ = 0.002 of a number: of logits up to 16 by 0.03, which the target's own passes on.
    assert fast[0].item() == pytest.approx(slow[0].item(), abs=0.04 if n == 1 else 0.01)
    for found, expected in zip(fast[1:], slow[1:], strict=True):
        # Errors of a probability: 0.03 of itself through its logit, smaller where many average.
        assert (found - expected).norm() < 0.03 * expected.norm()


def test_the_blocked_loss_takes_no_gradient_of_targets():
    hidden, W_U = torch.randn(2, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    UnembeddingLoss.apply(hidden, W_U, torch.tensor([1, 2])).backward()
    assert hidden.grad.dtype == W_U.grad.dtype == torch.float32  # master weights stay in float32


# --- the tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(["the time of the year, and of the people"] * 50, 270)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_byte_has_a_token(tokenizer):
    text = "".join(map(chr, range(0x110000 - 0x1000, 0x110000))) + "".join(map(chr, range(0x800)))
    assert set(text.encode()) >= set(range(0x80)) | set(range(0x80, 0xC0)) | set(range(0xC2, 0xE0))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == 270
    assert len(tokenizer("the", add_special_tokens=False)["input_ids"]) == 1  # it learned something


def test_special_tokens_are_one(tokenizer):
    assert tokenizer.bos_token == tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0


# --- the training


def test_a_recipe_cut_short_keeps_its_first_checkpoints():
    assert first_steps(Recipe(), 100).checkpoints == (0, 8, 32, 64, 100)
    assert first_steps(Recipe(), 64).checkpoints == (0, 8, 32, 64)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_recipe_of_no_steps_is_refused(steps):
    with pytest.raises(InvalidConfig, match=f"for {steps} steps trains nothing.*--steps"):
        first_steps(Recipe(), steps)


def test_the_untrained_model_comes_from_the_seed():
    first, again, other = (make_model(r).state_dict() for r in (TINY, TINY, replace(TINY, seed=1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["gpt_neox.embed_in.weight"], other["gpt_neox.embed_in.weight"])


def test_training_names_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "find_spec", lambda _: None)
    with pytest.raises(InvalidConfig, match=r"accelerate.*pip install 'rareneuron\[train\]'"):
        train_series(TINY, tmp_path / "series")
    monkeypatch.setattr(recipe, "find_spec", lambda name: None if name == "safetensors" else name)
    with pytest.raises(InvalidConfig, match=r"installed: safetensors\. Run: pip install 'rareneuron\[train\]'"):
        train_series(TINY, tmp_path / "series")
    assert not (tmp_path / "series").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("accelerate") is None, reason="training needs accelerate (tests/SKIPS.md)")
def test_an_interrupted_training_gives_the_same_series(tmp_path, monkeypatch):
    held_out = [f"Paragraph {i} of a text that nothing in any package repeats, long enough." for i in range(40)]
    for module in (docstrings, recipe):
        monkeypatch.setattr(module, "analysis_texts", lambda: iter(held_out))
    whole = train_series(TINY, tmp_path / "whole", evaluate_on=4, save_every=2)

    original = LogSpacedCheckpoints.on_step_end

    def dies_after_the_third(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(LogSpacedCheckpoints, "on_step_end", dies_after_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_series(TINY, tmp_path / "resumed", evaluate_on=4, save_every=2)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "resumed").glob("step*")}
    assert set(finished) == {"step0", "step1", "step2"}
    monkeypatch.setattr(LogSpacedCheckpoints, "on_step_end", original)
    resumed = train_series(TINY, tmp_path / "resumed", evaluate_on=4, save_every=2)

    names = {f"step{step}" for step in TINY.checkpoints}
    for folder in (whole, resumed):
        assert {path.name for path in folder.glob("step*")} == names
    assert not list(resumed.glob(".*.partial"))
    assert all((resumed / name).stat().st_mtime_ns == when for name, when in finished.items())
    for name in names:
        first, second = (load_file(folder / name / "model.safetensors") for folder in (whole, resumed))
        assert {weight.dtype for weight in first.values()} == {torch.float16}
        for weight in first:
            # Dropout is off and the batches are the seed's; bfloat16 products may differ by how threads add up.
            torch.testing.assert_close(second[weight], first[weight], rtol=0, atol=1e-3)
    start, end = (load_file(whole / name / "model.safetensors") for name in ("step0", "step4"))
    assert any((end[name] - start[name]).abs().max() > 2e-3 for name in start), "nothing was trained"
    for name in ("recipe.json", "unigrams.npy", "tokenizer.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert [row["step"] for row in json.loads((resumed / "losses.json").read_text())["steps"]] == [0, 1, 2, 4]
