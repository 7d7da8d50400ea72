"""The rare-word swap: does a model prefer the word that was written to another as frequent, also without a group?

Items come from documents of the run's own text that its study analysed nothing of (`data.swaps`). Behind the last layer
each context goes through the model once, whatever the number of groups (`maths.margins`); behind others once for each
group. Oracle: tests/use/test_swap.py, hooks on the whole model in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.corpus import plain_ids
from rareneuron.data.swaps import SwapPairs, TokenStream, swap_pairs, swap_words, token_stream
from rareneuron.data.texts import Corpus, open_corpus
from rareneuron.embedded.docstrings import analysis_texts
from rareneuron.errors import MissingText, Unavailable
from rareneuron.links import expanded
from rareneuron.maths.margins import AblatedReadout, States
from rareneuron.models.adapter import Adapter
from rareneuron.runs.evaluations import SWAP
from rareneuron.runs.files import read_tensors
from rareneuron.runs.layout import CONTEXTS
from rareneuron.runs.run import Run
from rareneuron.runs.seeds import generator
from rareneuron.use.ablated import ablated, replacement
from rareneuron.use.scores import Measure, Scores
from rareneuron.use.units import Units

KINDS = ("rare", "common")
CONTEXTS_AT_ONCE = 16
MARGIN, ACCURACY, ORIGINAL = "margin", "accuracy", "log p"

Groups = Mapping[str, Int[np.ndarray, "_ size"]]  # number of groups · neurons


@dataclass(frozen=True, kw_only=True)
class SwapText:
    """What items are made of: a text, and which of its windows the study analysed."""

    corpus: Corpus
    is_own: bool  # the text of the study


def swap_text(run: Run, data: str | Path | None, text_field: str | None) -> SwapText:
    """Return the text that items come from: the run's own, or another."""
    config = run.manifest.config
    own = run.manifest.resolved.get("data") or config.data
    field = text_field or config.text_field
    if data is not None and str(expanded(data)) != own and str(data) != config.data:
        return SwapText(corpus=open_corpus(data, text_field=field), is_own=False)
    if config.is_embedded_corpus:
        return SwapText(corpus=Corpus(name="embedded corpus", description="", read=analysis_texts), is_own=True)
    return SwapText(corpus=open_corpus(own, text_field=field), is_own=True)


def made_pairs(
    run: Run, adapter: Adapter, text: SwapText, *, n_items: int, n_following: int, max_tokens: int, seed: int
) -> SwapPairs:
    """Make the items: words whose frequency the study knows, in documents that it analysed nothing of."""
    config, table = run.manifest.config, run.tokens()
    frequency, rare = np.full(adapter.vocab, np.nan), np.zeros(adapter.vocab, bool)
    frequency[table["target"]], rare[table["target"]] = table["frequency"], table["rare"]
    stream = token_stream(text.corpus, adapter.tokenizer, max_tokens)
    analysed = analysed_windows(run, stream, adapter) if text.is_own else np.empty(0, np.int64)
    return swap_pairs(
        stream,
        swap_words(adapter.tokenizer, frequency, rare),
        adapter.tokenizer,
        context_length=config.context_length,
        analysed=analysed,
        n_items=n_items,
        n_following=n_following,
        rng=generator(seed, "swaps"),
    )


def analysed_windows(run: Run, stream: TokenStream, adapter: Adapter) -> Int[np.ndarray, " context"]:
    """Return which windows of the text the study analysed; refuse a text in which they are no longer there."""
    kept = read_tensors(run.path / CONTEXTS)
    has_bos = adapter.tokenizer.bos_token_id is not None
    stride = kept["windows"].shape[1] - has_bos
    within = (kept["context_index"] + 1) * stride <= len(stream.ids)
    index = kept["context_index"][within].astype(np.int64)
    place = index[:, None] * stride + np.arange(stride)
    if not np.array_equal(plain_ids(stream.ids)[place], kept["windows"][within][:, int(has_bos) :]):
        raise MissingText(
            f"The text of {run.path} has changed since it was studied, so it can't be told which documents its groups "
            "were chosen on. Give a text that the study didn't use (--data)."
        )
    return index


