"""Captures what effects are computed from: residual stream, activations and target of each analysed token.

The backbone runs without the unembedding; logits are formed later, at analysed tokens only. Contexts stream
through, so memory holds one batch, however large the corpus. What follows a context's last analysed token can't change
anything before it, so it isn't computed; contexts that end at about the same place go through together. Targets come
from the `Selection`: the shift to the next token happens there, where a target's rarity decides which tokens are
analysed, and nowhere else. Oracle: tests/measure/test_capture.py, whole contexts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.models.adapter import Adapter

BATCH_BYTES = 256 * 2**20  # activations of one forward pass
CONTEXTS_AT_ONCE = 16  # whose ends are close, at most
HELD = 0.25  # share of the memory that captured tokens may take; the engine has the rest

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Analysed tokens of a few whole contexts, in the order of the selection."""

    resid: Float[Tensor, "token d_model"]  # the block's output; of the last layer the input of the final norm
    act: Float[Tensor, "token neuron"]  # input of the MLP's output projection
    target: Int[Tensor, " token"]
    context: Int[np.ndarray, " token"]  # row of the selection's windows
    rare: Bool[np.ndarray, " token"]  # False: matched common target
    index: Int[np.ndarray, " token"]  # row of the token table
    all_act_sum: Float[Tensor, " neuron"]  # over the positions computed: all of them for `reference="all"`
    n_positions: int  # computed


def contexts_per_batch(adapter: Adapter, context_length: int, layer: int) -> int:
    """Return how many contexts a forward pass may take with its activations below `BATCH_BYTES`."""
    per_token = 4 * (2 * adapter.n_neurons(layer) + 8 * adapter.d_model)  # float32, one layer's worth lives at a time
    return max(1, BATCH_BYTES // (per_token * context_length))


def last_positions(selection: Selection) -> Int[np.ndarray, " context"]:
    """Return the last analysed position of each context."""
    last = np.zeros(len(selection.windows), np.int64)
    np.maximum.at(last, selection.context, selection.position)
    return last


def capture(adapter: Adapter, selection: Selection, layer: int = -1, *, whole: bool = False) -> Iterator[TokenBatch]:
    """Run the backbone over all contexts of the selection, and yield what it computes at analysed tokens.

    Contexts end with their batch's last analysed token, and come in the order of their ends; `whole` ones are computed
    to their end, as means over all positions need, and come in the selection's order.
    """
    n_positions = selection.windows.shape[1]
    adapter.anatomy.refuse_longer(n_positions)  # cropped, they might just fit
    last = np.full(len(selection.windows), n_positions - 1) if whole else last_positions(selection)
    order = np.argsort(selection.context, kind="stable")
    first = np.searchsorted(selection.context[order], np.arange(len(last) + 1))
    size = min(CONTEXTS_AT_ONCE, contexts_per_batch(adapter, n_positions, layer))
    for chosen in np.split(np.argsort(last, kind="stable"), range(size, len(last), size)):
        contexts = np.sort(chosen)
        windows = np.ascontiguousarray(selection.windows[contexts, : last[contexts].max() + 1])
        rows = np.concatenate([order[first[c] : first[c + 1]] for c in contexts])
        captured = adapter.capture(torch.from_numpy(windows), layer, contexts_per_batch=size)
        row = torch.from_numpy(np.searchsorted(contexts, selection.context[rows])).long()
        position = torch.from_numpy(selection.position[rows]).long()
        yield TokenBatch(
            resid=captured.resid[row, position],
            act=captured.act[row, position],
            target=torch.from_numpy(selection.target[rows]).long().to(captured.resid.device),
            context=selection.context[rows],
            rare=selection.rare[rows],
            index=rows,
            all_act_sum=captured.act.double().sum((0, 1)),
            n_positions=windows.size,
        )


def join_batches(batches: Iterable[TokenBatch], n_tokens: int) -> Iterator[TokenBatch]:
    """Join neighbouring batches to batches of at least `n_tokens` tokens; the last may be smaller."""
    waiting: list[TokenBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(b.index) for b in waiting) >= n_tokens:
            yield _concatenate(waiting)
            waiting = []
    if waiting:
        yield _concatenate(waiting)


def _concatenate(batches: list[TokenBatch]) -> TokenBatch:
    if len(batches) == 1:
        return batches[0]
    return TokenBatch(
        resid=torch.cat([b.resid for b in batches]),
        act=torch.cat([b.act for b in batches]),
        target=torch.cat([b.target for b in batches]),
        context=np.concatenate([b.context for b in batches]),
        rare=np.concatenate([b.rare for b in batches]),
        index=np.concatenate([b.index for b in batches]),
        all_act_sum=torch.stack([b.all_act_sum for b in batches]).sum(0),
        n_positions=sum(b.n_positions for b in batches),
    )


def rows_of(selection: Selection, contexts: range) -> Int[np.ndarray, " token"]:
    """Return the rows of the token table that belong to some contexts."""
    return np.flatnonzero((selection.context >= contexts.start) & (selection.context < contexts.stop))


def part_of(selection: Selection, contexts: range) -> tuple[Selection, Int[np.ndarray, " token"]]:
    """Return the part of a selection that some contexts make up, and the rows of its tokens in the token table."""
    rows = rows_of(selection, contexts)
    return part_of_tokens(selection, rows, np.arange(contexts.start, contexts.stop)), rows


def part_of_tokens(
    selection: Selection, rows: Int[np.ndarray, " token"], contexts: Int[np.ndarray, " context"] | None = None
) -> Selection:
    """Return the part of a selection that some rows of the token table make up, with their contexts or those given."""
    if contexts is None:
        contexts = np.unique(selection.context[rows])
    return replace(
        selection,
        windows=selection.windows[contexts],
        context_index=selection.context_index[contexts],
        context=np.searchsorted(contexts, selection.context[rows]),
        position=selection.position[rows],
        target=selection.target[rows],
        rare=selection.rare[rows],
    )


class TokenSource(ABC):
    """The captured tokens of one layer of a checkpoint, which can be iterated any number of times."""

    adapter: Adapter
    selection: Selection
    layer: int
    whole: bool  # contexts are computed to their ends, and not only to their last analysed token
    seconds: float  # spent on capture
    n_positions: int  # computed in the first pass

    @abstractmethod
    def first_pass(self, progress: Progress) -> Iterator[TokenBatch]:
        """Capture all batches, and add the time to `seconds`."""

    @abstractmethod
    def again(self) -> Iterator[TokenBatch]:
        """Yield the same batches again."""
