"""The effect of every neuron of one layer at one checkpoint, over all analysed tokens.

Two engines, one result: `by_closed_form` (last layer, `maths.ablation`) and `by_patching` (any layer, any
architecture: the model itself, slowly). Tokens stream through in whole contexts; kept are means, standard errors
clustered by context, and per-context sums for the bootstrap. Contexts come in shards whose sums are added in their
order, so it doesn't matter when, where and by whom each was computed (`Units`). Oracle: tests/study/test_crash.py.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import RareNeuronError, WrongEffects
from rareneuron.maths.ablation import TOLERANCE, AblationEffects, AblationEngine
from rareneuron.maths.interventions import mean_shift
from rareneuron.maths.readout import Readout
from rareneuron.measure.capture import Progress, TokenBatch, TokenSource, joined
from rareneuron.measure.sums import EffectSums, Gathered, as_array, context_sums
from rareneuron.models.adapter import Adapter
from rareneuron.models.patching import log_probabilities, patched_loss_changes
from rareneuron.runs.files import digest

TOKENS_AT_ONCE = 1_024  # handed to the engine, whose tables and blocks pay off on many
AUDIT_TOKENS, AUDIT_NEURONS = 32, 32
# What an audited pair may err by, nats and relative: six times the tolerance, and float32 on a large effect. A sound
# engine stays below the first by a factor of six; wrong weights, kernels or reduced precision (TF32) go far beyond.
AUDIT_LIMIT, AUDIT_RELATIVE = 6 * TOLERANCE, 1e-4


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A seeded sample of (token, neuron) pairs, computed again in float64: total and direct Δ and KL."""

    n_pairs: int
    max_error: float  # nats, over all three
    rms_error: float  # nats, of the total Δ
    rms_delta_loss: float  # of the same pairs, to see the error against


@dataclass(frozen=True, kw_only=True)
class LayerEffects:
    """All neurons of one layer at one checkpoint. Columns of `table` are described in docs/run-folder.md."""

    table: pd.DataFrame
    context_sums: dict[str, np.ndarray]
    token_loss: Float[np.ndarray, " token"]  # clean loss per row of the token table
    audit: Audit | None  # None: the patching engine, which is itself the standard
    timings: dict[str, float]  # seconds
    rates: dict[str, float]


