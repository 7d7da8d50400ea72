"""Computes a neuron's exact effect at every token of the texts that the explorer shows, analysed or not.

The closed form needs residual stream and activations at those tokens, so their contexts go through the backbone once
more. Neurons are taken by rank until their texts have as many distinct tokens as a quarter of the analysed ones; in a
study of few as many as all of these, and at least a thousand (`FEW_TOKENS`), if that takes no more than `OPERATIONS`. A
neuron is replaced by its mean over rare targets at all of these tokens.
Oracles: tests/measure/test_text_effects.py, the study's own effects and the model patched.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import Unavailable
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.fused import compiling_pays
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.readout import Readout
from rareneuron.measure.capture import TokenSource, capture, join_batches, part_of_tokens
from rareneuron.runs.neurons import AFTER, BEFORE, NONE, text_span

FEW_TOKENS = 1_024, 4_096  # within which a study takes as many as it analyses
OPERATIONS = 1.2e12  # for these: ten seconds of two cores; fewer tokens where the vocabulary is large
WIDTHS = 5  # products over the vocabulary per token, of the width of the residual stream
SHARE = 0.25  # of the analysed tokens
TOKENS_AT_ONCE = 1_024  # handed to the engine


def text_effects(
    source: TokenSource,
    top_token: Int[np.ndarray, "shown context"],
    shown: Int[np.ndarray, " shown"],
    mean_act: Float[Tensor, " neuron"],
    memory: int,
) -> Float[np.ndarray, "some context place"] | None:
    """Return Δ at each place of the first neurons' texts, or None where no readout stands behind the layer.

    Place 0 is the first token of `text_span`. NaN stands at a context's first token, which nothing predicts, and where
    a text is shorter than others. `memory`: bytes that the engine's tables may take.
    """
    adapter, selection, layer = source.adapter, source.selection, source.layer
    readout = adapter.readout_behind(layer)
    if isinstance(readout, Unavailable):
        return None
    most = most_tokens(readout, len(shown), len(selection.context))
    key, key_of_place = tokens_of_texts(selection, top_token, most)
    some = torch.from_numpy(shown[: len(key_of_place)]).to(mean_act.device)
    W_out = adapter.weights(layer).W_out
    compiled = None if compiling_pays(len(key), len(some), len(readout.W_U)) else False
    engine = ablation_engine(readout, W_out[some], memory=memory, compiled=compiled)
    delta = torch.empty(len(key), len(some), dtype=torch.float32)
    for batch in join_batches(capture(adapter, text_selection(selection, key), layer), TOKENS_AT_ONCE):
        shift = mean_shift(batch.act[:, some].double(), mean_act[some].double())
        mlp_out = readout.mlp_output(batch.act, W_out)
        found = engine.effects(batch.resid, shift, batch.target, direct=False, mlp_out=mlp_out)
        delta[torch.from_numpy(batch.index)] = found.delta_loss.float().cpu()
    row = np.searchsorted(key, key_of_place)
    at = delta.numpy()[np.minimum(row, len(key) - 1), np.arange(len(some))[:, None, None]]
    return np.where(key_of_place == NONE, np.nan, at)


def most_tokens(readout: Readout, n_shown: int, n_analysed: int) -> int:
    """Return at how many tokens effects may be computed."""
    vocab, d_model = readout.W_U.shape
    affordable = OPERATIONS / (2 * vocab * (WIDTHS * d_model + n_shown))
    few = np.clip(n_analysed, *FEW_TOKENS)
    return max(round(SHARE * n_analysed), int(min(few, affordable)))


def tokens_of_texts(
    selection: Selection, top_token: Int[np.ndarray, "shown context"], most: int
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, "some context place"]]:
    """Return the tokens that predict the texts of the first neurons, `most` of them, and which each place needs.

    A token is `context · length + position`. At least one neuron has its texts.
    """
    length = selection.windows.shape[1]
    place = np.arange(BEFORE + 1 + AFTER)
    rows: list[Int[np.ndarray, "context place"]] = []
    found: set[int] = set()
    for tokens in top_token:
        key = np.full((len(tokens), len(place)), NONE)
        for k, token in enumerate(tokens):
            if token == NONE:
                continue
            span = text_span(int(selection.position[token]), length)
            at = span.start + place[: len(span)] - 1  # a text's token is what the one before it predicts
            key[k, : len(span)] = np.where(at >= 0, int(selection.context[token]) * length + at, NONE)
        joined = found | set(key[key != NONE].tolist())
        if rows and len(joined) > most:
            break
        found = joined
        rows.append(key)
    return np.array(sorted(found), dtype=np.int64), np.stack(rows)


def text_selection(selection: Selection, key: Int[np.ndarray, " token"]) -> Selection:
    """Return a selection of those tokens, each with the target that follows it in its context."""
    context, position = np.divmod(key, selection.windows.shape[1])
    tokens = replace(
        selection,
        context=context,
        position=position,
        target=selection.windows[context, position + 1].astype(selection.target.dtype),
        rare=np.ones(len(key), bool),
    )
    return part_of_tokens(tokens, np.arange(len(key)))
