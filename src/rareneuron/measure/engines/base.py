"""Defines what an engine is: tokens of a layer in, every neuron's effect at every token out.

An `Engine` works on one layer of one loaded model. An `EngineKind` is the record by which the rest of the package knows
it: its name, what it refuses, what it costs and how it is built. No code compares names of engines; code that needs a
capability asks the record, or asks the model what stands behind the layer (`Adapter.readout_behind`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import InvalidConfig
from rareneuron.measure.capture import TokenBatch
from rareneuron.models.adapter import Adapter
from rareneuron.models.families import Family
from rareneuron.models.shape import ModelShape
from rareneuron.runs.records import Audit


@dataclass(frozen=True, kw_only=True)
class MeanActivations:
    """n̄, the mean that replaces activations at rare and at common targets, and the mean |n| at rare ones."""

    rare: Float[Tensor, " neuron"]
    common: Float[Tensor, " neuron"]
    absolute: Float[Tensor, " neuron"]

    def at(self, rare: Bool[np.ndarray, " token"]) -> Float[Tensor, "token neuron"]:
        """Return n̄ of each token's kind of target."""
        kind = torch.from_numpy(rare).to(self.rare.device)[:, None]
        return torch.where(kind, self.rare, self.common)


@dataclass(frozen=True, kw_only=True)
class EffectBlock:
    """One batch of tokens with an engine's results."""

    batch: TokenBatch
    statistics: dict[str, Tensor]  # [token, neuron] each
    loss: Float[Tensor, " token"]  # clean
    full_share: float | None = None  # of pairs that were summed in full, without an expansion


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What verification makes of the estimates of an engine, for both kinds of target (True: rare)."""

    contexts: Int[np.ndarray, " context"]  # rows of the selection's windows
    n_tokens: Mapping[bool, Int[np.ndarray, " context"]]
    sums: Mapping[bool, Mapping[str, Float[np.ndarray, "context neuron"]]]  # by the name of the statistic
    columns: Mapping[str, np.ndarray]  # of the table of effects: half-widths of means, and how sure they are


class Engine(ABC):
    """Computes the effects of one layer's neurons, block by block, and gathers what its audit needs."""

    compiled: bool | None = None  # whether full sums take the compiled loop; None for an engine without any

    def take_apart(self, log_frequency: Float[Tensor, " vocab"]) -> bool:
        """Return whether all later blocks take effects apart by mechanism; an engine without a readout can't."""
        return False

    @abstractmethod
    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        """Yield the effects of replacing each neuron by its mean, one at a time, at the tokens of each batch."""

    @abstractmethod
    def evidence(self) -> dict[str, np.ndarray]:
        """Return what was gathered for the audit since the last call; names begin with `audit.`."""

    @abstractmethod
    def absorb(self, evidence: Mapping[str, np.ndarray]) -> None:
        """Add the evidence of some contexts, just gathered or read back; other names are ignored."""

    @abstractmethod
    def judged(self) -> Audit | None:
        """Return the audit of all evidence, or refuse wrong effects; None for an engine that needs no audit."""

    def verified(self) -> Verified | None:
        """Return what `judged` found by verifying estimates; None for an engine whose effects are no estimates."""
        return None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an engine is asked to do, known before weights are loaded."""

    shape: ModelShape
    family: Family
    layer: int  # from 0
    memory: int  # bytes for its tables
    reference: str = "all"  # positions over which means are taken
    verify: float = 0.02  # share of the cells that may be patched to verify estimates


def refuse_reference(asked: Asked) -> None:
    """Refuse a mean over analysed tokens for an earlier layer, where it would stand at every position."""
    if asked.layer < asked.shape.n_layers - 1 and asked.reference != "all":
        raise InvalidConfig(
            f"Layer {asked.layer} acts through later positions too, so a neuron is replaced at every position of a "
            "context, and a mean over the positions before rare targets would be out of place at the others. Use "
            "`--reference all`, the mean over all positions."
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine may spend."""

    memory: int  # bytes of its tables
    verify: float = 0.02  # share of the cells that it may patch to verify estimates


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The sizes that decide what an engine costs."""

    forward: float  # operations of the forward passes over all positions that are computed
    resumed: float  # share of a forward pass from the layer's block on
    n_contexts: int
    n_tokens: int  # analysed, rare and common
    n_neurons: int
    d_model: int
    vocab: int
    output_norm: bool = False  # as `ModelShape` has it
    capped: bool = False
    verify: float = 0.02  # share of the cells that are patched at most


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One engine as the rest of the package knows it."""

    name: str  # of `--engine`
    about: str  # a sentence
    rules_out: Callable[[Family], str | None]  # why it can't serve an architecture; None where it can
    refuse: Callable[[Asked], None]  # raises for what it can't do, before weights are loaded
    refuse_model: Callable[[Adapter, int], None]  # raises for what the loaded model's probes rule out
    operations: Callable[[Workload], float]  # in its matrix products
    most_pieces: Callable[[Workload], int]  # into which a checkpoint can be cut without losing speed
    table_bytes: Callable[[ModelShape], int]  # that it would hold without a memory limit
    build: Callable[[Adapter, Selection, int, Limits, np.random.Generator], Engine]
    """Takes the model, the tokens, the layer, what may be spent, and the generator that draws the audit's sample."""
