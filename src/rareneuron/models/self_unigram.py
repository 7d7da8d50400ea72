"""A model's own unigram distribution: the mean of its next-token distributions over the positions of a text.

A corpus says of a position which token came; the model says how likely every token was. Its mean is what a count is in
expectation (a count without the luck of the draw), so it has no zeros and no ties, and types that the text never shows
have a frequency too. Whole contexts are drawn at random and the standard error is theirs, since positions of one
context resemble each other: se² = Σ (p̄_context − p̄)² / (n (n − 1)). It stops when the relative error of the median type
is as small as was asked. Oracle: tests/models/test_self_unigram.py, a loop over positions in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int32
from torch import Tensor

from rareneuron.errors import BrokenCheckpoint
from rareneuron.models.faults import overflow_remedy

LOGIT_BYTES = 128 * 2**20  # of one batch; its softmax takes as much again
FEWEST_CONTEXTS = 100  # before the error is looked at: that of fewer contexts is itself not known
POSITIONS_AT_ONCE = 16
GROWTH = 1.1  # of the number of contexts between two looks

Progress = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class SelfUnigram:
    """The mean next-token distribution over contexts, and the standard error of each of its entries."""

    p: Float64[np.ndarray, " vocab"]
    se: Float64[np.ndarray, " vocab"]  # infinite after a single context
    n_contexts: int
    n_positions: int

    @property
    def precision(self) -> float:
        """Median over types of the relative standard error: half of the types lie on either side of it."""
        return float(np.median(self.se / self.p))


class RunningMean:
    """Mean and variance over contexts, updated batch by batch without cancellation (Chan's formula), in float64."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.n = 0
        self.mean = torch.zeros(vocab, dtype=torch.float64, device=device)
        self.squares = torch.zeros(vocab, dtype=torch.float64, device=device)  # of deviations from the mean

    def add(self, rows: Float[Tensor, "context vocab"]) -> None:
        """Take in the means of some contexts."""
        n, mean = len(rows), rows.mean(0)
        away = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + away.square() * (self.n * n / (self.n + n))
        self.mean += away * (n / (self.n + n))
        self.n += n

    def found(self, positions: int) -> SelfUnigram:
        """Return what is known so far."""
        se = (self.squares / (self.n * (self.n - 1))).sqrt() if self.n > 1 else torch.full_like(self.mean, torch.inf)
        return SelfUnigram(
            p=self.mean.cpu().numpy(), se=se.cpu().numpy(), n_contexts=self.n, n_positions=self.n * positions
        )


def self_unigram(
    model: Any,
    read: Callable[[Int[np.ndarray, " context"]], Int32[np.ndarray, "context position"]],
    order: Int[np.ndarray, " context"],
    *,
    precision: float,
    most_positions: int,
    progress: Progress = lambda _: None,
) -> SelfUnigram:
    """Return the mean next-token distribution of a causal language model over windows of text.

    Args:
        model: A `transformers` model in evaluation mode.
        read: Returns the windows of some contexts.
        order: Which contexts, in the order in which they are taken: at random, for the errors to hold.
        precision: Stop when the median type's relative standard error is no larger.
        most_positions: Stop at the last context within so many predicted positions, but not before the first.
        progress: Is told how many contexts were added.

    Returns:
        Distribution [vocab] and standard errors [vocab], and from how much text.
    """
    running: RunningMean | None = None
    look, done, per_context = FEWEST_CONTEXTS, 0, 0
    size, last = 1, len(order)
    while done < last:
        windows = read(order[done : min(done + size, last)])
        per_context = windows.shape[1] - 1
        last = min(last, max(1, most_positions // per_context))
        rows = mean_distributions(model, windows[: last - done])
        if running is None:
            running = RunningMean(rows.shape[1], rows.device)
            size = max(1, LOGIT_BYTES // (4 * rows.shape[1] * windows.shape[1]))
        running.add(rows)
        done += len(rows)
        progress(len(rows))
        if done >= look:
            if running.found(per_context).precision <= precision:
                break
            look = int(GROWTH * done) + 1
    assert running is not None, "there is no context"
    return running.found(per_context)


def mean_distributions(model: Any, windows: Int32[np.ndarray, "context position"]) -> Float[Tensor, "context vocab"]:
    """Return the mean of the next-token distributions over all positions but the last of each window, in float64."""
    ids = torch.as_tensor(windows).to(model.device, torch.long)
    with torch.inference_mode():
        logits = model(ids[:, :-1], use_cache=False).logits
        likely = logits.float().softmax(-1)
        # A few positions at a time in float32, 1e-7 off: summed in float64 one by one they take longer than the model.
        parts = torch.stack([some.sum(1) for some in likely.split(POSITIONS_AT_ONCE, dim=1)])
        rows = parts.sum(0, dtype=torch.float64) / logits.shape[1]
    if not bool(torch.isfinite(rows).all()):
        raise BrokenCheckpoint(
            "The model's next-token distribution isn't finite on this text, so it can't say how frequent tokens are. "
            f"{overflow_remedy(model.dtype)}"
        )
    return rows.clone()  # an ordinary tensor, outside inference mode
