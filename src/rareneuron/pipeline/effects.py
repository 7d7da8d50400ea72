"""The effect of every neuron of one layer at one checkpoint, over all analysed tokens.

Two engines, one result: `by_closed_form` (last layer, `maths.ablation`) and `by_patching` (any layer, any
architecture: the model itself, slowly). Tokens stream through in whole contexts; kept are means, standard errors
clustered by context, and per-context sums for the bootstrap.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

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
from rareneuron.maths.significance import ClusteredMean, sums_by_context
from rareneuron.models.adapter import Adapter
from rareneuron.models.patching import log_probabilities, patched_loss_changes
from rareneuron.pipeline.capture import TokenBatch, capture, joined

STATISTICS = ("delta_loss", "abs_delta_loss", "direct_delta_loss", "direct_abs_delta_loss", "kl")
KEPT_PER_CONTEXT = ("delta_loss", "abs_delta_loss")
MOST_CONTEXT_SUMS = 4_096  # beyond this, neighbouring contexts share a row, and the bootstrap resamples rows
HELD = 0.25  # share of the memory that captured tokens may take; the engine has the rest
TOKENS_AT_ONCE = 1_024  # handed to the engine, whose tables and blocks pay off on many
AUDIT_TOKENS, AUDIT_NEURONS = 32, 32
# What an audited pair may err by, nats and relative: ten times the tolerance, and float32 on a large effect. A sound
# engine stays below the first by a factor of ten; wrong weights, kernels or reduced precision (TF32) go far beyond.
AUDIT_LIMIT, AUDIT_RELATIVE = 10 * TOLERANCE, 1e-4

Progress = Callable[[int], None]


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


@dataclass
class EffectSums:
    """Accumulates token blocks of whole contexts for one kind of target (rare or common)."""

    n_neurons: int
    n_contexts: int
    means: dict[str, ClusteredMean] = field(default_factory=dict)
    per_context: dict[str, np.ndarray] = field(default_factory=dict)
    tokens_per_row: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rows = min(self.n_contexts, MOST_CONTEXT_SUMS)
        self.tokens_per_row = np.zeros(self.rows, np.int64)
        self.per_context = {name: np.zeros((self.rows, self.n_neurons), np.float32) for name in KEPT_PER_CONTEXT}

    def add(self, values: dict[str, Tensor], context: Int[np.ndarray, " token"]) -> None:
        """Add the values [token, neuron] of some tokens; every context's tokens come in one call."""
        contexts, row = np.unique(context, return_inverse=True)
        sizes = np.bincount(row, minlength=len(contexts))
        kept_row = contexts.astype(np.int64) * self.rows // self.n_contexts
        np.add.at(self.tokens_per_row, kept_row, sizes)
        for name, value in values.items():
            sums = sums_by_context(value, torch.from_numpy(row).to(value.device), len(contexts))
            mean = self.means.setdefault(name, ClusteredMean(self.n_neurons, value.device))
            mean.add(sums, torch.from_numpy(sizes).to(value.device))
            if name in self.per_context:
                np.add.at(self.per_context[name], kept_row, sums.cpu().numpy().astype(np.float32))

    def columns(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Mean and standard error of every statistic, per neuron."""
        out = {}
        for name, mean in self.means.items():
            out[f"{prefix}{name}"] = mean.mean
            out[f"{prefix}{name}_se"] = mean.standard_error
        return out


class TokenSource:
    """The token batches of a checkpoint, twice: held where they fit in memory, captured again where not."""

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

    def second_pass(self) -> Iterable[TokenBatch]:
        """The same batches again."""
        return self._held if self.fits else capture(self.adapter, self.selection, self.layer)


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


def statistics_of(delta: Tensor, kl: Tensor, direct: Tensor | None) -> dict[str, Tensor]:
    """The reported statistics of a block of tokens; without a closed form there is no direct effect."""
    out = {"delta_loss": delta, "abs_delta_loss": delta.abs(), "kl": kl}
    if direct is not None:
        out |= {"direct_delta_loss": direct, "direct_abs_delta_loss": direct.abs()}
    return out


def layer_effects(
    adapter: Adapter,
    selection: Selection,
    *,
    engine: str = "closed-form",
    layer: int = -1,
    reference: str = "analysed",
    memory: int = 4 * 2**30,
    seed: int = 0,
    capture_progress: Progress = lambda _: None,
    effects_progress: Progress = lambda _: None,
) -> LayerEffects:
    """Mean-ablate every neuron of `layer`, one at a time, at every analysed token (Eq. 3-4)."""
    held = int(HELD * memory)
    source = TokenSource(adapter, selection, layer, held)
    means = mean_activations(source, reference, capture_progress)
    sums = {kind: EffectSums(adapter.d_mlp, len(selection.windows)) for kind in (True, False)}
    token_loss = np.full(len(selection.context), np.nan)
    start, captured_before = time.perf_counter(), source.seconds
    audited = None
    if engine == "closed-form":
        readout, W_out = adapter.readout(layer), adapter.weights(layer).W_out
        audited = AuditedPairs(readout, W_out, len(token_loss), np.random.default_rng([seed, 1]))
        blocks = by_closed_form(AblationEngine(readout, W_out, memory=memory - held), source, means, audited)
    else:
        blocks = by_patching(adapter, source, means, layer)
    full_pairs = 0.0
    for block in blocks:
        batch = block.batch
        for kind, kind_sums in sums.items():
            chosen = batch.rare == kind
            if chosen.any():
                on_device = torch.from_numpy(chosen).to(block.loss.device)
                kind_sums.add({k: v[on_device] for k, v in block.statistics.items()}, batch.context[chosen])
        token_loss[batch.index] = block.loss.double().cpu().numpy()
        full_pairs += (1.0 if block.full_share is None else block.full_share) * len(batch.index)
        effects_progress(len(batch.index))
    if not np.isfinite(token_loss).all():
        raise RareNeuronError(
            f"The clean loss is not a finite number at {int((~np.isfinite(token_loss)).sum())} analysed tokens, so "
            "effects there mean nothing. The usual cause is overflow in half precision: use --dtype float32."
        )
    seconds = time.perf_counter() - start
    return LayerEffects(
        table=effects_table(adapter, layer, sums, means),
        context_sums=context_sums(sums),
        token_loss=token_loss,
        audit=None if audited is None else audited.judged(),
        timings={"capture": source.seconds, "effects": seconds},
        rates={
            "capture_tokens_per_second": selection.windows.size / max(captured_before, 1e-9),
            "full_sum_share": full_pairs / max(1, len(token_loss)),
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
    engine: AblationEngine, source: TokenSource, means: MeanActivations, audited: AuditedPairs
) -> Iterator[EffectBlock]:
    """The last layer, exactly, without another forward pass."""
    for batch in joined(source.second_pass(), TOKENS_AT_ONCE):
        shift = mean_shift(batch.act.double(), means.at(batch.rare))
        effects = engine.effects(batch.resid, shift, batch.target)
        audited.add(batch, shift, effects)
        yield EffectBlock(
            batch=batch,
            statistics=statistics_of(effects.delta_loss, effects.kl, effects.direct_delta_loss),
            loss=effects.loss,
            full_share=effects.full_share,
        )


def by_patching(adapter: Adapter, source: TokenSource, means: MeanActivations, layer: int) -> Iterator[EffectBlock]:
    """Any layer and architecture: the rest of the network runs again for every neuron and kind of target.

    There is no direct effect here (no readout to freeze), and nothing to audit: this is what audits are made of.
    """
    selection = source.selection
    for batch in source.second_pass():
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
        yield EffectBlock(batch=batch, statistics=statistics_of(delta, kl, None), loss=loss)


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
    order = np.argsort(-table["abs_delta_loss"].to_numpy(), kind="stable")
    table["rank"] = np.argsort(order, kind="stable") + 1
    return table


def context_sums(sums: dict[bool, EffectSums]) -> dict[str, np.ndarray]:
    """Per-context sums and token counts of both kinds of target, for the bootstrap."""
    out: dict[str, np.ndarray] = {}
    for prefix, kind in (("", True), ("common_", False)):
        out |= {f"{prefix}{name}": value for name, value in sums[kind].per_context.items()}
        out[f"{prefix}n_tokens"] = sums[kind].tokens_per_row
    return out
