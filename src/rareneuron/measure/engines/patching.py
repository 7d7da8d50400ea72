"""Computes effects by patching: the rest of the network runs again for every neuron and kind of target.

This is right for any layer and any architecture, since the model itself computes the loss; it is slow for the same
reason. There is no direct effect (there is no readout to freeze), and nothing to audit.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.measure.capture import TokenBatch
from rareneuron.measure.engines.base import Asked, EffectBlock, Engine, EngineKind, Limits, MeanActivations, Workload
from rareneuron.measure.sums import statistics_of
from rareneuron.models.adapter import Adapter
from rareneuron.models.families import Family
from rareneuron.models.patching import log_probabilities, patched_loss_changes
from rareneuron.models.shape import ModelShape

OVERHEAD = 2  # of a resumed pass over its matrix products
SOFTMAX_OPERATIONS = 400  # of a float32 product that take as long as an entry's log-softmax and KL in float64


@dataclass(frozen=True)
class Patching(Engine):
    """Mean-ablates every neuron of one layer by running the model itself."""

    adapter: Adapter
    selection: Selection
    layer: int

    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        """Yield effects; the rest of the network runs once for every neuron and kind of target."""
        for batch in batches:
            contexts, row = np.unique(batch.context, return_inverse=True)
            position = self.selection.position[batch.index]
            windows = self.selection.windows[contexts, : position.max() + 2]  # with the last target
            n_neurons = self.adapter.n_neurons(self.layer)
            delta, kl = torch.empty(2, len(row), n_neurons, dtype=torch.float64, device=batch.act.device)
            for mean, kind in ((means.rare, True), (means.common, False)):
                of_kind = np.flatnonzero(batch.rare == kind)
                if not len(of_kind):
                    continue
                tokens = (row[of_kind], position[of_kind])
                for effect in patched_loss_changes(self.adapter, windows, tokens, mean, self.layer):
                    delta[of_kind, effect.neuron], kl[of_kind, effect.neuron] = effect.delta_loss, effect.kl
            yield EffectBlock(
                batch=batch,
                statistics=statistics_of(delta, kl, None, means.at(batch.rare) - batch.act.double()),
                loss=clean_loss(self.adapter, windows, row, position, batch.target),
            )

    def evidence(self) -> dict[str, np.ndarray]:
        """Return no evidence: there is nothing to audit."""
        return {}

    def absorb(self, evidence: Mapping[str, np.ndarray]) -> None:
        """Do nothing: there is no evidence."""

    def judged(self) -> None:
        """Return None: this engine needs no audit."""


def clean_loss(
    adapter: Adapter,
    windows: Int[np.ndarray, "context position"],
    row: Int[np.ndarray, " token"],
    position: Int[np.ndarray, " token"],
    target: Int[Tensor, " token"],
) -> Float[Tensor, " token"]:
    """Return the model's own loss at some tokens, in nats."""
    place = torch.from_numpy(row * windows.shape[1] + position).to(target.device)
    log_p = log_probabilities(adapter.anatomy, adapter.anatomy.token_ids(windows), place)
    return -log_p.gather(1, target[:, None])[:, 0]


def rules_out(family: Family) -> None:
    """Serve every architecture."""


def refuse(asked: Asked) -> None:
    """Accept every layer of every model."""


def refuse_model(adapter: Adapter, layer: int) -> None:
    """Accept every loaded model."""


def operations(work: Workload) -> float:
    """Return the operations that every neuron takes: passes resumed at its layer, logits, and a softmax in float64.

    The rest of the network runs once for rare and once for common targets, whose means differ.
    """
    logits = work.n_tokens * work.vocab * (2.0 * work.d_model + SOFTMAX_OPERATIONS)
    return OVERHEAD * work.n_neurons * (2 * work.resumed * work.forward + logits)


def most_pieces(work: Workload) -> int:
    """Return one piece for each context: every neuron needs a pass of its own there anyway."""
    return work.n_contexts


def table_bytes(shape: ModelShape) -> int:
    """Return 0: patching has no tables."""
    return 0


def build(adapter: Adapter, selection: Selection, layer: int, limits: Limits, rng: np.random.Generator) -> Patching:
    """Make the engine of a layer; it needs no memory of its own and draws nothing."""
    return Patching(adapter, selection, layer)


PATCHING = EngineKind(
    name="patching",
    about="The rest of the network runs again for every neuron: right for any layer and architecture, and slow.",
    rules_out=rules_out,
    refuse=refuse,
    refuse_model=refuse_model,
    operations=operations,
    most_pieces=most_pieces,
    table_bytes=table_bytes,
    build=build,
)
