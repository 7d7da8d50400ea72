"""Sums of effects over tokens and contexts, of which means, standard errors and the bootstrap are made."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from rareneuron.maths.significance import ClusteredMean, sums_by_context

KEPT_PER_CONTEXT = ("delta_loss", "abs_delta_loss")
MOST_CONTEXT_SUMS = 4_096  # beyond this, neighbouring contexts share a row, and the bootstrap resamples rows


def kept_rows(context: Int[np.ndarray, " any"], n_contexts: int) -> Int[np.ndarray, " any"]:
    """The rows of the per-context sums that some of a study's contexts are kept in."""
    return context.astype(np.int64) * min(n_contexts, MOST_CONTEXT_SUMS) // n_contexts


@dataclass
class EffectSums:
    """Accumulates token blocks of whole contexts for one kind of target (rare or common)."""

    n_neurons: int
    n_contexts: int
    means: dict[str, ClusteredMean] = field(default_factory=dict)
    per_context: dict[str, np.ndarray] = field(init=False)
    tokens_per_row: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n_rows = min(self.n_contexts, MOST_CONTEXT_SUMS)
        self.tokens_per_row = np.zeros(n_rows, np.int64)
        self.per_context = {name: np.zeros((n_rows, self.n_neurons), np.float32) for name in KEPT_PER_CONTEXT}

    def add(self, values: dict[str, Tensor], context: Int[np.ndarray, " token"]) -> None:
        """Add the values [token, neuron] of some tokens; every context's tokens come in one call."""
        contexts, row = np.unique(context, return_inverse=True)
        sizes = np.bincount(row, minlength=len(contexts))
        kept = kept_rows(contexts, self.n_contexts)
        np.add.at(self.tokens_per_row, kept, sizes)
        for name, value in values.items():
            sums = sums_by_context(value, torch.from_numpy(row).to(value.device), len(contexts))
            mean = self.means.setdefault(name, ClusteredMean(self.n_neurons, value.device))
            mean.add(sums, torch.from_numpy(sizes).to(value.device))
            if name in self.per_context:
                np.add.at(self.per_context[name], kept, sums.cpu().numpy().astype(np.float32))

    def columns(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Mean and standard error of every statistic, per neuron."""
        out = {}
        for name, mean in self.means.items():
            out[f"{prefix}{name}"] = mean.mean
            out[f"{prefix}{name}_se"] = mean.standard_error
        return out


def context_sums(sums: dict[bool, EffectSums]) -> dict[str, np.ndarray]:
    """Per-context sums and token counts of both kinds of target, for the bootstrap."""
    out: dict[str, np.ndarray] = {}
    for prefix, kind in (("", True), ("common_", False)):
        out |= {f"{prefix}{name}": value for name, value in sums[kind].per_context.items()}
        out[f"{prefix}n_tokens"] = sums[kind].tokens_per_row
    return out
