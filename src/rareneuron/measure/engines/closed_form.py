"""Computes every neuron's effect in closed form, from the readout alone, and audits it in float64 (`maths.ablation`).

It is exact where the residual stream after the layer passes only through final norm and unembedding, which the probes
check at every load. At the end, the effects of a seeded sample of (token, neuron) pairs are computed again in float64;
effects that this audit doesn't confirm are refused. Oracle: tests/models/test_contract.py, patching.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import UnsupportedModel, WrongEffects
from rareneuron.maths.ablation import TOLERANCE, AblationEffects, AblationEngine
from rareneuron.maths.fused import compiling_pays
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.readout import Readout
from rareneuron.maths.table_memory import engine_memory, neurons_that_fit
from rareneuron.measure.capture import HELD, TokenBatch, join_batches
from rareneuron.measure.engines.base import (
    Asked,
    EffectBlock,
    Engine,
    EngineKind,
    MeanActivations,
    Workload,
)
from rareneuron.measure.sums import as_array, statistics_of
from rareneuron.models.adapter import PATCHING, Adapter
from rareneuron.models.families import Family
from rareneuron.models.shape import ModelShape
from rareneuron.runs.records import Audit

TOKENS_AT_ONCE = 1_024  # handed to the engine, whose tables and blocks pay off on many
AUDIT_TOKENS, AUDIT_NEURONS = 32, 32
# The error that an audited pair may have, in nats and relative: six times the tolerance, and float32 on a large effect.
# A sound engine stays below the first by a factor of six; wrong weights or kernels and TF32 go far beyond.
AUDIT_LIMIT, AUDIT_RELATIVE = 6 * TOLERANCE, 1e-4
EVIDENCE = ("resid", "shift", "target", "found")


class ClosedForm(Engine):
    """Mean-ablates every neuron of a layer behind which there is a readout."""

    def __init__(
        self,
        readout: Readout,
        W_out: Float[Tensor, "neuron d_model"],
        n_tokens: int,
        *,
        memory: int,
        rng: np.random.Generator,
    ) -> None:
        self.audited = AuditedPairs(readout, W_out, n_tokens, rng)
        compiled = None if compiling_pays(n_tokens, len(W_out), len(readout.W_U)) else False
        self.engine = AblationEngine(readout, W_out, memory=memory, compiled=compiled)

    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        """Yield the effects; no further forward pass is needed."""
        for batch in join_batches(batches, TOKENS_AT_ONCE):
            shift = mean_shift(batch.act.double(), means.at(batch.rare))
            effects = self.engine.effects(batch.resid, shift, batch.target)
            self.audited.add(batch, shift, effects)
            yield EffectBlock(
                batch=batch,
                statistics=statistics_of(effects.delta_loss, effects.kl, effects.direct_delta_loss, shift),
                loss=effects.loss,
                full_share=effects.full_share,
            )

    def evidence(self) -> dict[str, np.ndarray]:
        """Return the audited pairs gathered since the last call."""
        return self.audited.hand_over()

    def absorb(self, evidence: Mapping[str, np.ndarray]) -> None:
        """Add audited pairs of some contexts."""
        self.audited.absorb(evidence)

    def judged(self) -> Audit:
        """Compute the audited pairs again in float64; return the errors, or refuse effects that differ."""
        return self.audited.judged()


class AuditedPairs:
    """A seeded sample of (token, neuron) pairs, gathered as they go by and computed again at the end."""

    def __init__(
        self, readout: Readout, W_out: Float[Tensor, "neuron d_model"], n_tokens: int, rng: np.random.Generator
    ) -> None:
        self.readout = readout
        self.neurons = torch.from_numpy(rng.permutation(len(W_out))[:AUDIT_NEURONS]).to(W_out.device)
        self.W_out = W_out[self.neurons]
        self.is_chosen = np.zeros(n_tokens, bool)
        self.is_chosen[rng.permutation(n_tokens)[:AUDIT_TOKENS]] = True
        self.gathered: list[tuple[Tensor, ...]] = []  # since the last call of `hand_over`
        self.absorbed: list[tuple[Tensor, ...]] = []

    def add(self, batch: TokenBatch, shift: Tensor, effects: AblationEffects) -> None:
        """Keep the pairs of a batch that belong to the sample."""
        rows = torch.from_numpy(np.flatnonzero(self.is_chosen[batch.index])).to(shift.device)
        found = as_statistics(effects)[:, rows][:, :, self.neurons].double()
        self.gathered.append((batch.resid[rows], shift[rows][:, self.neurons], batch.target[rows], found))

    def hand_over(self) -> dict[str, np.ndarray]:
        """Return and forget what was gathered since the last call, to be absorbed."""
        pairs = join_pairs(self.gathered)
        self.gathered = []
        return {f"audit.{name}": as_array(value) for name, value in zip(EVIDENCE, pairs, strict=True)}

    def absorb(self, evidence: Mapping[str, np.ndarray]) -> None:
        """Add the audited pairs of some contexts."""
        self.absorbed.append(
            tuple(torch.from_numpy(evidence[f"audit.{name}"]).to(self.W_out.device) for name in EVIDENCE)
        )

    def judged(self) -> Audit:
        """Return the errors; refuse effects that are farther from the truth than any sound computation gets."""
        resid, shift, target, found = join_pairs(self.absorbed)
        engine = AblationEngine(self.readout, self.W_out, precision="reference", memory=2**62)
        truth = as_statistics(engine.effects(resid, shift, target))
        error = (found - truth).abs()
        wrong = ~(error <= AUDIT_LIMIT + AUDIT_RELATIVE * truth.abs())
        if wrong.any():
            raise WrongEffects(
                f"{int(wrong.sum())} of {wrong.numel()} audited effects differ from their float64 values by more than "
                f"{AUDIT_LIMIT:.0e} nats, at most by {error.max():.1e}: this computation cannot be trusted. Usual "
                "causes are reduced-precision matrix products (TF32) and faulty devices. Try --device cpu."
            )
        return Audit(
            n_pairs=shift.numel(),
            max_error=error.max().item(),
            rms_error=error[0].square().mean().sqrt().item(),
            rms_delta_loss=truth[0].square().mean().sqrt().item(),
        )


def join_pairs(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join the inputs along their tokens, and the statistics along theirs."""
    resid, shift, target, found = zip(*parts, strict=True)
    return torch.cat(resid), torch.cat(shift), torch.cat(target), torch.cat(found, 1)


