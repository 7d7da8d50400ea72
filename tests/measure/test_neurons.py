"""What the explorer shows of a neuron, against loops over tokens and neurons that read like its description."""

import numpy as np
import pytest
import torch

import rareneuron.measure.neurons as neurons_module
from rareneuron.data.selection import Selection
from rareneuron.data.spelling import fragment, texts_of
from rareneuron.errors import RareNeuronError, RunFolderError
from rareneuron.measure.capture import TokenBatch
from rareneuron.measure.neurons import Observer, activation_statistics, explore, tokens_near
from rareneuron.measure.pieces import CapturedPieces
from rareneuron.runs.neurons import (
    AFTER,
    BEFORE,
    N_BINS,
    N_CONTEXTS,
    N_NEIGHBOURS,
    N_TOKENS,
    NONE,
    Explorer,
    read_explorer,
    text_span,
    write_explorer,
)
from rareneuron.study.study import run_study


@pytest.mark.parametrize(("engine", "n_tokens"), [("closed-form", 120), ("patching", 30)])
def test_top_contexts_are_those_of_a_loop(explored, engine: str, n_tokens: int) -> None:
    found, _, selection, seen, effects = explored(engine, n_tokens=n_tokens)
    assert found.shown.tolist() == effects.sort_values("rank")["index"].tolist()
    for row, neuron in enumerate(found.shown):
        best = {}
        for token in np.flatnonzero(selection.rare):
            context, size = selection.context[token], abs(seen.every_delta[token, neuron])
            if size > best.get(context, (0.0, None))[0]:
                best[context] = (size, token)
        expected = [token for _, token in sorted(best.values(), reverse=True)[:N_CONTEXTS]]
        assert len(expected) == N_CONTEXTS
        assert found.top_token[row].tolist() == expected
        for k, token in enumerate(expected):
            position = selection.position[token]
            same = np.flatnonzero(selection.context == selection.context[token])
            around = [t for t in same if position - BEFORE <= selection.position[t] <= position + AFTER]
            near = found.near_token[row, k]
            assert sorted(near[near != NONE].tolist()) == around
            delta = found.near_delta[row, k]
            np.testing.assert_allclose(delta[near != NONE], seen.every_delta[near[near != NONE], neuron], rtol=1e-6)
            assert np.isnan(delta[near == NONE]).all()


def test_tokens_that_went_by_unseen_are_refused(explored) -> None:
    _, adapter, selection, seen, effects = explored()
    gap = Observer(selection, adapter.d_mlp)
    gap(seen.blocks[0])
    with pytest.raises(RareNeuronError, match=f"of {selection.rare.sum()} rare tokens"):
        explore(CapturedPieces(adapter, selection, -1, memory=0), gap, effects)


def test_tokens_too_far_away_are_not_in_the_text() -> None:
    position = np.array([0, 10, 10 + AFTER, 11 + AFTER, 100, 101 - BEFORE, 100 - BEFORE])
    selection = Selection(
        windows=np.zeros((2, 256), np.int32),
        context_index=np.arange(2),
        context=np.zeros(7, np.int64),
        position=position,
        target=np.zeros(7, np.int64),
        rare=np.array([True] * 6 + [False]),
        stages=(),
        n_requested=6,
        n_available=6,
        n_contexts_read=2,
    )
    found = tokens_near(selection)
    sets = [set(row[row != NONE].tolist()) for row in found]
    assert sets[1] == {0, 1, 2}
    assert sets[2] == {0, 1, 2, 3}
    assert sets[4] == {4, 5, 6}
    assert sets[6] == set()  # a common token has no text of its own
    assert text_span(0, 256) == range(2 + AFTER)
    assert text_span(100, 256) == range(101 - BEFORE, 102 + AFTER)
    assert text_span(254, 256) == range(255 - BEFORE, 256)


@pytest.mark.parametrize("held", [2**30, 0])
def test_histograms_and_neighbours_are_numpys(explored, held: int) -> None:
    found, _, selection, seen, _ = explored(held=held)
    act = seen.every_act[selection.rare]
    rho = np.corrcoef(act.T)
    np.fill_diagonal(rho, 0)
    for row, neuron in enumerate(found.shown):
        low, high = act[:, neuron].min(), act[:, neuron].max()
        np.testing.assert_allclose([found.act_low[row], found.act_high[row]], [low, high], rtol=1e-6)
        counts, _ = np.histogram(act[:, neuron], N_BINS, (low, high))
        assert found.histogram[row].sum() == len(act)
        assert abs(found.histogram[row] - counts).sum() <= 2  # a float32 edge may take a token to the next bin
        order = np.argsort(-abs(rho[neuron]), kind="stable")[:N_NEIGHBOURS]
        assert found.neighbour[row].tolist() == order.tolist()
        np.testing.assert_allclose(found.correlation[row], rho[neuron, order], atol=2e-6)  # products in float32
    assert abs(found.correlation).max() > 0.3, "the case is too tame"


