"""Gathers details of single neurons: where they act, which tokens they promote, when they fire, and with which others.

Contexts and the range of activations are gathered from the engine's blocks (`Observer`), since Δ per token isn't kept.
Histograms and correlations take one more pass over the tokens, without a forward pass if activations are held. Memory:
top contexts of every neuron of the layer (at most neurons · 5 · 53 numbers), and one number per detailed neuron and
neuron of the layer. In wide layers the `MOST_DETAILED` largest effects have details. It works with any engine; what a
neuron promotes needs a readout behind its layer. Where the model leaves signs open, a neuron's positive direction is
that of its mean activation, n̄ · w_out, which the model's function determines; where it leaves scales open, activations
are in units of what they write, n · ‖w_out‖ (`maths.gauge`). Oracles: tests/measure/test_neurons.py, loops over tokens
and neurons.
"""

from collections.abc import Mapping
from copy import copy

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.data.spelling import texts_of
from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.readout import Readout
from rareneuron.measure.capture import TokenSource
from rareneuron.measure.engines.base import EffectBlock
from rareneuron.measure.text_effects import text_effects
from rareneuron.models.adapter import Adapter
from rareneuron.runs.neurons import (
    AFTER,
    BEFORE,
    MOST_DETAILED,
    N_BINS,
    N_CONTEXTS,
    N_NEIGHBOURS,
    N_TOKENS,
    NONE,
    QUANTILES,
    SAMPLED,
    Explorer,
    text_span,
)

NEURONS_AT_ONCE = 64  # of which logits over the vocabulary, or correlations with the layer, are in memory
TOKENS_AT_ONCE = 256  # of which activations are in memory once more, in float64
JOINED = ("sample", "sample_delta", "sample_act")  # arrays of an observer with a row for each token of its sample
SEEN = ("sum", "low", "high", "size", "token", "delta", *JOINED)  # the arrays of an observer


def tokens_near(selection: Selection) -> Int[np.ndarray, "token near"]:
    """Return, for each rare token, the analysed tokens whose targets stand in the text shown around its own."""
    order = np.lexsort((selection.position, selection.context))
    context, position = selection.context[order], selection.position[order]
    place = context.astype(np.int64) * (selection.windows.shape[1] + BEFORE + AFTER + 1) + position
    first, last = np.searchsorted(place, place - BEFORE), np.searchsorted(place, place + AFTER, side="right")
    first[~selection.rare[order]] = last[~selection.rare[order]] = 0
    size = max(int((last - first).max(initial=0)), 1)
    column = first[:, None] + np.arange(size)
    out = np.full(column.shape, NONE)
    out[order] = np.where(column < last[:, None], order[np.minimum(column, len(order) - 1)], NONE)
    return out