def swap_scores(
    run: Run,
    adapter: Adapter,
    pairs: SwapPairs,
    groups: Groups,
    random: Groups,
    *,
    n_following: int = 0,
    to: str = "mean",
    step: int | None = None,
) -> tuple[Scores, str]:
    """Score all items without each group, and say how it was done."""
    layer = run.manifest.layer
    readout = adapter.readout_behind(layer)
    if isinstance(readout, Unavailable):
        found = by_running(run, adapter, pairs, groups, random, n_following=n_following, to=to, step=step)
        how = "by running the model for each group"
    else:
        W_out = adapter.weights(layer).W_out
        value = replacement(run, (layer, "neurons"), to, step, torch.arange(len(W_out)))
        assert value is not None, "a constant"
        end = AblatedReadout(readout, W_out, value)
        found = by_readout(adapter, layer, end, pairs, groups, random, n_following)
        how = "by readouts of states kept from one forward pass"
    kind = (~pairs.rare).astype(np.int64)
    return Scores(task=SWAP, document=pairs.document, kinds=KINDS, kind=kind, measures=found, contrast=True), how


def measures_of(margin: Measure, original: Measure) -> dict[str, Measure]:
    """Return the margin, how often the original is preferred, and the original's own log-likelihood."""

    def right(values: np.ndarray) -> np.ndarray:
        return (values > 0).astype(np.float64)

    accuracy = Measure(
        clean=right(margin.clean),
        without={name: right(values) for name, values in margin.without.items()},
        random={name: right(values) for name, values in margin.random.items()},
    )
    return {MARGIN: margin, ACCURACY: accuracy, ORIGINAL: original}


# --- one forward pass, and readouts


def by_readout(
    adapter: Adapter,
    layer: int,
    end: AblatedReadout,
    pairs: SwapPairs,
    groups: Groups,
    random: Groups,
    n_following: int,
) -> dict[str, Measure]:
    """Score all groups from states that are kept from one forward pass of each context."""
    device = adapter.model.device
    other = torch.from_numpy(pairs.swap).to(device)
    at_word = states_at(adapter, layer, pairs.windows, pairs.context, pairs.position, pairs.original)
    behind = [] if n_following == 0 else behind_words(adapter, layer, pairs, n_following)

    def margins(of: Int[np.ndarray, "draw size"]) -> np.ndarray:
        change = end.margin_changes(at_word, other, of)
        for sign, states in zip((1, -1), behind, strict=False):
            change += sign * end.logp_changes(states, of).reshape(len(of), len(pairs), n_following).sum(-1)
        return change

    clean = end.clean_margin(at_word, other)
    for sign, states in zip((1, -1), behind, strict=False):
        clean = clean + sign * end.clean_logp(states).reshape(len(pairs), n_following).sum(-1)
    margin = Measure(
        clean=clean,
        without={name: clean + margins(of)[0] for name, of in groups.items()},
        random={name: clean + margins(of) for name, of in random.items()},
    )
    logp = end.clean_logp(at_word)
    without = {name: logp + end.logp_changes(at_word, of)[0] for name, of in groups.items()}
    return measures_of(margin, Measure(clean=logp, without=without, random={}))


def behind_words(adapter: Adapter, layer: int, pairs: SwapPairs, n: int) -> list[States]:
    """Return the states behind each original word and behind each swapped one, `n` tokens of each item in turn."""
    row, position, target = following_places(pairs, n)
    both = pairs.windows[pairs.context], swapped_windows(pairs)
    return [states_at(adapter, layer, windows, row, position, target) for windows in both]


def following_places(
    pairs: SwapPairs, n: int
) -> tuple[Int[np.ndarray, " place"], Int[np.ndarray, " place"], Int[np.ndarray, " place"]]:
    """Return item, position and target of the `n` tokens behind each item's word."""
    row = np.repeat(np.arange(len(pairs)), n)
    position = (pairs.position[:, None] + 1 + np.arange(n)).ravel()
    return row, position, pairs.windows[pairs.context[row], position + 1].astype(np.int64)


def swapped_windows(pairs: SwapPairs) -> Int[np.ndarray, "item position"]:
    """Return each item's context with the other word in the original's place."""
    windows = pairs.windows[pairs.context]
    windows[np.arange(len(pairs)), pairs.position + 1] = pairs.swap
    return windows


