"""What is computed up to a context's last analysed token is what the whole context gives; nothing else is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from rareneuron.data.selection import Selection
from rareneuron.measure.capture import capture, last_positions
from rareneuron.measure.effects import mean_activations
from rareneuron.measure.pieces import CapturedPieces
from rareneuron.models.adapter import adapt
from rareneuron.models.patching import patched_loss_changes

VOCAB, LENGTH, N_CONTEXTS = 60, 24, 40
ROUNDING = 1e-12  # float64 activations of size 1, in products of another shape
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": LENGTH}


@pytest.fixture(params=["gpt_neox", "llama"])
def adapter(request):
    torch.manual_seed(0)
    if request.param == "llama":
        return adapt(LlamaForCausalLM(LlamaConfig(**SIZES)).double())
    return adapt(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).double())


def random_selection() -> Selection:
    """Two to four analysed tokens in each of more contexts than go through at once, most of them early."""
    rng = np.random.default_rng(0)
    windows = rng.integers(0, VOCAB, (N_CONTEXTS, LENGTH), dtype=np.int32)
    position = [np.sort(rng.choice(rng.integers(4, LENGTH), rng.integers(2, 5), replace=False)) for _ in windows]
    context = np.repeat(np.arange(N_CONTEXTS), [len(p) for p in position])
    at = np.concatenate(position)
    return Selection(
        windows=windows,
        context_index=np.arange(N_CONTEXTS),
        context=context,
        position=at,
        target=windows[context, np.minimum(at + 1, LENGTH - 1)].astype(np.int64),
        rare=rng.random(len(at)) < 0.5,
        stages=(),
        n_requested=len(at),
        n_available=len(at),
        n_contexts_read=N_CONTEXTS,
    )


def by_token(batches, name):
    index = np.concatenate([batch.index for batch in batches])
    values = torch.cat([getattr(batch, name) for batch in batches])
    out = torch.empty_like(values)
    out[torch.from_numpy(index)] = values
    return out


def test_cropped_contexts_give_what_whole_ones_give(adapter) -> None:
    selection = random_selection()
    cropped, whole = (list(capture(adapter, selection, whole=whole)) for whole in (False, True))
    for name in ("resid", "act"):
        assert (by_token(cropped, name) - by_token(whole, name)).abs().max() < ROUNDING
    assert torch.equal(by_token(cropped, "target"), torch.from_numpy(selection.target))
    assert sum(batch.n_positions for batch in whole) == selection.windows.size
    ends = (last_positions(selection) + 1).sum()
    computed = sum(batch.n_positions for batch in cropped)
    assert ends <= computed < 0.9 * selection.windows.size
    for batch in cropped:
        contexts = np.unique(batch.context)
        assert batch.n_positions == len(contexts) * (last_positions(selection)[contexts].max() + 1)
    elsewhere = replace(selection, position=np.maximum(selection.position - 1, 0))  # the comparison can fail
    wrong = list(capture(adapter, elsewhere))
    assert (by_token(wrong, "act") - by_token(whole, "act")).abs().max() > 1e-3


def test_a_mean_over_all_positions_is_over_whole_contexts(adapter) -> None:
    selection = random_selection()
    source = CapturedPieces(adapter, selection, 1, memory=2**30, whole=True)
    found = mean_activations(source, "all", lambda _: None)
    everywhere = adapter.capture(torch.from_numpy(selection.windows), 1).act
    assert (found.rare - everywhere.double().mean((0, 1))).abs().max() < ROUNDING
    cropped = CapturedPieces(adapter, selection, 1, memory=2**30)
    with pytest.raises(AssertionError, match="computed to their end"):
        mean_activations(cropped, "all", lambda _: None)


def test_patching_computes_nothing_after_the_last_token_and_gives_the_same(adapter) -> None:
    """One context at a time is cropped most, all at once least; a hook counts the positions."""
    selection = random_selection()
    tokens = (selection.context, np.minimum(selection.position, LENGTH - 2))
    mean = torch.zeros(adapter.d_mlp, dtype=torch.float64)
    found, positions = [], []
    for at_once in (1, N_CONTEXTS):
        seen: list[int] = []
        handle = adapter.anatomy.blocks[-1].register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(args[0].shape[0] * args[0].shape[1])
        )
        effects = patched_loss_changes(
            adapter, selection.windows, tokens, mean, neurons=range(3), contexts_per_batch=at_once
        )
        found.append(torch.stack([effect.delta_loss for effect in effects]))
        handle.remove()
        positions.append(sum(seen))
    assert found[1].abs().max() > 1e-4
    assert (found[0] - found[1]).abs().max() < ROUNDING
    assert positions[0] == 4 * (np.minimum(last_positions(selection), LENGTH - 2) + 1).sum() < positions[1]