class Observer:
    """Gathers each neuron's top contexts and the range of its activations from the blocks of `layer_effects`."""

    def __init__(self, selection: Selection, n_neurons: int) -> None:
        self.near = tokens_near(selection)
        rare = np.flatnonzero(selection.rare)
        self.n_rare = len(rare)
        self.drawn = np.zeros(len(selection.rare), bool)  # of the token table: the sample for examples by quantile
        self.drawn[rare[np.linspace(0, len(rare) - 1, min(SAMPLED, len(rare))).round().astype(int)]] = True
        self._forget(n_neurons)

    def _forget(self, n_neurons: int) -> None:
        self.n_tokens = 0
        self.sum = torch.zeros(n_neurons, dtype=torch.float64)
        self.low, self.high = torch.full((2, n_neurons), torch.inf)
        self.high.neg_()
        size = torch.zeros(0, n_neurons)
        self.size, self.token = size, size.long()  # |Δ| and row of the token table: [context, neuron]
        self.delta = torch.zeros(0, self.near.shape[1], n_neurons)
        self.sample = torch.zeros(0).long()  # rows of the token table
        self.sample_delta = self.sample_act = torch.zeros(0, n_neurons)

    def __call__(self, block: EffectBlock) -> None:
        """Take in a block, which holds whole contexts."""
        batch, device = block.batch, block.loss.device
        self._to(device)
        rare = torch.from_numpy(np.flatnonzero(batch.rare)).to(device)
        if not len(rare):
            return
        act = batch.act[rare]
        self.n_tokens += len(rare)
        self.sum += act.double().sum(0)
        self.low, self.high = (
            torch.minimum(self.low, act.amin(0).float()),
            torch.maximum(self.high, act.amax(0).float()),
        )
        delta = block.statistics["delta_loss"].float()
        drawn = torch.from_numpy(np.flatnonzero(self.drawn[batch.index])).to(device)
        index = torch.from_numpy(batch.index).to(device)
        for name, new in zip(JOINED, (index[drawn], delta[drawn], batch.act[drawn].float()), strict=True):
            setattr(self, name, torch.cat([getattr(self, name), new]))
        size, row = largest_of_contexts(delta[rare].abs(), batch.context[batch.rare])
        row = rare[row]
        held = len(self.size)
        joined = torch.cat([self.size, size])
        self.size, chosen = joined.topk(min(N_CONTEXTS, len(joined)), dim=0)
        token = torch.cat([self.token, index[row]])
        near = self._near_in_block(batch.index).to(device)
        neurons = torch.arange(delta.shape[1], device=device)
        kept = torch.full((*chosen.shape, near.shape[1]), torch.nan, device=device)
        is_new = chosen >= held
        place = near[row[(chosen - held).clamp_min(0), neurons]]  # [context, neuron, near]
        new = torch.where(place == NONE, torch.nan, delta[place.clamp_min(0), neurons[:, None]])
        old = self.delta[chosen.clamp_max(held - 1), :, neurons] if held else kept
        self.delta = torch.where(is_new[..., None], new, old).transpose(1, 2).contiguous()
        self.token = token.gather(0, chosen)

    def empty_copy(self) -> "Observer":
        """Return an observer that has seen nothing yet, for a part of the tokens."""
        out = copy(self)
        out._forget(len(self.sum))
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that was seen, to be stored and absorbed by another observer."""
        out = {name: getattr(self, name).cpu().numpy() for name in SEEN}
        return out | {"n_tokens": np.array([self.n_tokens])}

    def absorb(self, part: Mapping[str, np.ndarray]) -> None:
        """Add what another observer has seen of other contexts."""
        given = {name: torch.from_numpy(np.array(part[name])).to(self.sum.device) for name in SEEN}
        self.n_tokens += int(part["n_tokens"][0])
        self.sum += given["sum"]
        self.low, self.high = torch.minimum(self.low, given["low"]), torch.maximum(self.high, given["high"])
        joined, token, delta = (torch.cat([getattr(self, name), given[name]]) for name in ("size", "token", "delta"))
        self.size, chosen = joined.topk(min(N_CONTEXTS, len(joined)), dim=0)
        self.token = token.gather(0, chosen)
        self.delta = delta.gather(0, chosen[:, None].expand(-1, delta.shape[1], -1))
        for name in JOINED:
            setattr(self, name, torch.cat([getattr(self, name), given[name]]))

    def refuse_gaps(self) -> None:
        """Refuse to go on if some tokens weren't seen: contexts would silently be missing."""
        if self.n_tokens != self.n_rare:
            raise RareNeuronError(
                f"The explorer saw {self.n_tokens:,} of {self.n_rare:,} rare tokens, so the contexts that it calls a "
                "neuron's strongest may not be. Remove what there is of this checkpoint and run the same study again."
            )

    def _near_in_block(self, index: Int[np.ndarray, " token"]) -> Int[Tensor, "token near"]:
        """Return the tokens near each token of a block, as rows of the block."""
        row = np.full(len(self.near) + 1, NONE)  # the last one answers for NONE
        row[index] = np.arange(len(index))
        return torch.from_numpy(row[self.near[index]])

    def _to(self, device: torch.device) -> None:
        for name in SEEN:
            setattr(self, name, getattr(self, name).to(device))


def largest_of_contexts(
    size: Float[Tensor, "token neuron"], context: Int[np.ndarray, " token"]
) -> tuple[Float[Tensor, "context neuron"], Int[Tensor, "context neuron"]]:
    """Return the largest size in each context for each neuron, and its row."""
    order = torch.from_numpy(np.argsort(context, kind="stable")).to(size.device)
    counts = np.unique(context, return_counts=True)[1].tolist()
    found = [size[rows].max(0) for rows in order.split(counts)]
    rows = torch.stack([rows[f.indices] for rows, f in zip(order.split(counts), found, strict=True)])
    return torch.stack([f.values for f in found]), rows