def as_statistics(effects: AblationEffects) -> Float[Tensor, "3 token neuron"]:
    """Stack total Δ, direct Δ and KL."""
    assert effects.direct_delta_loss is not None
    return torch.stack([effects.delta_loss, effects.direct_delta_loss, effects.kl])


def rules_out(family: Family) -> str | None:
    """Return why an architecture breaks Eq. 3-4 in closed form."""
    return family.patching_only


def refuse(asked: Asked) -> None:
    """Refuse earlier layers, families known to break Eq. 3-4, and tables that don't fit the memory."""
    after = asked.shape.n_layers - 1 - asked.layer
    if after:
        raise UnsupportedModel(
            f"After layer {asked.layer} come {after} more blocks, so the closed form doesn't hold there; it holds "
            f"for the last layer. {PATCHING}"
        )
    why = rules_out(asked.family)
    if why is not None:
        raise UnsupportedModel(
            f"{asked.family.model_type}: {why}, so the closed form of Eq. 3-4 doesn't hold. {PATCHING}"
        )
    shape = asked.shape
    neurons_that_fit(asked.memory, shape.vocab, shape.d_model, shape.d_mlp, share=1 - HELD)


def refuse_model(adapter: Adapter, layer: int) -> None:
    """Refuse a model whose probes show that no readout stands behind the layer."""
    adapter.readout(layer)


def operations(work: Workload) -> float:
    """Return the operations of the products over the vocabulary: four of width d_model, one of width n_neurons."""
    return 2.0 * work.n_tokens * work.vocab * (4 * work.d_model + work.n_neurons)


def most_pieces(work: Workload) -> int:
    """Return the number of pieces that have enough tokens each for the tables to pay off."""
    return work.n_tokens // TOKENS_AT_ONCE


def table_bytes(shape: ModelShape) -> int:
    """Return the bytes of the tables over the vocabulary, of the model and of every neuron."""
    fixed, per_neuron = engine_memory(shape.vocab, shape.d_model)
    return fixed + shape.d_mlp * per_neuron


def build(adapter: Adapter, selection: Selection, layer: int, memory: int, rng: np.random.Generator) -> ClosedForm:
    """Make the engine of a layer behind which there is a readout."""
    W_out = adapter.weights(layer).W_out
    return ClosedForm(adapter.readout(layer), W_out, len(selection.context), memory=memory, rng=rng)


CLOSED_FORM = EngineKind(
    name="closed-form",
    about="Exact for the last layer, from final norm and unembedding alone, and audited in float64 in every run.",
    rules_out=rules_out,
    refuse=refuse,
    refuse_model=refuse_model,
    operations=operations,
    most_pieces=most_pieces,
    table_bytes=table_bytes,
    build=build,
)
