"""Sums effects over tokens and contexts, piece by piece; the sums of a piece can be stored, read back and added.

Pieces are added in the order of contexts, in float64, so the total has the same bits whenever and wherever each was
computed. Oracle: tests/study/test_crash.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.clustered import ClusteredMean, clustered_ratio, sums_by_context
from rareneuron.maths.mechanism import EffectParts
from rareneuron.maths.significance import t_quantile
from rareneuron.measure.capture import TokenBatch
from rareneuron.runs.layout import kept_rows

# In the order of the table's columns, which pieces that were read back don't keep.
STATISTICS = (
    "delta_loss",
    "abs_delta_loss",
    "kl",
    "abs_shift",
    "direct_delta_loss",
    "direct_abs_delta_loss",
    "beyond_frequency_abs_delta_loss",
    "beyond_tilt_abs_delta_loss",
    "words_abs_delta_loss",
    "entropy_change",
)
ALWAYS_PER_CONTEXT = ("delta_loss", "abs_delta_loss")
SHARES = {  # of mean |Δ|: by the statistic that is left without a mechanism
    "norm_share": "direct_abs_delta_loss",
    "frequency_share": "beyond_frequency_abs_delta_loss",
    "tilt_share": "beyond_tilt_abs_delta_loss",
    "words_share": "words_abs_delta_loss",
}
REMAINS = ("words_share",)  # the share that is left; the others are the share that goes
PER_CONTEXT = (*ALWAYS_PER_CONTEXT, "abs_shift", *SHARES.values())
# Stored where claims need them.
OF_MECHANISM = ("abs_shift", "direct_abs_delta_loss", "beyond_frequency_abs_delta_loss")
KIND = {True: "rare.", False: "common."}


@dataclass
class EffectSums:
    """Accumulates token blocks of whole contexts for one kind of target (rare or common)."""

    n_neurons: int
    n_contexts: int  # of the study
    contexts: range  # whose tokens are added
    means: dict[str, ClusteredMean] = field(default_factory=dict)
    per_context: dict[str, np.ndarray] = field(init=False)
    tokens_per_row: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rows = self._rows(self.contexts)
        self.tokens_per_row = np.zeros(len(rows), np.int64)
        self.per_context: dict[str, np.ndarray] = {}
        for name in ALWAYS_PER_CONTEXT:
            self._kept(name)

    def _kept(self, name: str) -> np.ndarray:
        """Return the sums per context of a statistic, which are made where it is new."""
        shape = len(self.tokens_per_row), self.n_neurons
        return self.per_context.setdefault(name, np.zeros(shape, np.float32))

    def _rows(self, contexts: range) -> range:
        """Return the rows that hold some contexts' sums."""
        first, last = kept_rows(np.array([contexts.start, contexts.stop - 1]), self.n_contexts).tolist()
        return range(first, last + 1)

    def add(self, values: dict[str, Tensor], context: Int[np.ndarray, " token"]) -> None:
        """Add the values [token, neuron] of some tokens; every context's tokens come in one call."""
        contexts, row = np.unique(context, return_inverse=True)
        sizes = np.bincount(row, minlength=len(contexts))
        kept_row = kept_rows(contexts, self.n_contexts) - self._rows(self.contexts).start
        np.add.at(self.tokens_per_row, kept_row, sizes)
        for name, value in values.items():
            sums = sums_by_context(value, torch.from_numpy(row).to(value.device), len(contexts))
            mean = self.means.setdefault(name, ClusteredMean(self.n_neurons, value.device))
            mean.add(sums, torch.from_numpy(sizes).to(value.device))
            if name in PER_CONTEXT:
                np.add.at(self._kept(name), kept_row, sums.cpu().numpy().astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all sums, to be stored and absorbed later."""
        means = {f"mean.{k}.{name}": v for k, mean in self.means.items() for name, v in mean.arrays().items()}
        return {"tokens_per_row": self.tokens_per_row, **self.per_context, **means}

    def absorb(self, part: Mapping[str, np.ndarray], contexts: range, device: torch.device) -> None:
        """Add the stored sums of some contexts."""
        first = self._rows(self.contexts).start
        rows = slice(self._rows(contexts).start - first, self._rows(contexts).stop - first)
        self.tokens_per_row[rows] += part["tokens_per_row"]
        for name in (name for name in PER_CONTEXT if name in part):
            self._kept(name)[rows] += part[name]
        means: dict[str, dict[str, np.ndarray]] = {}
        for key in (key for key in part if key.startswith("mean.")):
            _, statistic, name = key.split(".")
            means.setdefault(statistic, {})[name] = part[key]
        for statistic, arrays in means.items():
            self.means.setdefault(statistic, ClusteredMean(self.n_neurons, device)).absorb(arrays)

    def replace(
        self,
        name: str,
        sums: Float[np.ndarray, "context neuron"],
        sizes: Int[np.ndarray, " context"],
        contexts: Int[np.ndarray, " context"],
    ) -> None:
        """Put other sums of whole contexts in the place of a statistic's: of all contexts, with their tokens."""
        device = self.means[name]._sum.device
        self.means[name] = ClusteredMean(self.n_neurons, device)
        self.means[name].add(torch.from_numpy(sums).to(device), torch.from_numpy(sizes).to(device))
        if name in self.per_context:
            kept = np.zeros(self.per_context[name].shape)
            np.add.at(kept, kept_rows(contexts, self.n_contexts) - self._rows(self.contexts).start, sums)
            self.per_context[name] = kept.astype(np.float32)

    def columns(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return mean and standard error of every statistic, per neuron."""
        out = {}
        for name in (name for name in STATISTICS if name in self.means):
            mean = self.means[name]
            out[f"{prefix}{name}"] = mean.mean
            out[f"{prefix}{name}_se"] = mean.standard_error
        return out

    def shares(self) -> dict[str, np.ndarray]:
        """Return the part that each mechanism has in mean |Δ| per neuron, with both ends of its 95 % interval."""
        has = self.tokens_per_row > 0
        whole, out = self.per_context["abs_delta_loss"][has], dict[str, np.ndarray]()
        for share, name in SHARES.items():
            if name not in self.per_context:
                continue
            ratio, error = clustered_ratio(self.per_context[name][has], whole)
            value, half = ratio if share in REMAINS else 1 - ratio, error * t_quantile(len(whole))
            out |= {share: value, f"{share}_low": value - half, f"{share}_high": value + half}
        return out


def statistics_of(
    delta: Tensor, kl: Tensor, direct: Tensor | None, shift: Tensor, parts: EffectParts | None = None
) -> dict[str, Tensor]:
    """Return the reported statistics of a block of tokens; without a closed form there are no parts of an effect."""
    out = {"delta_loss": delta, "abs_delta_loss": delta.abs(), "kl": kl, "abs_shift": shift.abs()}
    if direct is not None:
        out |= {"direct_delta_loss": direct, "direct_abs_delta_loss": direct.abs()}
    if parts is not None:
        out |= {
            "beyond_frequency_abs_delta_loss": parts.beyond_frequency.abs(),
            "beyond_tilt_abs_delta_loss": parts.beyond_tilt.abs(),
            "words_abs_delta_loss": parts.words.abs(),
            "entropy_change": parts.entropy_change,
        }
    return out


def as_array(value: Tensor | np.ndarray | float | int) -> np.ndarray:
    """Return a tensor, an array or a number as an array; a number gives an array of one."""
    return value.cpu().numpy() if isinstance(value, Tensor) else np.atleast_1d(value)


class Gathered:
    """The sums and losses of some contexts, added up block by block."""

    def __init__(self, n_neurons: int, n_contexts: int, contexts: range, n_tokens: int) -> None:
        self.contexts = contexts
        self.sums = {kind: EffectSums(n_neurons, n_contexts, contexts) for kind in (True, False)}
        self.loss = np.full(n_tokens, np.nan)
        self.full_pairs = 0.0

    def add(
        self,
        batch: TokenBatch,
        statistics: Mapping[str, Tensor],
        loss: Float[Tensor, " token"],
        full_share: float | None,
    ) -> None:
        """Add an engine's results for a batch of whole contexts (`EffectBlock`)."""
        for kind, sums in self.sums.items():
            chosen = batch.rare == kind
            if chosen.any():
                on_device = torch.from_numpy(chosen).to(loss.device)
                sums.add({k: v[on_device] for k, v in statistics.items()}, batch.context[chosen])
        self.loss[batch.index] = loss.double().cpu().numpy()
        self.full_pairs += (1.0 if full_share is None else full_share) * len(batch.index)

    def arrays(self, index: Int[np.ndarray, " token"]) -> dict[str, np.ndarray]:
        """Return all of it, to be stored and absorbed later; `index` are the rows of its tokens."""
        sums = {f"{KIND[kind]}{name}": v for kind, s in self.sums.items() for name, v in s.arrays().items()}
        return {"index": index, "loss": self.loss[index], "full_pairs": np.array([self.full_pairs]), **sums}

    def absorb(self, part: Mapping[str, np.ndarray], contexts: range, device: torch.device) -> None:
        """Add stored sums; call it in the order of contexts, so that the total always has the same bits."""
        for kind, sums in self.sums.items():
            prefix = KIND[kind]
            of_kind = {k.removeprefix(prefix): v for k, v in part.items() if k.startswith(prefix)}
            sums.absorb(of_kind, contexts, device)
        self.loss[part["index"]] = part["loss"]
        self.full_pairs += part["full_pairs"].item()


def context_sums(sums: dict[bool, EffectSums]) -> dict[str, np.ndarray]:
    """Return per-context sums and token counts of both kinds of target, for the bootstrap."""
    out: dict[str, np.ndarray] = {}
    for prefix, kind in (("", True), ("common_", False)):
        kept = sums[kind].per_context
        out |= {f"{prefix}{name}": kept[name] for name in (*ALWAYS_PER_CONTEXT, *OF_MECHANISM) if name in kept}
        out[f"{prefix}n_tokens"] = sums[kind].tokens_per_row
    return out