@runtime_checkable
class Units(Protocol):
    """Shards of a checkpoint's contexts, and where their sums are kept once known (`measure.checkpoint`)."""

    shards: Sequence[range]

    def batches(self, contexts: range) -> Iterable[TokenBatch]:
        """Its captured tokens."""
        ...

    def read(self, contexts: range, given: str) -> Mapping[str, np.ndarray] | None:
        """Its sums, if they were computed before from the same mean activations."""
        ...

    def write(self, contexts: range, given: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep them."""
        ...


class OnePiece:
    """All contexts as one shard, of which nothing is kept."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source
        self.shards: Sequence[range] = (range(len(source.selection.windows)),)

    def batches(self, contexts: range) -> Iterable[TokenBatch]:
        """All tokens."""
        return self.source.again()

    def read(self, contexts: range, given: str) -> None:
        """Nothing."""

    def write(self, contexts: range, given: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class MeanActivations:
    """n̄ by which rare and common targets' activations are replaced, and mean |n| at rare ones."""

    rare: Float[Tensor, " neuron"]
    common: Float[Tensor, " neuron"]
    absolute: Float[Tensor, " neuron"]

    def at(self, rare: Bool[np.ndarray, " token"]) -> Float[Tensor, "token neuron"]:
        """n̄ of each token's kind."""
        kind = torch.from_numpy(rare).to(self.rare.device)[:, None]
        return torch.where(kind, self.rare, self.common)


def mean_activations(source: TokenSource, reference: str, progress: Progress) -> MeanActivations:
    """Over the analysed tokens of each kind (`analysed`, the paper), or over every position (`all`).

    Each kind has its own mean: common targets ablated to the mean at rare ones would differ by more than the neuron.
    """
    zero = torch.zeros(source.adapter.d_mlp, dtype=torch.float64, device=source.adapter.model.device)
    sums = {True: zero, False: zero.clone()}
    absolute, everywhere, n_everywhere, n = zero.clone(), zero.clone(), 0, {True: 0, False: 0}
    for batch in source.first_pass(progress):
        for kind in (True, False):
            act = batch.act[torch.from_numpy(batch.rare == kind).to(batch.act.device)].double()
            sums[kind] = sums[kind] + act.sum(0)
            n[kind] += len(act)
            if kind:
                absolute += act.abs().sum(0)
        everywhere, n_everywhere = everywhere + batch.all_act_sum, n_everywhere + batch.n_positions
    if reference == "all":
        rare = common = everywhere / n_everywhere
    else:
        rare, common = sums[True] / n[True], sums[False] / max(1, n[False])
    return MeanActivations(rare=rare, common=common, absolute=absolute / n[True])


def statistics_of(delta: Tensor, kl: Tensor, direct: Tensor | None, shift: Tensor) -> dict[str, Tensor]:
    """The reported statistics of a block of tokens; without a closed form there is no direct effect."""
    out = {"delta_loss": delta, "abs_delta_loss": delta.abs(), "kl": kl, "abs_shift": shift.abs()}
    if direct is not None:
        out |= {"direct_delta_loss": direct, "direct_abs_delta_loss": direct.abs()}
    return out


def layer_effects(
    source: TokenSource,
    *,
    engine: str = "closed-form",
    reference: str = "analysed",
    memory: int = 4 * 2**30,
    seed: int = 0,
    capture_progress: Progress = lambda _: None,
    effects_progress: Progress = lambda _: None,
    observe: Callable[["EffectBlock"], None] | None = None,
    units: Units | None = None,
) -> LayerEffects:
    """Mean-ablate every neuron of the source's layer, one at a time, at every analysed token (Eq. 3-4).

    `memory`: bytes that the engine's tables may take. `observe` is shown every block, of whole contexts, as it goes by.
    `units`: shards, and those that are known already; without, everything is computed in one piece.
    """
    adapter, selection, layer = source.adapter, source.selection, source.layer
    units = units or OnePiece(source)
    means = mean_activations(source, reference, capture_progress)
    given = digest({name: as_array(mean) for name, mean in vars(means).items()})
    n_tokens, n_contexts = len(selection.context), len(selection.windows)
    start, captured_before = time.perf_counter(), source.seconds
    audited, closed_form = None, None
    if engine == "closed-form":
        readout, W_out = adapter.readout(layer), adapter.weights(layer).W_out
        audited = AuditedPairs(readout, W_out, n_tokens, np.random.default_rng([seed, 1]))
        closed_form = AblationEngine(readout, W_out, memory=memory)

    def computed(contexts: range) -> Gathered:
        out = Gathered(adapter.d_mlp, n_contexts, contexts, n_tokens)
        batches = units.batches(contexts)
        for block in (
            by_patching(adapter, selection, batches, means, layer)
            if closed_form is None or audited is None
            else by_closed_form(closed_form, batches, means, audited)
        ):
            out.add(block.batch, block.statistics, block.loss, block.full_share)
            if observe is not None:
                observe(block)
            effects_progress(len(block.batch.index))
        return out

    if len(units.shards) == 1:
        gathered = computed(units.shards[0])
    else:
        gathered = Gathered(adapter.d_mlp, n_contexts, range(n_contexts), n_tokens)
        for contexts in units.shards:
            part, began = units.read(contexts, given), time.perf_counter()
            if part is None:
                index = np.flatnonzero((selection.context >= contexts.start) & (selection.context < contexts.stop))
                since = 0 if audited is None else len(audited.inputs)
                part = computed(contexts).arrays(index) | ({} if audited is None else audited.taken(since))
                part["seconds"] = np.array([time.perf_counter() - began])
                units.write(contexts, given, part)
            else:
                effects_progress(len(part["index"]))
                start -= part["seconds"].item()  # it took that long, if not now
            gathered.absorb(part, contexts, means.rare.device)
            if audited is not None:
                audited.absorb(part)
    token_loss = gathered.loss
    if not np.isfinite(token_loss).all():
        raise RareNeuronError(
            f"The clean loss is not a finite number at {int((~np.isfinite(token_loss)).sum())} analysed tokens, so "
            "effects there mean nothing. The usual cause is overflow in half precision: use --dtype float32."
        )
    seconds = time.perf_counter() - start
    return LayerEffects(
        table=effects_table(adapter, layer, gathered.sums, means),
        context_sums=context_sums(gathered.sums),
        token_loss=token_loss,
        audit=None if audited is None else audited.judged(),
        timings={"capture": source.seconds, "effects": seconds},
        rates={
            "capture_tokens_per_second": selection.windows.size / max(captured_before, 1e-9),
            "full_sum_share": gathered.full_pairs / max(1, len(token_loss)),
            "effects_microseconds_per_pair": 1e6 * seconds / max(1, len(token_loss) * adapter.d_mlp),
        },
    )


@dataclass(frozen=True, kw_only=True)
class EffectBlock:
    """One batch of tokens with everything an engine says about them."""

    batch: TokenBatch
    statistics: dict[str, Tensor]  # [token, neuron] each
    loss: Float[Tensor, " token"]  # clean
    full_share: float | None = None  # of pairs that no expansion served


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
        self.inputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.found: list[Tensor] = []

    def add(self, batch: TokenBatch, shift: Tensor, effects: AblationEffects) -> None:
        """Keep the pairs of a batch that belong to the sample."""
        rows = torch.from_numpy(np.flatnonzero(self.is_chosen[batch.index])).to(shift.device)
        self.inputs.append((batch.resid[rows], shift[rows][:, self.neurons], batch.target[rows]))
        self.found.append(as_statistics(effects)[:, rows][:, :, self.neurons].double())

    def taken(self, since: int) -> dict[str, np.ndarray]:
        """What was gathered since there were `since` batches, to be absorbed; it is no longer here."""
        resid, shift, target = (torch.cat(parts) for parts in zip(*self.inputs[since:], strict=True))
        kept = {"resid": resid, "shift": shift, "target": target, "found": torch.cat(self.found[since:], 1)}
        del self.inputs[since:], self.found[since:]
        return {f"audit.{name}": as_array(value) for name, value in kept.items()}

    def absorb(self, part: Mapping[str, np.ndarray]) -> None:
        """Add what was gathered of some contexts."""
        names = ("resid", "shift", "target", "found")
        resid, shift, target, found = (torch.from_numpy(part[f"audit.{n}"]).to(self.W_out.device) for n in names)
        self.inputs.append((resid, shift, target))
        self.found.append(found)

    def judged(self) -> Audit:
        """The errors; refuses effects that are farther from the truth than any sound computation's."""
        resid, shift, target = (torch.cat(parts) for parts in zip(*self.inputs, strict=True))
        engine = AblationEngine(self.readout, self.W_out, precision="reference", memory=2**62)
        truth = as_statistics(engine.effects(resid, shift, target))
        error = (torch.cat(self.found, 1) - truth).abs()
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


def as_statistics(effects: AblationEffects) -> Float[Tensor, "3 token neuron"]:
    """Total Δ, direct Δ and KL."""
    assert effects.direct_delta_loss is not None
    return torch.stack([effects.delta_loss, effects.direct_delta_loss, effects.kl])


def by_closed_form(
    engine: AblationEngine, batches: Iterable[TokenBatch], means: MeanActivations, audited: AuditedPairs
) -> Iterator[EffectBlock]:
    """The last layer, exactly, without another forward pass."""
    for batch in joined(batches, TOKENS_AT_ONCE):
        shift = mean_shift(batch.act.double(), means.at(batch.rare))
        effects = engine.effects(batch.resid, shift, batch.target)
        audited.add(batch, shift, effects)
        yield EffectBlock(
            batch=batch,
            statistics=statistics_of(effects.delta_loss, effects.kl, effects.direct_delta_loss, shift),
            loss=effects.loss,
            full_share=effects.full_share,
        )


def by_patching(
    adapter: Adapter, selection: Selection, batches: Iterable[TokenBatch], means: MeanActivations, layer: int
) -> Iterator[EffectBlock]:
    """Any layer and architecture: the rest of the network runs again for every neuron and kind of target.

    There is no direct effect here (no readout to freeze), and nothing to audit: this is what audits are made of.
    """
    for batch in batches:
        contexts, row = np.unique(batch.context, return_inverse=True)
        position = selection.position[batch.index]
        windows = selection.windows[contexts]
        delta, kl = torch.empty(2, len(row), adapter.d_mlp, dtype=torch.float64, device=batch.act.device)
        for mean, kind in ((means.rare, True), (means.common, False)):
            of_kind = np.flatnonzero(batch.rare == kind)
            tokens = (row[of_kind], position[of_kind])
            for effect in patched_loss_changes(adapter, windows, tokens, mean, layer) if len(of_kind) else ():
                delta[of_kind, effect.neuron], kl[of_kind, effect.neuron] = effect.delta_loss, effect.kl
        loss = clean_loss(adapter, windows, row, position, batch.target)
        yield EffectBlock(
            batch=batch, statistics=statistics_of(delta, kl, None, means.at(batch.rare) - batch.act.double()), loss=loss
        )


def clean_loss(
    adapter: Adapter,
    windows: Int[np.ndarray, "context position"],
    row: Int[np.ndarray, " token"],
    position: Int[np.ndarray, " token"],
    target: Int[Tensor, " token"],
) -> Float[Tensor, " token"]:
    """The model's own loss at some tokens, nats."""
    place = torch.from_numpy(row * windows.shape[1] + position).to(target.device)
    log_p = log_probabilities(adapter.anatomy, adapter.anatomy.token_ids(windows), place)
    return -log_p.gather(1, target[:, None])[:, 0]


def effects_table(adapter: Adapter, layer: int, sums: dict[bool, EffectSums], means: MeanActivations) -> pd.DataFrame:
    """One row a neuron, in neuron order; rank 1 is the largest mean |Δ|."""
    number = layer % adapter.n_layers
    rare = sums[True].columns()
    table = pd.DataFrame(
        {
            "neuron": [f"{number}.{i}" for i in range(adapter.d_mlp)],
            "index": np.arange(adapter.d_mlp),
            **rare,
            **sums[False].columns("common_"),
            "mean_act": means.rare.cpu().numpy(),
            "common_mean_act": means.common.cpu().numpy(),
            "mean_abs_act": means.absolute.cpu().numpy(),
            "W_out_norm": adapter.weights(layer).W_out.double().norm(dim=1).cpu().numpy(),
        }
    )
    table["move"] = table["abs_shift"] * table["W_out_norm"]
    order = np.argsort(-table["abs_delta_loss"].to_numpy(), kind="stable")
    table["rank"] = np.argsort(order, kind="stable") + 1
    return table