def test_a_neuron_that_never_changes_follows_none() -> None:
    act = torch.tensor(np.random.default_rng(0).normal(size=(50, 4)), dtype=torch.float32)
    act[:, 2] = 0.3
    index = np.arange(50)
    batch = TokenBatch(
        resid=torch.zeros(50, 2),
        act=act,
        target=torch.zeros(50, dtype=torch.long),
        context=index,
        rare=np.ones(50, bool),
        index=index,
        all_act_sum=act.double().sum(0),
        n_positions=50,
    )
    source, seen = CapturedPieces.__new__(CapturedPieces), Observer.__new__(Observer)
    source.fits, source.pieces, source._held = True, (range(1),), {range(1): [batch]}
    seen.low, seen.high, seen.sum, seen.n_tokens = act.amin(0), act.amax(0), act.double().sum(0), 50
    counts, neighbour, correlation = activation_statistics(source, seen, np.arange(4), torch.ones(4))
    assert (neighbour[2] == NONE).all()
    assert np.isnan(correlation[2]).all()
    assert counts[2].tolist() == [50] + [0] * (N_BINS - 1)
    for i in (0, 1, 3):
        assert 2 not in neighbour[i]
        assert i not in neighbour[i]
        assert (neighbour[i] != NONE).sum() == 2


def test_promoted_tokens_are_those_whose_logits_move_most(explored) -> None:
    """At the model itself: a small step along w_out, with the norm's scale held, moves logits in this order."""
    found, adapter, _, _, _ = explored()
    readout, n = adapter.readout(), len(adapter.tokenizer)
    assert n < adapter.vocab, "the padding must be able to show"
    x = torch.zeros(1, adapter.d_model, dtype=torch.float64)
    for row in (0, 5):
        w = adapter.W_out[int(found.shown[row])].double()
        centred = w - w.mean()
        logits = ((x + centred) * readout.weight) @ readout.W_U.T - (x * readout.weight) @ readout.W_U.T
        change = (logits[0, :n] - logits[0, :n].mean()).detach().numpy()
        order = np.argsort(-change)
        assert found.written[row].tolist() == [*order[:N_TOKENS], *order[::-1][:N_TOKENS]]
        np.testing.assert_allclose(found.written_logit[row], change[found.written[row]], rtol=1e-4, atol=1e-6)


def test_patching_says_why_there_is_no_list(explored) -> None:
    found, _, _, _, _ = explored("patching", layer=0, n_tokens=12)
    assert found.written is None
    assert found.written_logit is None
    assert "this layer has no such readout. After layer 0 come 1 more blocks" in found.no_readout
    last, *_ = explored("patching", n_tokens=12)
    assert last.written is not None, "behind the last layer there is a readout, whatever the engine"


def test_norms_and_texts(explored) -> None:
    found, adapter, selection, _, _ = explored()
    np.testing.assert_allclose(found.W_in_norm, adapter.W_in.double().norm(dim=1).numpy(), rtol=1e-12)
    assert found.W_gate_norm is None
    token = int(found.top_token[0, 0])
    span = text_span(int(selection.position[token]), selection.windows.shape[1])
    ids = selection.windows[selection.context[token], span.start : span.stop]
    assert "".join(found.texts[int(i)] for i in ids) == adapter.tokenizer.decode(ids)
    assert set(found.written.ravel().tolist()) <= found.texts.keys()


def test_pieces_of_characters_are_shown_as_bytes(tokenizer) -> None:
    assert fragment("âĢ") == "⟨E2 80⟩"  # the first two bytes of a dash, as byte-level BPE spells them
    assert fragment("<0xE2>") == "<0xE2>"  # SentencePiece names its bytes
    ids = np.array([tokenizer.convert_tokens_to_ids(token) for token in ("â", "Ġtime")])
    texts = texts_of(tokenizer, len(tokenizer) + 4, np.array([*ids, len(tokenizer) + 2]))
    assert texts[int(ids[0])] == "⟨E2⟩"
    assert texts[int(ids[1])] == " time"
    assert texts[len(tokenizer) + 2] == f"⟨{len(tokenizer) + 2}⟩"


def test_wide_layers_keep_the_largest_only(explored, monkeypatch) -> None:
    whole = explored()[0]
    monkeypatch.setattr(neurons_module, "MOST_DETAILED", 7)
    part = explored()[0]
    for name in ("shown", "top_token", "near_delta", "histogram", "neighbour", "written"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:7])
    assert len(part.W_in_norm) == len(whole.W_in_norm)


def test_what_is_written_is_read_back(explored, tmp_path) -> None:
    found = explored()[0]
    assert read_explorer(tmp_path) is None
    write_explorer(tmp_path, found)
    again = read_explorer(tmp_path)
    assert isinstance(again, Explorer)
    for name in ("top_token", "near_delta", "written_logit", "correlation"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name).astype(np.float32))
    assert again.texts == found.texts
    assert again.W_gate_norm is None


@pytest.mark.parametrize("name", ["explorer.safetensors", "explorer.json"])
def test_half_of_the_details_or_damaged_ones_are_refused(explored, tmp_path, name: str) -> None:
    write_explorer(tmp_path, explored()[0])
    whole = (tmp_path / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"{}", b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunFolderError, match=name.replace(".", r"\.")):
            read_explorer(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunFolderError, match=name.replace(".", r"\.")):
        read_explorer(tmp_path)


def test_a_study_explores_its_last_checkpoint_only(config) -> None:
    run = run_study(config(steps=(0, 10)), progress=False)
    assert read_explorer(run.path / "steps" / "0") is None
    found = read_explorer(run.path / "steps" / "10")
    assert found is not None
    assert len(found.shown) == 40
