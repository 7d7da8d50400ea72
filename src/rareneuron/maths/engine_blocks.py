"""The loop of the last layer's engines: tables of some neurons at a time, and for these a block of tokens at a time.

Oracle: tests/maths/test_ablation.py and test_behind_norm.py, through the engines.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths.fused import compilation
from rareneuron.maths.mechanism import EffectParts, FrequencyDirection
from rareneuron.maths.neuron_tables import NeuronTables, neuron_tables
from rareneuron.maths.pair_effects import AblationEffects


class Block(NamedTuple):
    """A block of tokens, and how the activations of some neurons are shifted at them."""

    resid: Float[Tensor, "token d_model"]  # the last block's output, in float64
    shift: Float[Tensor, "token neuron"]  # in float64
    target: Int[Tensor, " token"]
    mlp_out: Float[Tensor, "token d_model"] | None  # in float64, where a norm stands behind the MLP
    kinds: int  # 1: the total effect; 2: the direct one, too
    apart: bool  # whether effects are taken apart by mechanism


class BlockEffects(NamedTuple):
    """What an engine finds for a block of tokens and some neurons."""

    loss: Float[Tensor, " token"]
    delta: Float[Tensor, "kind token neuron"]
    kl: Float[Tensor, "token neuron"]  # of the total effect
    parts: Float[Tensor, "part token neuron"] | None
    n_full: int  # pairs that were summed over the vocabulary


class EngineByBlocks(ABC):
    """Goes through neurons and tokens, and holds what blocks share; how a block is computed is the engine's own."""

    def __init__(
        self,
        written: Float[Tensor, "neuron d_model"],
        A: Float[Tensor, "vocab d_model"],
        *,
        squares: torch.dtype | None,
        neurons_at_once: int,
        block: int,
        copies: int,
        compiled: bool,
    ) -> None:
        """Take what neurons write, as the readout centres it, and the logits per direction, in the engine's dtype.

        `squares` is the dtype of B² in the tables, None where they hold none; `copies` are the arrays [token, vocab]
        that a block of `block` tokens needs; `compiled` says that full sums take the compiled loop (`fused`).
        """
        self.written, self.A, self.squares = written, A, squares
        self.neurons_at_once, self.block, self.copies = neurons_at_once, block, copies
        self.compiled = compiled
        if compiled:
            compilation()  # begins now, beside the tables
        self.frequency: FrequencyDirection | None = None
        self._held: NeuronTables | None = None
        # Kept, since fresh memory of this size would be faulted in page by page for every block.
        self._workspace = torch.empty(copies * block, len(A), dtype=A.dtype, device=A.device)

    @abstractmethod
    def _effects_of(self, block: Block, tables: NeuronTables) -> BlockEffects:
        """Compute a block of tokens."""

    def take_apart(self, log_frequency: Float[Tensor, " vocab"]) -> None:
        """Take effects apart by mechanism in all later calls (`mechanism`)."""
        self.frequency = FrequencyDirection(log_frequency, self.A)

    def effects(
        self,
        resid: Float[Tensor, "token d_model"],
        shift: Float[Tensor, "token neuron"],
        target: Int[Tensor, " token"],
        *,
        direct: bool = True,
        mlp_out: Float[Tensor, "token d_model"] | None = None,
    ) -> AblationEffects:
        """Total Δ and KL of every (token, neuron) pair, and direct Δ unless that isn't wanted.

        `mlp_out` is needed where a norm stands behind the MLP (`Readout.mlp_output`).
        """
        kinds = 2 if direct else 1
        delta = torch.empty(kinds, *shift.shape, dtype=self.A.dtype, device=shift.device)
        kl = torch.empty_like(delta[0])
        loss = torch.empty(len(resid), dtype=self.A.dtype, device=shift.device)
        apart = direct and self.frequency is not None
        parts = torch.empty(len(EffectParts._fields) if apart else 0, *kl.shape).to(kl)
        n_full = 0
        for first in range(0, shift.shape[1], self.neurons_at_once):
            tables = self._tables(slice(first, min(first + self.neurons_at_once, shift.shape[1])))
            for start in range(0, len(resid), self.block):
                tokens = slice(start, start + self.block)
                found = self._effects_of(
                    Block(
                        resid=resid[tokens].double(),
                        shift=shift[tokens, tables.neurons].double(),
                        target=target[tokens],
                        mlp_out=None if mlp_out is None else mlp_out[tokens].double(),
                        kinds=kinds,
                        apart=apart,
                    ),
                    tables,
                )
                loss[tokens] = found.loss
                place = (tokens, tables.neurons)
                delta[:, *place], kl[place] = found.delta, found.kl
                if found.parts is not None:
                    parts[:, *place] = found.parts
                n_full += found.n_full
            del tables  # before the next ones are made
        return AblationEffects(
            delta_loss=delta[0],
            direct_delta_loss=delta[1] if direct else None,
            kl=kl,
            loss=loss,
            full_share=n_full / max(1, shift.numel()),
            parts=EffectParts(*parts) if apart else None,
        )

    def _arrays(self, n_tokens: int) -> Float[Tensor, "copy token vocab"]:
        """Return memory for a block's arrays, which the next block overwrites."""
        return self._workspace[: self.copies * n_tokens].unflatten(0, (self.copies, n_tokens))

    def _tables(self, neurons: slice) -> NeuronTables:
        """Return the tables of some neurons; they are held while the next call asks for the same."""
        if self._held is None or self._held.neurons != neurons:
            self._held = None  # memory holds one set
            rows = self.written[neurons].to(self.A.dtype)
            self._held = neuron_tables(neurons, rows, self.A, squared_dtype=self.squares)
        return self._held
