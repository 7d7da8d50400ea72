"""Computes every neuron's effect in closed form, from the readout alone, and audits it in float64 (`maths.ablation`).

It is exact where the MLP's output joins the residual stream as it is or through a norm that the readout knows, and the
stream then passes only through final norm, unembedding and soft cap; the probes check that at every load. At the end,
the effects of a seeded sample of (token, neuron) pairs are computed again in float64; effects that this audit doesn't
confirm are refused. Oracle: tests/models/test_contract.py, patching.
"""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import UnsupportedModel, WrongEffects
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.behind_norm import block_copies
from rareneuron.maths.fused import compiling_pays
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.mechanism import exact_parts
from rareneuron.maths.pair_effects import TOLERANCE, AblationEffects
from rareneuron.maths.readout import Readout
from rareneuron.maths.table_memory import BLOCK_COPIES, engine_memory, neurons_that_fit
from rareneuron.measure.capture import HELD, TokenBatch, join_batches
from rareneuron.measure.engines.base import (
    Asked,
    EffectBlock,
    Engine,
    EngineKind,
    Limits,
    MeanActivations,
    Workload,
)
from rareneuron.measure.sums import as_array, statistics_of
from rareneuron.models.adapter import Adapter
from rareneuron.models.families import Family
from rareneuron.models.shape import ModelShape
from rareneuron.runs.records import Audit