def explore(source: TokenSource, seen: Observer, effects: pd.DataFrame, *, memory: int = 4 * 2**30) -> Explorer:
    """Return the details of neurons from what was seen, the activations and the weights; needs the loaded model.

    `memory`: bytes that tables of effects may take.
    """
    seen.refuse_gaps()
    adapter, selection = source.adapter, source.selection
    shown = np.argsort(effects["rank"].to_numpy(), kind="stable")[:MOST_DETAILED]
    weights, gauge = adapter.weights(source.layer), adapter.gauge(source.layer)
    mean_act = torch.tensor(effects["mean_act"].to_numpy()).to(seen.low.device)
    sign = torch.where(mean_act < 0, -1.0, 1.0) if gauge.sign else torch.ones_like(mean_act)
    length = weights.W_out.double().norm(dim=1) if gauge.scale else torch.ones_like(mean_act)
    low, high = oriented(seen, sign)
    histogram, neighbour, correlation = activation_statistics(source, seen, shown, sign)
    listed = promoted_tokens(adapter, source, weights.W_out * (sign / length.where(length > 0, 1))[:, None], shown)
    written, logit = (None, None) if isinstance(listed, Unavailable) else listed
    at = torch.from_numpy(shown).to(seen.token.device)
    token = seen.token[:, at].T.cpu().numpy()
    near = np.where(token[..., None] == NONE, NONE, seen.near[token])
    example_token, example_delta, example_act = examples(seen, at, sign * length)
    return Explorer(
        shown=shown,
        top_token=token,
        near_token=near,
        near_delta=seen.delta[:, :, at].permute(2, 0, 1).cpu().numpy(),
        act_low=(length * low)[at].cpu().numpy(),
        act_high=(length * high)[at].cpu().numpy(),
        histogram=histogram,
        neighbour=neighbour,
        correlation=correlation,
        W_in_norm=norms(weights.W_in),
        W_gate_norm=None if weights.W_gate is None else norms(weights.W_gate),
        written=written,
        written_logit=logit,
        no_readout=listed.why if isinstance(listed, Unavailable) else None,
        texts=texts_of(
            adapter.tokenizer, adapter.vocab, shown_ids(selection, np.append(token, example_token), written)
        ),
        example_token=example_token,
        example_delta=example_delta,
        example_act=example_act,
        text_delta=text_effects(source, token, shown, mean_act, memory),
    )


def examples(
    seen: Observer, shown: Int[Tensor, " shown"], scale: Float[Tensor, " neuron"]
) -> tuple[
    Int[np.ndarray, "shown by quantile"], Float[np.ndarray, "shown by quantile"], Float[np.ndarray, "shown by quantile"]
]:
    """Return tokens of the sample at quantiles of Δ and of the activation, with both; activations are times `scale`.

    Quantiles are order statistics, so each is a token that exists.
    """
    order = seen.sample.argsort()
    token = seen.sample[order]
    delta = seen.sample_delta[order][:, shown].T
    act = (seen.sample_act[order][:, shown].double() * scale[shown]).T
    place = torch.tensor([round(q * (len(token) - 1)) for q in QUANTILES], device=token.device)
    chosen = torch.stack([of.argsort(dim=1, stable=True)[:, place] for of in (delta, act)], 1)
    found = [of.gather(1, chosen.flatten(1)).view_as(chosen).cpu().numpy() for of in (delta, act)]
    return token[chosen].cpu().numpy(), found[0], found[1]


def norms(W: Float[Tensor, "neuron d_model"]) -> Float[np.ndarray, " neuron"]:
    """Return the lengths of a matrix's rows."""
    return W.double().norm(dim=1).cpu().numpy()


