"""Effects at every token of the explorer's texts, against the study's own and the model run without a neuron."""

import numpy as np
import pytest
import torch

import rareneuron.measure.text_effects as text_effects_module
from rareneuron.maths.readout import Readout
from rareneuron.measure.neurons import Observer
from rareneuron.measure.pieces import CapturedPieces
from rareneuron.measure.text_effects import most_tokens, text_effects, tokens_of_texts
from rareneuron.runs.neurons import AFTER, BEFORE, NONE, QUANTILES, SAMPLED, text_span


def loss_changes(adapter, window: np.ndarray, neuron: int, mean: float) -> np.ndarray:
    """Change in the loss of each token of a context but the first, with the neuron at its mean in every position."""

    def replaced(module, args):
        act = args[0].clone()
        act[..., neuron] = mean
        return (act,)

    def losses() -> torch.Tensor:
        with torch.inference_mode():
            logp = adapter.model(ids).logits.double().log_softmax(-1)[0, :-1]
        return -logp.gather(1, ids[0, 1:, None])[:, 0]

    ids = torch.from_numpy(window).long()[None]
    clean = losses()
    handle = adapter.anatomy.mlp_out(adapter.n_layers - 1).register_forward_pre_hook(replaced)
    try:
        return (losses() - clean).numpy()
    finally:
        handle.remove()


def test_effects_at_texts_are_the_models_own(explored) -> None:
    found, adapter, selection, _, effects = explored()
    assert found.text_delta.shape[1:] == (found.top_token.shape[1], BEFORE + 1 + AFTER)
    largest = 0.0
    for row in (0, 3):
        neuron = int(found.shown[row])
        mean = float(effects.set_index("index")["mean_act"][neuron])
        for k, token in enumerate(found.top_token[row][:2]):
            window = selection.windows[selection.context[token]]
            span = text_span(int(selection.position[token]), len(window))
            change = loss_changes(adapter, window, neuron, mean)
            expected = np.array([np.nan if at == 0 else change[at - 1] for at in span])
            there = found.text_delta[row, k, : len(span)]
            np.testing.assert_allclose(there, expected, atol=2e-6, rtol=1e-4)  # the engine's tolerance is on KL
            assert np.isnan(found.text_delta[row, k, len(span) :]).all()
            largest = max(largest, np.nanmax(abs(expected)))
    assert largest > 1e-3, "the case is too tame"


def test_effects_at_analysed_tokens_are_the_studys(explored) -> None:
    found, _, selection, seen, _ = explored()
    for row, of_neuron in enumerate(found.text_delta):
        for token, delta in zip(found.top_token[row], of_neuron, strict=True):
            place = int(selection.position[token]) + 1 - text_span(int(selection.position[token]), 10**9).start
            np.testing.assert_allclose(delta[place], seen.every_delta[token, found.shown[row]], atol=5e-6, rtol=1e-3)


def test_texts_stop_where_tokens_are_many_enough(explored, monkeypatch) -> None:
    monkeypatch.setattr(text_effects_module, "most_tokens", lambda *_: 10**6)
    whole, _, selection, _, _ = explored()
    key, place = tokens_of_texts(selection, whole.top_token, 10**6)
    assert len(place) == len(whole.shown)
    assert set(key.tolist()) == set(place[place != NONE].tolist())
    few, of_few = tokens_of_texts(selection, whole.top_token, len(key) // 2)
    assert 1 <= len(of_few) < len(place)
    assert len(few) <= len(key) // 2
    np.testing.assert_array_equal(of_few, place[: len(of_few)])
    assert len(tokens_of_texts(selection, whole.top_token, 1)[1]) == 1
    monkeypatch.setattr(text_effects_module, "most_tokens", lambda *_: len(key) // 2)
    part, *_ = explored()
    assert len(part.text_delta) == len(of_few)
    np.testing.assert_allclose(part.text_delta, whole.text_delta[: len(of_few)], atol=1e-9)


@pytest.mark.parametrize(
    ("n_analysed", "vocab", "most"), [(400, 16_384, 1_024), (4_000, 16_384, 4_000), (40_000, 16_384, 10_000)]
)
def test_texts_take_a_share_of_the_study_and_less_of_a_large_vocabulary(n_analysed, vocab, most) -> None:
    def of(vocab: int, d_model: int) -> int:
        readout = Readout("rms", None, None, 1e-6, torch.zeros(1, d_model).expand(vocab, d_model))
        return most_tokens(readout, 1_024, n_analysed)

    assert of(vocab, 256) == most
    assert of(262_144, 640) == max(n_analysed // 4, 541)  # 1.2e12 operations


def test_without_a_readout_behind_the_layer_there_is_none(explored) -> None:
    found, adapter, selection, _, _ = explored("patching", layer=0, n_tokens=12)
    assert found.text_delta is None
    source = CapturedPieces(adapter, selection, 0, memory=0)
    assert text_effects(source, found.top_token, found.shown, torch.zeros(adapter.d_mlp), 2**30) is None


@pytest.mark.parametrize("most", [SAMPLED, 40])
def test_examples_are_order_statistics_of_the_sample(explored, monkeypatch, most: int) -> None:
    monkeypatch.setattr("rareneuron.measure.neurons.SAMPLED", most)
    found, _, selection, seen, _ = explored()
    rare = np.flatnonzero(selection.rare)
    sample = rare[np.linspace(0, len(rare) - 1, min(most, len(rare))).round().astype(int)]
    assert len(np.unique(sample)) == len(sample)
    for row, neuron in enumerate(found.shown):
        for by, values in enumerate((seen.every_delta[sample, neuron], seen.every_act[sample, neuron])):
            chosen = [sample[i] for i in np.argsort(values, kind="stable")]
            expected = [chosen[round(q * (len(sample) - 1))] for q in QUANTILES]
            got = found.example_token[row, by]
            np.testing.assert_allclose(found.example_delta[row, by], seen.every_delta[got, neuron], rtol=1e-6)
            np.testing.assert_allclose(found.example_act[row, by], seen.every_act[got, neuron], rtol=1e-6)
            stored = (found.example_delta, found.example_act)[by][row, by]
            np.testing.assert_allclose(
                stored,
                values[np.argsort(values, kind="stable")][[round(q * (len(sample) - 1)) for q in QUANTILES]],
                rtol=1e-6,
            )
            assert (np.diff(stored) >= 0).all()
            if len(np.unique(values.astype(np.float32))) == len(values):
                assert got.tolist() == expected


def test_examples_of_parts_are_those_of_the_whole(explored) -> None:
    _, adapter, selection, seen, _ = explored()
    whole, joined = Observer(selection, adapter.d_mlp), Observer(selection, adapter.d_mlp)
    for block in seen.blocks:
        whole(block)
    for block in reversed(seen.blocks):
        part = joined.empty_copy()
        part(block)
        joined.absorb(part.arrays())
    order = [of.sample.argsort() for of in (whole, joined)]
    for name in ("sample", "sample_delta", "sample_act"):
        first, second = (getattr(of, name)[at] for of, at in zip((whole, joined), order, strict=True))
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert len(whole.sample) == min(SAMPLED, selection.rare.sum())