# Operations of a product that take as long as a pair's bounds, and as full sums and higher orders for an entry of the
# vocabulary: between light effects (a third of it) and heavy ones (three times it), benchmarks/estimates.py.
PAIR_OPERATIONS = 80_000
ENTRY_OPERATIONS = {True: 4, False: 10}  # where sums may be compiled, and where a study is too small for that
TOKENS_AT_ONCE = 1_024  # handed to the engine, whose tables and blocks pay off on many
AUDIT_TOKENS, AUDIT_NEURONS = 32, 32
# The error that an audited pair may have, in nats and relative: six times the tolerance, and float32 on a large effect.
# A sound engine stays below the first by a factor of six; wrong weights or kernels and TF32 go far beyond.
AUDIT_LIMIT, AUDIT_RELATIVE = 6 * TOLERANCE, 1e-4
AUDIT_PARTS_TOKENS = 8  # at which effects are taken apart again, over the whole vocabulary
N_STATISTICS, N_PARTS = 3, 3  # audited: Δ, direct Δ, KL; and Δ without frequency, without its tilt, without both
EVIDENCE = ("resid", "shift", "target", "mlp_out", "found")


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
        self.engine = ablation_engine(readout, W_out, memory=memory, compiled=compiled)
        self.compiled = self.engine.compiled
        self.readout, self.W_out = readout, W_out

    def take_apart(self, log_frequency: Float[Tensor, " vocab"]) -> bool:
        """Take effects apart by mechanism in all later blocks, and audit that too."""
        self.engine.take_apart(log_frequency)
        self.audited.log_frequency = log_frequency
        return True

    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        """Yield the effects; no further forward pass is needed."""
        for batch in join_batches(batches, TOKENS_AT_ONCE):
            shift = mean_shift(batch.act.double(), means.at(batch.rare))
            mlp_out = self.readout.mlp_output(batch.act, self.W_out)
            effects = self.engine.effects(batch.resid, shift, batch.target, mlp_out=mlp_out)
            self.audited.add(batch, shift, mlp_out, effects)
            yield EffectBlock(
                batch=batch,
                statistics=statistics_of(
                    effects.delta_loss, effects.kl, effects.direct_delta_loss, shift, effects.parts
                ),
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
        del self.engine  # no block comes after this, and float64 needs its memory
        return self.audited.judged()


class AuditedPairs:
    """A seeded sample of (token, neuron) pairs, gathered as they go by and computed again at the end."""

    def __init__(
        self, readout: Readout, W_out: Float[Tensor, "neuron d_model"], n_tokens: int, rng: np.random.Generator
    ) -> None:
        self.readout = readout
        self.neurons = torch.from_numpy(rng.permutation(len(W_out))[:AUDIT_NEURONS]).to(W_out.device)
        self.W_out = W_out[self.neurons]
        self.log_frequency: Tensor | None = None  # of types, where effects are taken apart
        self.is_chosen = np.zeros(n_tokens, bool)
        self.is_chosen[rng.permutation(n_tokens)[:AUDIT_TOKENS]] = True
        self.gathered: list[tuple[Tensor, ...]] = []  # since the last call of `hand_over`
        self.absorbed: list[tuple[Tensor, ...]] = []

    def add(self, batch: TokenBatch, shift: Tensor, mlp_out: Tensor | None, effects: AblationEffects) -> None:
        """Keep the pairs of a batch that belong to the sample."""
        rows = torch.from_numpy(np.flatnonzero(self.is_chosen[batch.index])).to(shift.device)
        found = as_statistics(effects)[:, rows][:, :, self.neurons].double()
        m = shift.new_empty(len(rows), 0) if mlp_out is None else mlp_out[rows]  # no columns where it isn't needed
        self.gathered.append((batch.resid[rows], shift[rows][:, self.neurons], batch.target[rows], m, found))

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
        resid, shift, target, m, found = join_pairs(self.absorbed)
        truth = self.truth(resid, shift, target, m if m.shape[1] else None)
        error = (found[: len(truth)] - truth).abs()
        wrong = ~(error <= AUDIT_LIMIT + AUDIT_RELATIVE * truth.abs())
        if wrong.any():
            raise WrongEffects(
                f"{int(wrong.sum())} of {wrong.numel()} audited effects differ from their float64 values by more than "
                f"{AUDIT_LIMIT:.0e} nats, at most by {error.max():.1e}: this computation cannot be trusted. Usual "
                "causes are reduced-precision matrix products (TF32) and faulty devices. Try --device cpu."
            )
        return Audit(
            parts_error=self.parts_error(resid, shift, target, m, found),
            n_pairs=shift.numel(),
            max_error=error.max().item(),
            rms_error=error[0].square().mean().sqrt().item(),
            rms_delta_loss=truth[0].square().mean().sqrt().item(),
        )

    def truth(self, resid: Tensor, shift: Tensor, target: Tensor, mlp_out: Tensor | None) -> Tensor:
        """Return the audited statistics in float64; the tables that it takes are gone with it."""
        engine = ablation_engine(self.readout, self.W_out, precision="reference", memory=2**62)
        return as_statistics(engine.effects(resid, shift, target, mlp_out=mlp_out))

    def parts_error(self, resid: Tensor, shift: Tensor, target: Tensor, m: Tensor, found: Tensor) -> float | None:
        """Return how far effects without their mechanisms are from their values in float64: root mean square, nats."""
        parts = found[N_STATISTICS:]
        if self.log_frequency is None or not len(parts):
            return None
        some = slice(0, AUDIT_PARTS_TOKENS)
        mlp_out = m[some] if m.shape[1] else None
        given = resid[some], shift[some], target[some], self.W_out, self.log_frequency
        truth = exact_parts(self.readout, *given, mlp_out=mlp_out)
        errors = [part[some] - true for part, true in zip(parts, truth[: len(parts)], strict=True)]
        return torch.stack(errors).square().mean().sqrt().item()


def join_pairs(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Join the inputs along their tokens, and the statistics along theirs."""
    *given, found = zip(*parts, strict=True)
    return *(torch.cat(x) for x in given), torch.cat(found, 1)


def as_statistics(effects: AblationEffects) -> Float[Tensor, "statistic token neuron"]:
    """Stack total Δ, direct Δ and KL, and what is left without a mechanism where effects were taken apart."""
    assert effects.direct_delta_loss is not None
    parts = () if effects.parts is None else effects.parts[:N_PARTS]
    return torch.stack([effects.delta_loss, effects.direct_delta_loss, effects.kl, *parts])


def rules_out(family: Family) -> str | None:
    """Serve every architecture that is listed; the probes decide about a model."""


def refuse(asked: Asked) -> None:
    """Refuse earlier layers, and tables that don't fit the memory."""
    after = asked.shape.n_layers - 1 - asked.layer
    if after:
        raise UnsupportedModel(
            f"After layer {asked.layer} come {after} more blocks, so the closed form doesn't hold there; it holds "
            "for the last layer. Leave `--engine` out, and effects there are estimated with intervals; `--engine "
            "patching` computes each of them, slowly."
        )
    shape = asked.shape
    copies = copies_of_a_block(shape)
    neurons_that_fit(asked.memory, shape.vocab, shape.d_model, shape.d_mlp, share=1 - HELD, block_copies=copies)


def refuse_model(adapter: Adapter, layer: int) -> None:
    """Refuse a model whose probes show that no readout stands behind the layer."""
    adapter.readout(layer)


def operations(work: Workload) -> float:
    """Return the operations of the products over the vocabulary, with what else takes as long as operations.

    The products are one of width d_model for every direction that a token has, one for every sum over the vocabulary
    with A, one of width n_neurons for every weight, and once the table of every neuron's logits. Behind a norm there is
    one direction more, and behind a cap a second weight.
    """
    directions, weights = 2 if work.output_norm else 1, 2 if work.capped else 1
    narrow = directions + 1 + weights * directions
    per_token = narrow * work.d_model + weights * work.n_neurons
    products = 2.0 * work.vocab * (work.d_model * work.n_neurons + work.n_tokens * per_token)
    an_entry = ENTRY_OPERATIONS[compiling_pays(work.n_tokens, work.n_neurons, work.vocab)]
    return products + work.n_tokens * work.n_neurons * (PAIR_OPERATIONS + an_entry * work.vocab)


def most_pieces(work: Workload) -> int:
    """Return the number of pieces that have enough tokens each for the tables to pay off."""
    return work.n_tokens // TOKENS_AT_ONCE


def table_bytes(shape: ModelShape) -> int:
    """Return the bytes of the tables over the vocabulary, of the model and of every neuron."""
    fixed, per_neuron = engine_memory(shape.vocab, shape.d_model, block_copies=copies_of_a_block(shape))
    return fixed + shape.d_mlp * per_neuron


def copies_of_a_block(shape: ModelShape) -> int:
    """Return how many arrays [token, vocab] the engine of a model holds."""
    return BLOCK_COPIES if shape.is_plain else block_copies(output_norm=shape.output_norm, capped=shape.capped)


def build(adapter: Adapter, selection: Selection, layer: int, limits: Limits, rng: np.random.Generator) -> ClosedForm:
    """Make the engine of a layer behind which there is a readout."""
    W_out = adapter.weights(layer).W_out
    return ClosedForm(adapter.readout(layer), W_out, len(selection.context), memory=limits.memory, rng=rng)


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
