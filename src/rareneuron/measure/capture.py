"""From contexts to what the last layer's neurons need: residual stream, activations and target of each token.

The backbone runs without the unembedding; logits are formed later, at analysed tokens only. Contexts stream
through, so memory is that of one batch whatever the corpus. Targets come from the `Selection`: the shift to the
next token happened there, where a target's rarity decides which tokens are analysed, and never again.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.models.adapter import Adapter

BATCH_BYTES = 256 * 2**20  # activations of one forward pass
HELD = 0.25  # share of the memory that captured tokens may take; the engine has the rest

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Analysed tokens of a few whole contexts, in the order of the selection."""

    resid: Float[Tensor, "token d_model"]  # last block's output, the input of the final norm
    act: Float[Tensor, "token neuron"]  # input of the MLP's output projection
    target: Int[Tensor, " token"]
    context: Int[np.ndarray, " token"]  # row of the selection's windows
    rare: Bool[np.ndarray, " token"]  # False: matched common target
    index: Int[np.ndarray, " token"]  # row of the token table
    all_act_sum: Float[Tensor, " neuron"]  # over every position of these contexts, for `reference="all"`
    n_positions: int


def contexts_per_batch(adapter: Adapter, context_length: int) -> int:
    """As many contexts as keep a forward pass's activations below `BATCH_BYTES`."""
    per_token = 4 * (2 * adapter.d_mlp + 8 * adapter.d_model)  # float32, one layer's worth lives at a time
    return max(1, BATCH_BYTES // (per_token * context_length))


def capture(adapter: Adapter, selection: Selection, layer: int = -1) -> Iterator[TokenBatch]:
    """Run the backbone over all contexts of the selection and keep what stands at analysed tokens."""
    order = np.argsort(selection.context, kind="stable")
    context = selection.context[order]
    size = contexts_per_batch(adapter, selection.windows.shape[1])
    for start in range(0, len(selection.windows), size):
        windows = selection.windows[start : start + size]
        rows = order[np.searchsorted(context, start) : np.searchsorted(context, start + len(windows))]
        captured = adapter.capture(torch.from_numpy(windows), layer)
        row = torch.from_numpy(selection.context[rows] - start).long()
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


def joined(batches: Iterable[TokenBatch], n_tokens: int) -> Iterator[TokenBatch]:
    """Neighbouring batches as one, of at least `n_tokens` tokens but for the last."""
    waiting: list[TokenBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(b.index) for b in waiting) >= n_tokens:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(batches: list[TokenBatch]) -> TokenBatch:
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


class TokenSource:
    """The token batches of a checkpoint, again and again: held where they fit in memory, captured anew where not."""

    def __init__(self, adapter: Adapter, selection: Selection, layer: int, memory: int) -> None:
        self.adapter, self.selection, self.layer = adapter, selection, layer
        self.fits = len(selection.context) * (adapter.d_mlp + adapter.d_model) * 4 <= memory
        self._held: list[TokenBatch] = []
        self.seconds = 0.0

    def first_pass(self, progress: Progress) -> Iterator[TokenBatch]:
        """Capture, timed."""
        start = time.perf_counter()
        for batch in capture(self.adapter, self.selection, self.layer):
            self.seconds += time.perf_counter() - start
            if self.fits:
                self._held.append(batch)
            yield batch
            progress(batch.n_positions)
            start = time.perf_counter()

    def again(self) -> Iterable[TokenBatch]:
        """The same batches again."""
        return self._held if self.fits else capture(self.adapter, self.selection, self.layer)
