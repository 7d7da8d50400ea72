"""Measures the effect of every neuron of one layer at one checkpoint, over all analysed tokens (Eq. 3-4).

An engine computes effects block by block (`measure.engines`). Here tokens stream through it in whole contexts, and
means, standard errors clustered by context, and per-context sums for the bootstrap are kept. Contexts come in pieces
whose sums are added in order, so the result doesn't depend on when and where each was computed (`Pieces`).
Oracle: tests/study/test_crash.py.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from rareneuron.errors import RareNeuronError
from rareneuron.measure.capture import Progress, TokenBatch, TokenSource, rows_of
from rareneuron.measure.engines.base import EffectBlock, Engine, EngineKind, Limits, MeanActivations, Verified
from rareneuron.measure.sums import EffectSums, Gathered, as_array, context_sums
from rareneuron.models.adapter import Adapter
from rareneuron.models.faults import overflow_remedy
from rareneuron.runs.files import digest
from rareneuron.runs.records import Audit
from rareneuron.runs.seeds import generator


@dataclass(frozen=True, kw_only=True)
class LayerEffects:
    """The effects of all neurons of one layer at one checkpoint; docs/run-folder.md describes `table`."""

    table: pd.DataFrame
    context_sums: dict[str, np.ndarray]
    token_loss: Float[np.ndarray, " token"]  # clean loss per row of the token table
    audit: Audit | None  # None: the engine is itself the standard
    timings: dict[str, float]  # seconds
    rates: dict[str, float]


@runtime_checkable
class Pieces(Protocol):
    """The pieces of a checkpoint's contexts, and a store for their sums (`measure.pieces`)."""

    @property
    def pieces(self) -> Sequence[range]:
        """The ranges of contexts, in order."""
        ...

    def batches(self, contexts: range) -> Iterable[TokenBatch]:
        """Return the captured tokens of a piece."""
        ...

    def read(self, contexts: range, given: str) -> Mapping[str, np.ndarray] | None:
        """Return a piece's sums if they were computed before from the same mean activations, else None."""
        ...

    def write(self, contexts: range, given: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store a piece's sums, if they are worth keeping."""
        ...


def mean_activations(source: TokenSource, reference: str, progress: Progress) -> MeanActivations:
    """Return mean activations over analysed tokens of each kind (`analysed`, the paper) or over all positions (`all`).

    Each kind has its own mean: at common targets, the mean over rare ones would change more than the neuron's signal.
    """
    assert source.whole or reference != "all", (
        "the mean over all positions needs contexts that were computed to their end"
    )
    zero = torch.zeros(source.adapter.n_neurons(source.layer), dtype=torch.float64, device=source.adapter.model.device)
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


def layer_effects(
    source: TokenSource,
    kind: EngineKind,
    pieces: Pieces,
    *,
    reference: str = "analysed",
    memory: int = 4 * 2**30,
    verify: float = 0.02,
    seed: int = 0,
    log_frequency: Float[np.ndarray, " vocab"] | None = None,
    capture_progress: Progress = lambda _: None,
    effects_progress: Progress = lambda _: None,
    observe: Callable[[EffectBlock], None] = lambda _: None,
) -> LayerEffects:
    """Mean-ablate every neuron of the source's layer, one at a time, at every analysed token (Eq. 3-4).

    `memory`: bytes that the engine's tables may take; `verify`: share of the cells that may be patched to verify
    estimates. With `log_frequency` effects are taken apart, where the engine can. `observe` is called with every block,
    of whole contexts.
    """
    adapter, selection, layer = source.adapter, source.selection, source.layer
    means = mean_activations(source, reference, capture_progress)
    captured_seconds, started = source.seconds, time.perf_counter()
    engine = kind.build(adapter, selection, layer, Limits(memory=memory, verify=verify), generator(seed, "audit"))
    if log_frequency is not None:
        engine.take_apart(torch.from_numpy(log_frequency).to(adapter.model.device))
    gathered, seconds = gather(source, engine, pieces, means, observe, effects_progress)
    seconds += time.perf_counter() - started
    refuse_overflow(gathered.loss, adapter.model.dtype)
    n_pairs = max(1, len(gathered.loss) * adapter.n_neurons(layer))
    started = time.perf_counter()
    audit, verified = engine.judged(), engine.verified()
    if verified is not None:
        put_in_place(gathered.sums, verified)
        seconds += time.perf_counter() - started
    return LayerEffects(
        table=effects_table(adapter, layer, gathered.sums, means).assign(
            **({} if verified is None else verified.columns)
        ),
        context_sums=context_sums(gathered.sums),
        token_loss=gathered.loss,
        audit=audit,
        timings={"capture": source.seconds, "effects": seconds},
        rates={
            "capture_tokens_per_second": source.n_positions / max(captured_seconds, 1e-9),
            "captured_share": source.n_positions / max(1, selection.windows.size),
            "milliseconds_per_token": 1e3 * (captured_seconds + seconds) / max(1, len(gathered.loss)),
            "full_sum_share": gathered.full_pairs / max(1, len(gathered.loss)),
            **({} if engine.compiled is None else {"compiled_sums": float(engine.compiled)}),
            "effects_microseconds_per_pair": 1e6 * seconds / n_pairs,
        },
    )


def put_in_place(sums: dict[bool, EffectSums], verified: Verified) -> None:
    """Let verified sums of every context take the place of estimated ones."""
    for kind, by_name in verified.sums.items():
        for name, values in by_name.items():
            sums[kind].replace(name, values, verified.n_tokens[kind], verified.contexts)


def gather(
    source: TokenSource,
    engine: Engine,
    pieces: Pieces,
    means: MeanActivations,
    observe: Callable[[EffectBlock], None],
    progress: Progress,
) -> tuple[Gathered, float]:
    """Return the sums over all pieces, and the seconds that it once took to compute those that were read back."""
    n_neurons = source.adapter.n_neurons(source.layer)
    n_contexts, n_tokens = len(source.selection.windows), len(source.selection.context)
    given = digest({name: as_array(mean) for name, mean in vars(means).items()})
    gathered, seconds = Gathered(n_neurons, n_contexts, range(n_contexts), n_tokens), 0.0
    for contexts in pieces.pieces:
        part, began = pieces.read(contexts, given), time.perf_counter()
        if part is None:
            piece = Gathered(n_neurons, n_contexts, contexts, n_tokens)
            for block in engine.blocks(pieces.batches(contexts), means):
                piece.add(block.batch, block.statistics, block.loss, block.full_share)
                observe(block)
                progress(len(block.batch.index))
            part = piece.arrays(rows_of(source.selection, contexts)) | engine.evidence()
            part["seconds"] = np.array([time.perf_counter() - began])
            pieces.write(contexts, given, part)
        else:
            progress(len(part["index"]))
            seconds += part["seconds"].item()
        gathered.absorb(part, contexts, means.rare.device)
        engine.absorb(part)
    return gathered, seconds


def refuse_overflow(loss: Float[np.ndarray, " token"], dtype: torch.dtype) -> None:
    """Refuse clean losses that are not finite numbers."""
    if not np.isfinite(loss).all():
        raise RareNeuronError(
            f"The clean loss is not a finite number at {int((~np.isfinite(loss)).sum())} analysed tokens, so "
            f"effects there mean nothing. {overflow_remedy(dtype)}"
        )


def effects_table(adapter: Adapter, layer: int, sums: dict[bool, EffectSums], means: MeanActivations) -> pd.DataFrame:
    """Return a table with one row per neuron, in neuron order; rank 1 is the largest mean |Δ|."""
    number = layer % adapter.n_layers
    rare = sums[True].columns()
    table = pd.DataFrame(
        {
            "neuron": [f"{number}.{i}" for i in range(adapter.n_neurons(layer))],
            "index": np.arange(adapter.n_neurons(layer)),
            **rare,
            **sums[False].columns("common_"),
            **sums[True].shares(),
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
