"""Estimates effects of any layer by gradients, then verifies them by patching chosen cells (`maths.certificate`).

Every analysed token takes one forward and two backward passes, whatever the number of neurons. At the end cells of one
neuron in one context are patched exactly: in all contexts neurons that move the residual stream far and may be among
the largest, a random pilot, and what can decide who is among them. The table then holds verified effects with the
half-width of their interval, and sums per context in which patched cells count as they are.
Oracle: tests/measure/test_gradient_engine.py, the patching engine.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.errors import InvalidConfig, WrongEffects
from rareneuron.maths.certificate import Certificate, Estimated, cells_allowed, certify, in_doubt
from rareneuron.maths.first_order import SUMS, ContextTotals
from rareneuron.measure.capture import TokenBatch
from rareneuron.measure.cells import KINDS, UnitsOfSite, named, patched_sums, small_enough
from rareneuron.measure.engines.base import (
    Asked,
    EffectBlock,
    Engine,
    EngineKind,
    Limits,
    MeanActivations,
    Verified,
    Workload,
    refuse_reference,
)
from rareneuron.measure.gradient_check import gradient_check
from rareneuron.measure.sums import as_array, statistics_of
from rareneuron.models.adapter import Adapter
from rareneuron.models.families import Family
from rareneuron.models.gradient import TokenEstimates, estimates
from rareneuron.models.shape import ModelShape
from rareneuron.models.sites import head_of, site_of
from rareneuron.runs.records import Audit

N_DRAWS = 1  # random readouts of a token
PASSES = 2.0  # forward passes of its context that an analysed token costs


class Gradient(Engine):
    """Mean-ablates every neuron of one layer by gradients, and verifies what it says."""

    def __init__(
        self, adapter: Adapter, selection: Selection, layer: int, limits: Limits, rng: np.random.Generator
    ) -> None:
        self.verify, self.memory = limits.verify, limits.memory
        self.adapter, self.selection = adapter, selection
        self.anatomy = adapter.anatomy
        self.site, self.head = site_of(self.anatomy, layer), head_of(self.anatomy)
        self.key = int(rng.integers(2**31))  # of the signs
        self.rng = rng
        self.gathered: list[dict[str, np.ndarray]] = []
        self.absorbed: list[dict[str, np.ndarray]] = []
        self.certificate: Certificate | None = None

    def blocks(self, batches: Iterable[TokenBatch], means: MeanActivations) -> Iterator[EffectBlock]:
        """Yield estimates; they are verified when all contexts are known."""
        for batch in batches:
            shape = (len(batch.index), self.site.n_units)
            delta, kl = torch.zeros(2, *shape, dtype=torch.float64, device=batch.act.device)
            loss = torch.zeros(shape[0], dtype=torch.float64, device=batch.act.device)
            contexts, row = np.unique(batch.context, return_inverse=True)
            totals = {kind: ContextTotals(len(contexts), self.site.n_units) for kind in KINDS}
            for kind, mean in ((True, means.rare), (False, means.common)):
                of_kind = np.flatnonzero(batch.rare == kind)
                tokens = (batch.context[of_kind], self.selection.position[batch.index[of_kind]])
                for found in self.estimates(tokens, mean):
                    rows = of_kind[found.index]
                    totals[kind].add(found.of_site[0], row[rows])
                    delta[rows] = found.of_site[0].estimate.double()
                    kl[rows] = found.of_site[0].kl.double()
                    loss[rows] = found.loss
            self.keep(batch, contexts, totals, means)
            shift = means.at(batch.rare) - batch.act.double()
            yield EffectBlock(batch=batch, statistics=statistics_of(delta, kl, None, shift), loss=loss)

    def estimates(self, tokens: tuple[np.ndarray, np.ndarray], mean: Tensor) -> Iterator[TokenEstimates]:
        """Yield estimates at the tokens (context, position)."""
        return estimates(
            self.anatomy,
            self.head,
            [self.site],
            self.selection.windows,
            tokens,
            [mean],
            n_draws=N_DRAWS,
            key=self.key,
        )

    def keep(
        self,
        batch: TokenBatch,
        contexts: Int[np.ndarray, " context"],
        totals: Mapping[bool, ContextTotals],
        means: MeanActivations,
    ) -> None:
        """Keep what verification needs of a batch."""
        kept = {"contexts": contexts, "norms": as_array(batch.resid.double().norm(dim=1))}
        kept |= {"rare_mean": as_array(means.rare), "common_mean": as_array(means.common)}
        kept["move"] = np.maximum(totals[True].move, totals[False].move)  # [context, unit]
        for kind, total in totals.items():
            kept[f"{named(kind)}_tokens"] = total.n_tokens
            kept |= {f"{named(kind)}_{name}": values for name, values in total.values.items()}
        self.gathered.append(kept)

    def evidence(self) -> dict[str, np.ndarray]:
        """Return the sums over the tokens of each context gathered since the last call."""
        joined = joined_evidence(self.gathered)
        self.gathered = []
        return {f"audit.{name}": values for name, values in joined.items()}

    def absorb(self, evidence: Mapping[str, np.ndarray]) -> None:
        """Add the sums of some contexts."""
        self.absorbed.append({k.removeprefix("audit."): v for k, v in evidence.items() if k.startswith("audit.")})

    def judged(self) -> Audit:
        """Patch the chosen cells; return how far the estimates were off there, or refuse estimates that say nothing."""
        known = joined_evidence(self.absorbed)
        kinds = [estimated(known, kind) for kind in KINDS if known[f"{named(kind)}_tokens"].any()]
        flagged = in_doubt(known["rare_absolute"], known["move"], np.median(known["norms"]))
        cells = Cells(self, known, len(kinds))
        n_cells = cells_allowed(self.verify, flagged.size * len(known["contexts"]))
        enough = small_enough(known["rare_absolute"], known["rare_tokens"])
        self.certificate = certify(kinds, cells.patch, self.rng, n_cells=n_cells, flagged=flagged, enough=enough)
        audit = audit_of(self.certificate, known["rare_tokens"])
        return replace(audit, check=gradient_check(self.adapter, self.selection, self.rng, self.memory))

    def verified(self) -> Verified | None:
        """Return the verified sums of each context, and the half-widths of means."""
        if self.certificate is None:
            return None
        found, known = self.certificate, joined_evidence(self.absorbed)
        by_kind, columns = {}, {}
        for i in range(len(found.by_context) // 2):
            by_kind[KINDS[i]] = {"abs_delta_loss": found.by_context[2 * i], "delta_loss": found.by_context[2 * i + 1]}
            prefix = "" if KINDS[i] else "common_"
            columns[f"{prefix}abs_delta_loss_half_width"] = found.half_width[2 * i]
            columns[f"{prefix}delta_loss_half_width"] = found.half_width[2 * i + 1]
        undecided = np.zeros(self.site.n_units, bool)
        undecided[found.undecided] = True
        columns["certainty"] = np.where(found.exact, "exact", "verified")
        return Verified(
            contexts=known["contexts"],
            n_tokens={kind: known[f"{named(kind)}_tokens"] for kind in by_kind},
            sums=by_kind,
            columns=columns | {"undecided": undecided},
        )


class Cells:
    """Patches cells: the sums of |Δ| and Δ over a context's tokens of each kind, with one unit replaced."""

    def __init__(self, engine: Gradient, known: Mapping[str, np.ndarray], n_kinds: int) -> None:
        self.engine, self.contexts, self.n_kinds = engine, known["contexts"], n_kinds
        self.means = {kind: torch.from_numpy(known[f"{named(kind)}_mean"]) for kind in KINDS}

    def patch(
        self, units: Int[np.ndarray, " cell"], contexts: Int[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "outcome cell"]:
        """Return the exact sums of some cells; contexts are rows of what is known."""
        engine, kinds = self.engine, KINDS[: self.n_kinds]
        out = np.zeros((2 * self.n_kinds, len(units)))
        for row in np.unique(contexts):
            cells = np.flatnonzero(contexts == row)
            context = int(self.contexts[row])
            replaced = [UnitsOfSite(engine.site, self.means, units[cells])]
            given = engine.anatomy, engine.head, engine.selection, context
            [out[:, cells]] = patched_sums(*given, replaced, kinds)
        return out


def estimated(known: Mapping[str, np.ndarray], kind: bool) -> Estimated:
    """Return the estimates of one kind of token."""
    sums = {name: known[f"{named(kind)}_{name}"] for name in SUMS} | {"move": known["move"]}
    return Estimated(sums=sums, n_tokens=int(known[f"{named(kind)}_tokens"].sum()))


def joined_evidence(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the contexts of several parts; means are the same in all."""
    parts = list(parts)
    out = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        out[name] = values[0] if name.endswith("_mean") else np.concatenate(values)
    return out


def audit_of(found: Certificate, n_tokens: Int[np.ndarray, " context"]) -> Audit:
    """Return the errors of the estimated mean Δ of patched cells; refuse estimates with errors as large as effects."""
    cells = found.known & (n_tokens > 0)[:, None]
    per_token = np.maximum(n_tokens, 1)[:, None]
    error, exact = (np.where(cells, of[1] / per_token, 0.0)[cells] for of in (found.residual, found.by_context))
    rms, size = (float(np.sqrt(np.square(values).mean())) for values in (error, exact))
    if not rms <= size:
        raise WrongEffects(
            f"Estimates by gradient are off by {rms:.1e} nats (root mean square over {len(error):,} patched cells), "
            f"and effects there are {size:.1e}: they say nothing about this layer. Use `--engine patching`."
        )
    return Audit(
        n_pairs=int((cells * n_tokens[:, None]).sum()),
        max_error=float(np.abs(error).max()),
        rms_error=rms,
        rms_delta_loss=size,
    )


def rules_out(family: Family) -> None:
    """Serve every architecture."""


def refuse(asked: Asked) -> None:
    """Refuse a mean that can't stand at every position, and estimates that nothing verifies."""
    refuse_reference(asked)
    if not asked.verify:
        raise InvalidConfig(
            f"Without verification, effects of layer {asked.layer} would be a screen, and groups, phases and claims "
            "would rest on it. Allow some patching (`--verify 0.02`), or screen all layers beside the last one's study "
            "(`--layers all --verify 0`)."
        )


def refuse_model(adapter: Adapter, layer: int) -> None:
    """Refuse a model whose logits aren't those of its unembedding."""
    head_of(adapter.anatomy)


def operations(work: Workload) -> float:
    """Return the operations of the passes of every analysed token, and of replays of the cells that are verified."""
    of_context = work.forward / max(1, work.n_contexts)
    return PASSES * of_context * work.n_tokens + work.verify * work.forward * work.n_neurons


def most_pieces(work: Workload) -> int:
    """Return one piece for each context."""
    return work.n_contexts


def table_bytes(shape: ModelShape) -> int:
    """Return 0: nothing is held beyond a batch of tokens."""
    return 0


def build(adapter: Adapter, selection: Selection, layer: int, limits: Limits, rng: np.random.Generator) -> Gradient:
    """Make the engine of a layer."""
    return Gradient(adapter, selection, layer, limits, rng)


GRADIENT = EngineKind(
    name="gradient",
    about="Gradients estimate every neuron of any layer at once; exact patching of some verifies them, with intervals.",
    rules_out=rules_out,
    refuse=refuse,
    refuse_model=refuse_model,
    operations=operations,
    most_pieces=most_pieces,
    table_bytes=table_bytes,
    build=build,
)