def states_at(
    adapter: Adapter,
    layer: int,
    windows: Int[np.ndarray, "context position"],
    row: Int[np.ndarray, " place"],
    position: Int[np.ndarray, " place"],
    target: Int[np.ndarray, " place"],
) -> States:
    """Run some contexts, each as far as it is needed, and keep the states of some places, in the order given."""
    last = np.zeros(len(windows), np.int64)
    np.maximum.at(last, row, position)
    order = np.argsort(last, kind="stable")
    parts: list[tuple[Tensor, Tensor]] = []
    places: list[np.ndarray] = []
    for start in range(0, len(order), CONTEXTS_AT_ONCE):
        contexts = np.sort(order[start : start + CONTEXTS_AT_ONCE])
        at = np.flatnonzero(np.isin(row, contexts))
        ids = np.ascontiguousarray(windows[contexts, : last[contexts].max() + 1])
        captured = adapter.capture(ids, layer, contexts_per_batch=CONTEXTS_AT_ONCE)
        where = torch.from_numpy(np.searchsorted(contexts, row[at])), torch.from_numpy(position[at])
        parts.append((captured.resid[where], captured.act[where]))
        places.append(at)
    back = torch.from_numpy(np.argsort(np.concatenate(places)))
    resid, act = (torch.cat(tensors)[back] for tensors in zip(*parts, strict=True))
    return States(resid=resid, act=act, target=torch.from_numpy(target.astype(np.int64)).to(resid.device))


# --- the whole model, once for each group


def by_running(
    run: Run,
    adapter: Adapter,
    pairs: SwapPairs,
    groups: Groups,
    random: Groups,
    *,
    n_following: int,
    to: str,
    step: int | None,
) -> dict[str, Measure]:
    """Score all groups by running the model without each."""

    def scored(of: Int[np.ndarray, "draw size"]) -> Float[np.ndarray, "draw 2 item"]:
        found = []
        for members in of:
            with ablated(adapter.model, run, units=Units({(run.manifest.layer, "neurons"): members}), to=to, step=step):
                found.append(run_scores(adapter, pairs, n_following))
        return np.stack(found)

    clean, logp = run_scores(adapter, pairs, n_following)
    named = {name: scored(of)[0] for name, of in groups.items()}
    margin = Measure(
        clean=clean,
        without={name: of[0] for name, of in named.items()},
        random={name: scored(of)[:, 0] for name, of in random.items()},
    )
    return measures_of(margin, Measure(clean=logp, without={name: of[1] for name, of in named.items()}, random={}))


def run_scores(adapter: Adapter, pairs: SwapPairs, n_following: int) -> Float[np.ndarray, "2 item"]:
    """Return the margin and the original's log p of every item, by the model as it is now."""
    both = np.stack([pairs.original, pairs.swap], 1)
    of = log_likelihoods(adapter, pairs.windows, pairs.context, pairs.position, both)
    margin = of[:, 0] - of[:, 1]
    if n_following:
        row, position, target = following_places(pairs, n_following)
        for sign, windows in ((1, pairs.windows[pairs.context]), (-1, swapped_windows(pairs))):
            behind = log_likelihoods(adapter, windows, row, position, target[:, None])
            margin = margin + sign * behind.reshape(len(pairs), n_following).sum(1)
    return np.stack([margin, of[:, 0]])


def log_likelihoods(
    adapter: Adapter,
    windows: Int[np.ndarray, "context position"],
    row: Int[np.ndarray, " place"],
    position: Int[np.ndarray, " place"],
    ids: Int[np.ndarray, "place id"],
) -> Float[np.ndarray, "place id"]:
    """Return log p of some ids at each place, in nats, from the model's own logits."""
    out = np.zeros(ids.shape)
    for start in range(0, len(windows), CONTEXTS_AT_ONCE):
        at = np.flatnonzero((row >= start) & (row < start + CONTEXTS_AT_ONCE))
        if not len(at):
            continue
        batch = torch.from_numpy(windows[start : start + CONTEXTS_AT_ONCE].astype(np.int64)).to(adapter.model.device)
        with torch.inference_mode():
            logits = adapter.model(batch, use_cache=False).logits[row[at] - start, position[at]]
        wanted = torch.from_numpy(ids[at].astype(np.int64)).to(logits.device)
        out[at] = logits.double().log_softmax(-1).gather(1, wanted).cpu().numpy()
    return out