def oriented(
    seen: Observer, sign: Float[Tensor, " neuron"]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Return the range of each neuron's activation times its sign."""
    ends = sign * seen.low, sign * seen.high
    return torch.minimum(*ends), torch.maximum(*ends)


def activation_statistics(
    source: TokenSource,
    seen: Observer,
    shown: Int[np.ndarray, " shown"],
    sign: Float[Tensor, " neuron"],
) -> tuple[Int[np.ndarray, "shown bin"], Int[np.ndarray, "shown neighbour"], Float[np.ndarray, "shown neighbour"]]:
    """Return histograms of the shown neurons at rare tokens, their most correlated neurons, and the correlations.

    Activations are taken times `sign`, which is 1 where the model determines their signs.
    Activations are centred by their known mean before they are multiplied, so no digits cancel.
    """
    device = seen.low.device
    at = torch.from_numpy(shown).to(device)
    low, span = oriented(seen, sign)[0][at].float(), (seen.high - seen.low)[at]
    counts = torch.zeros(len(at), N_BINS, dtype=torch.long, device=device)
    mean = seen.sum / max(1, seen.n_tokens)
    cross = torch.zeros(len(at), len(mean), dtype=torch.float64, device=device)
    square = torch.zeros_like(mean)
    spread = (seen.high - seen.low).double()
    scale = sign * spread.where(spread > 0, torch.nan)  # a neuron that never changes has no correlation
    for batch in source.again():
        for act in batch.act[torch.from_numpy(batch.rare).to(device)].split(TOKENS_AT_ONCE):
            part = ((sign[at] * act[:, at]).float() - low) / span.clamp_min(torch.finfo(torch.float32).tiny)
            bins = (part * N_BINS).long().clamp(0, N_BINS - 1)
            counts.scatter_add_(1, bins.T.contiguous(), torch.ones_like(bins.T))
            centred = ((act.double() - mean) / scale).float()
            cross += centred[:, at].T @ centred
            square += centred.double().square().sum(0)
    length = square.sqrt()
    pieces = zip(cross.split(NEURONS_AT_ONCE), at.split(NEURONS_AT_ONCE), strict=True)
    found = [nearest_neurons(rows, which, length) for rows, which in pieces]
    neighbour, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return counts.cpu().numpy(), neighbour.cpu().numpy(), value.cpu().numpy()


def nearest_neurons(
    cross: Float[Tensor, "some neuron"], at: Int[Tensor, " some"], length: Float[Tensor, " neuron"]
) -> tuple[Int[Tensor, "some neighbour"], Float[Tensor, "some neighbour"]]:
    """Return the neurons whose correlation with each of some is largest in size, and the correlation."""
    rho = cross / (length[at, None] * length)
    rho[torch.arange(len(at)), at] = torch.nan
    size, neighbour = rho.abs().nan_to_num(-1).topk(min(N_NEIGHBOURS, len(length)), dim=1)
    neighbour[size < 0] = NONE
    return neighbour, rho.gather(1, neighbour.clamp_min(0)).masked_fill(neighbour == NONE, torch.nan).clamp(-1, 1)


def promoted_tokens(
    adapter: Adapter, source: TokenSource, W_out: Float[Tensor, "neuron d_model"], shown: Int[np.ndarray, " shown"]
) -> tuple[Int[np.ndarray, "shown written"], Float[np.ndarray, "shown written"]] | Unavailable:
    """Return the ids that each neuron promotes and demotes most, with their logits, or why they are unknown."""
    readout = adapter.readout_behind(source.layer)
    if isinstance(readout, Unavailable):
        return Unavailable(
            "What a neuron promotes is read off the final norm and the unembedding behind its layer, and "
            f"this layer has no such readout. {readout.why}"
        )
    n_ids = min(adapter.vocab, len(adapter.tokenizer))
    ids, logits = extreme_logits(readout, W_out[torch.from_numpy(shown).to(W_out.device)], n_ids)
    return ids.cpu().numpy(), logits.cpu().numpy()


def extreme_logits(
    readout: Readout, W_out: Float[Tensor, "neuron d_model"], n_ids: int
) -> tuple[Int[Tensor, "neuron written"], Float[Tensor, "neuron written"]]:
    """Return the ids and values of the largest, then the smallest W_U (γ ⊙ ŵ_out), less its mean over `n_ids` tokens.

    Both lists begin with the most extreme value. Behind an output norm, what is written is its gain times w_out, but
    for a positive factor that is each token's own; values are those before a soft cap.
    """
    if readout.output_norm is not None:
        W_out = W_out * readout.output_norm.weight.to(W_out)
    A = readout.logits_per_direction(torch.float32)[:n_ids]
    A = A - A.mean(0)
    n = min(N_TOKENS, n_ids)
    ids, logits = [], []
    for rows in readout.centre(W_out.float()).split(NEURONS_AT_ONCE):
        change = rows @ A.T
        ends = [change.topk(n, dim=1, largest=largest) for largest in (True, False)]
        ids.append(torch.cat([end.indices for end in ends], 1))
        logits.append(torch.cat([end.values for end in ends], 1))
    return torch.cat(ids), torch.cat(logits)


def shown_ids(
    selection: Selection, token: Int[np.ndarray, " token"], written: Int[np.ndarray, "shown written"] | None
) -> Int[np.ndarray, " id"]:
    """Return every token id that the texts and lists contain."""
    found = [] if written is None else [written.ravel()]
    for i in np.unique(token[token != NONE]):
        span = text_span(int(selection.position[i]), selection.windows.shape[1])
        found.append(selection.windows[selection.context[i], span.start : span.stop])
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
