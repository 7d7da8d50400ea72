"""Measures the units of several layers at one checkpoint: estimates by gradient, then patching that verifies them.

Neurons and heads of all layers come from the same backward passes. Units are replaced by their mean over all positions.
Neurons of the last layer are exact where a readout stands behind it; heads of the last layer are patched in every
context, and so are units that move the residual stream far and may be among the largest. Of the others, patching takes
what the budget allows, and ends as soon as nothing at the border of the largest is undecided that contexts wouldn't
leave open anyway. Contexts come in pieces, which are kept as those of `measure.pieces` are.
Oracle: tests/measure/test_layers.py, the patching engine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from rareneuron.data.selection import Selection
from rareneuron.errors import InvalidConfig, Unavailable
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.certificate import FAR, Certificate, Estimated, certify, in_doubt
from rareneuron.maths.clustered import ClusteredMean, sums_by_context
from rareneuron.maths.first_order import SUMS, ContextTotals
from rareneuron.measure.capture import Progress, capture, rows_of
from rareneuron.measure.cells import KINDS, named, patched_sums, small_enough
from rareneuron.measure.gradient_check import gradient_check
from rareneuron.measure.pieces import PieceStore
from rareneuron.models.adapter import Adapter
from rareneuron.models.anatomy import layer_index
from rareneuron.models.gradient import ROW_POSITIONS, SiteMeans, estimates, site_means
from rareneuron.models.sites import Site, UnitKind, head_of, site_of
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layers import Layers
from rareneuron.runs.records import LayersRecord
from rareneuron.runs.seeds import generator

SINK = 0.02  # of it: a difference between the means with and without a context's first positions that is shown
RANK = {"neurons": 50, "heads": 10}  # patching decides who is among so many
SPACE = 0.5  # share of the memory that sums of all contexts may take
KEPT = ("abs_delta_loss", "delta_loss", "kl", "moved")  # per context and unit, of each kind of target


KINDS_OF: dict[str, tuple[UnitKind, ...]] = {"neurons": ("neurons",), "heads": ("heads",), "both": ("neurons", "heads")}


def layers_asked(config: StudyConfig, n_layers: int) -> list[int]:
    """Return the layers that `--layers` names, from 0 and in order; none where it isn't given."""
    if config.layers is None or isinstance(config.layers, str):
        return list(range(n_layers)) if config.layers else []
    return sorted({layer_index(layer, n_layers) for layer in config.layers})


def wanted_sites(adapter: Adapter, config: StudyConfig) -> list[Site]:
    """Return the sites that the settings ask for, neurons of all layers first; refuse those the model hasn't."""
    layers = layers_asked(config, adapter.n_layers)
    return [site_of(adapter.anatomy, layer, kind) for kind in KINDS_OF[config.units] for layer in layers]


@dataclass(frozen=True)
class LayersWork:
    """The inputs of the stage: a model, tokens, sites, and what may be spent."""

    adapter: Adapter
    selection: Selection
    sites: Sequence[Site]
    memory: int  # bytes
    verify: float
    seed: int
    store: PieceStore
    pieces: Sequence[range]

    def __post_init__(self) -> None:
        needed = 4 * (2 * len(SUMS) + 3) * len(self.selection.windows) * sum(site.n_units for site in self.sites)
        if needed > SPACE * self.memory:
            raise InvalidConfig(
                f"Sums over {len(self.selection.windows):,} contexts for {sum(s.n_units for s in self.sites):,} units "
                f"take {needed / 2**30:.1f} GiB, and {SPACE * self.memory / 2**30:.1f} GiB of --memory are for them. "
                "Use fewer tokens or layers, or a larger --memory."
            )

    @cached_property
    def means(self) -> tuple[SiteMeans, ...]:
        """The mean of every site over all positions, and what else a clean pass tells."""
        return site_means(self.adapter.anatomy, self.sites, self.selection.windows)

    @cached_property
    def key(self) -> int:
        """What draws the signs of random readouts."""
        return int(generator(self.seed, "layers", "signs").integers(2**31))

    @property
    def row_positions(self) -> int:
        """How many positions a batch of rows may have, with the graph of its forward pass in the memory."""
        anatomy = self.adapter.anatomy
        columns = sum(site.W_out.shape[0] for site in self.sites if site.kind == "neurons")
        graph = 4 * (24 * len(anatomy.blocks) * anatomy.d_model + 8 * columns)
        return int(min(ROW_POSITIONS, max(self.selection.windows.shape[1], SPACE * self.memory / graph)))

    @cached_property
    def offsets(self) -> np.ndarray:
        """The first unit of every site, and the number of all."""
        return np.cumsum([0, *(site.n_units for site in self.sites)])


def measure_layers(work: LayersWork, *, estimating: Progress, verifying: Progress) -> Layers:
    """Estimate, verify, and put into a table. Progress is told tokens, then cells."""
    check = gradient_check(work.adapter, work.selection, generator(work.seed, "layers", "check"), work.memory)
    known = estimated_sums(work, estimating)
    exact = exact_sums(work)
    parts = [Verified.of(work, kind, known, exact, verifying) for kind in dict.fromkeys(s.kind for s in work.sites)]
    table = pd.concat([part.table() for part in parts], ignore_index=True)
    sums: dict[str, np.ndarray] = {}
    for part in parts:
        sums |= part.layer_sums()
    return Layers(
        table=table,
        sums=sums,
        record=LayersRecord(
            layers=tuple(sorted({site.layer for site in work.sites})),
            n_cells=sum(part.n_cells for part in parts),
            n_patched=sum(part.n_patched for part in parts),
            n_flagged=sum(int(part.flagged.sum()) for part in parts),
            rank=RANK["neurons"],
            undecided=tuple(name for part in parts if part.kind == "neurons" for name in part.undecided_names),
            check=check,
        ),
    )


def estimated_sums(work: LayersWork, progress: Progress) -> dict[str, np.ndarray]:
    """Return sums over each context's tokens of what gradients say, for all units of all sites side by side."""
    parts = []
    for contexts in work.pieces:
        path = work.store.path("layers", contexts)
        part = work.store.read(path) if len(work.pieces) > 1 else None
        if part is None:
            part = estimated_piece(work, contexts, progress)
            if len(work.pieces) > 1:
                work.store.write(path, part)
        else:
            progress(len(rows_of(work.selection, contexts)))
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimated_piece(work: LayersWork, contexts: range, progress: Progress) -> dict[str, np.ndarray]:
    """Return the sums of some contexts, in float32."""
    selection, anatomy = work.selection, work.adapter.anatomy
    rows = rows_of(selection, contexts)
    means = [found.mean for found in work.means]
    out: dict[str, np.ndarray] = {}
    moves = []
    for kind in KINDS:
        of_kind = rows[selection.rare[rows] == kind]
        totals = [ContextTotals(len(contexts), site.n_units) for site in work.sites]
        tokens = selection.context[of_kind], selection.position[of_kind]
        for found in estimates(
            anatomy,
            head_of(anatomy),
            work.sites,
            selection.windows,
            tokens,
            means,
            key=work.key,
            row_positions=work.row_positions,
        ):
            row = tokens[0][found.index] - contexts.start
            for total, of_site in zip(totals, found.of_site, strict=True):
                total.add(of_site, row)
            progress(len(found.index))
        prefix = named(kind)
        out[f"{prefix}_tokens"] = totals[0].n_tokens
        out |= {f"{prefix}_{name}": joined([total.values[name] for total in totals]) for name in SUMS}
        out[f"{prefix}_moved"] = joined([total.moved for total in totals])
        moves.append(joined([total.move for total in totals]))
    return out | {"move": np.maximum(*moves)}


def joined(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sums of all sites side by side, [context, unit]."""
    return np.concatenate(values, 1).astype(np.float32)


def exact_sums(work: LayersWork, later: bool = False) -> dict[str, np.ndarray]:
    """Return sums for the last layer's neurons in closed form; nothing where they aren't asked for or have none.

    `later` takes means without a context's first two positions.
    """
    adapter, last = work.adapter, work.adapter.n_layers - 1
    found = [i for i, site in enumerate(work.sites) if site.layer == last and site.kind == "neurons"]
    readout = adapter.readout_behind(-1)
    if not found or isinstance(readout, Unavailable):
        return {}
    site, mean = work.sites[found[0]], work.means[found[0]].mean_later if later else work.means[found[0]].mean
    engine = ablation_engine(readout, site.W_out, memory=int(SPACE * work.memory))
    shape = (len(work.selection.windows), site.n_units)
    out = {f"{named(kind)}_{name}": np.zeros(shape) for kind in KINDS for name in KEPT}
    norms = site.W_out.double().norm(dim=1)
    for batch in capture(adapter, work.selection, last):
        shift = mean - batch.act.double()
        effects = engine.effects(batch.resid, shift, batch.target, mlp_out=readout.mlp_output(batch.act, site.W_out))
        values = (effects.delta_loss.abs(), effects.delta_loss, effects.kl, shift.abs() * norms)
        for kind in KINDS:
            of_kind = np.flatnonzero(batch.rare == kind)
            on_device = torch.from_numpy(of_kind).to(shift.device)
            row = torch.from_numpy(batch.context[of_kind]).to(shift.device)
            for name, value in zip(KEPT, values, strict=True):
                out[f"{named(kind)}_{name}"] += sums_by_context(value[on_device], row, shape[0]).cpu().numpy()
    return out


@dataclass(frozen=True)
class Verified:
    """The units of one kind in all layers: sums per context, as exact as they are known, and how sure they are."""

    work: LayersWork
    kind: UnitKind
    sites: Sequence[Site]
    means: Sequence[SiteMeans]
    known: Mapping[str, np.ndarray]  # what gradients say, [context, unit]
    in_closed_form: Bool[np.ndarray, " unit"]
    flagged: Bool[np.ndarray, " unit"]
    certificate: Certificate | None  # None: nothing is verified
    closed: Mapping[str, np.ndarray]  # sums of the units in closed form
    later: Mapping[str, np.ndarray]  # mean |Δ| and Δ of flagged units with the other mean

    @classmethod
    def of(
        cls,
        work: LayersWork,
        kind: UnitKind,
        known: Mapping[str, np.ndarray],
        exact: Mapping[str, np.ndarray],
        progress: Progress,
    ) -> "Verified":
        """Verify the units of one kind."""
        chosen = [i for i, site in enumerate(work.sites) if site.kind == kind]
        columns = slice(work.offsets[chosen[0]], work.offsets[chosen[-1] + 1])
        part = {name: value if name.endswith("_tokens") else value[..., columns] for name, value in known.items()}
        sites, means = [work.sites[i] for i in chosen], [work.means[i] for i in chosen]
        layer, norm = at_units(sites, [s.layer for s in sites]), at_units(sites, [m.median_norm for m in means])
        last = layer == work.adapter.n_layers - 1
        in_closed_form = last if kind == "neurons" and exact else np.zeros(len(layer), bool)
        flagged = (part["move"].max(0) > FAR * norm) & ~in_closed_form
        patching = Patching(work, sites, [m.mean for m in means], exact if in_closed_form.any() else {}, progress)
        certificate, later = None, {}
        if work.verify:
            doubtful = in_doubt(part["rare_absolute"], part["move"], norm, RANK[kind])
            whole = doubtful | in_closed_form | (last if kind == "heads" else False)
            certificate = verified(work, kind, part, layer, whole, patching)
            later = other_reference(work, sites, means, doubtful & ~in_closed_form, progress)
        return cls(work, kind, sites, means, part, in_closed_form, flagged, certificate, exact, later)

    @property
    def n_cells(self) -> int:
        """The cells of the units that have no closed form."""
        return int((~self.in_closed_form).sum()) * len(self.work.selection.windows)

    @property
    def n_patched(self) -> int:
        """How many of them were patched."""
        return 0 if self.certificate is None else int(self.certificate.known[:, ~self.in_closed_form].sum())

    @property
    def names(self) -> list[str]:
        """The printed name of every unit."""
        return [site.name(unit) for site in self.sites for unit in range(site.n_units)]

    @property
    def undecided_names(self) -> list[str]:
        """The units that may be among the largest or not."""
        return [] if self.certificate is None else [self.names[unit] for unit in self.certificate.undecided]

    def sums(self, kind: bool, name: str) -> Float[np.ndarray, "context unit"]:
        """Return the sums of a statistic over a kind of target, exact where they are known."""
        raw = {"abs_delta_loss": "absolute", "delta_loss": "signed"}.get(name, name)
        kinds = [k for k in KINDS if self.known[f"{named(k)}_tokens"].any()]
        if self.certificate is not None and raw != name and kind in kinds:
            return self.certificate.by_context[2 * kinds.index(kind) + (name == "delta_loss")]
        out = self.known[f"{named(kind)}_{raw}"].astype(np.float64)
        if self.in_closed_form.any():
            out[:, self.in_closed_form] = self.closed[f"{named(kind)}_{name}"]
        return out

    def table(self) -> pd.DataFrame:
        """Return one row for every unit; rank 1 has the largest mean |Δ| at rare targets of all layers."""
        site = np.repeat(np.arange(len(self.sites)), [s.n_units for s in self.sites])
        columns: dict[str, np.ndarray | list[str] | str] = {
            "unit": self.names,
            "kind": self.kind.removesuffix("s"),
            "layer": np.array([s.layer for s in self.sites])[site],
            "index": np.concatenate([np.arange(s.n_units) for s in self.sites]),
        }
        for kind in KINDS:
            n_tokens = self.known[f"{named(kind)}_tokens"]
            if n_tokens.any():
                columns |= self.columns_of(kind, n_tokens)
        D = self.known["rare_first_order"].sum(0)
        columns["here_share"] = self.known["rare_here"].sum(0) / np.where(D > 0, D, 1.0)
        columns["certainty"] = self.certainty
        columns["flagged"] = self.flagged
        undecided = np.zeros(len(site), bool)
        if self.certificate is not None:
            undecided[self.certificate.undecided] = True
        columns["undecided"] = undecided
        columns |= dict(self.later)
        table = pd.DataFrame(columns)
        order = np.argsort(-table["abs_delta_loss"].to_numpy(), kind="stable")
        table["rank"] = np.argsort(order, kind="stable") + 1
        return table

    def columns_of(self, kind: bool, n_tokens: Int[np.ndarray, " context"]) -> dict[str, np.ndarray]:
        """Return means over a kind of target, their clustered standard errors, and half-widths of what isn't known."""
        prefix, out = "" if kind else "common_", {}
        for name in KEPT:
            mean = ClusteredMean(self.known["move"].shape[1])
            mean.add(torch.from_numpy(self.sums(kind, name)), torch.from_numpy(n_tokens))
            out[f"{prefix}{name}"] = mean.mean
            if name in ("abs_delta_loss", "delta_loss"):
                out[f"{prefix}{name}_se"] = mean.standard_error
                out[f"{prefix}{name}_half_width"] = self.half_width(kind, name)
        return out

    def half_width(self, kind: bool, name: str) -> Float[np.ndarray, " unit"]:
        """Return the half-width of the interval of a mean over these tokens; NaN where nothing was verified."""
        if self.certificate is None:
            return np.where(self.in_closed_form, 0.0, np.nan)
        kinds = [k for k in KINDS if self.known[f"{named(k)}_tokens"].any()]
        return self.certificate.half_width[2 * kinds.index(kind) + (name == "delta_loss")]

    @property
    def certainty(self) -> np.ndarray:
        """What each unit's numbers are (`runs.layers.CERTAINTIES`)."""
        if self.certificate is None:
            return np.where(self.in_closed_form, "exact", "screen")
        return np.where(self.certificate.exact | self.in_closed_form, "exact", "verified")

    def layer_sums(self) -> dict[str, np.ndarray]:
        """Return sums over the units of each layer, [context, layer], and tokens of each context."""
        edges = np.cumsum([0, *(site.n_units for site in self.sites)])[:-1]
        out = {f"{self.kind}.layer": np.array([site.layer for site in self.sites])}
        for kind in KINDS:
            for name in ("abs_delta_loss", "moved"):
                sums = np.add.reduceat(self.sums(kind, name), edges, axis=1)
                out[f"{self.kind}.{named(kind)}.{name}"] = sums
            out[f"{named(kind)}.n_tokens"] = self.known[f"{named(kind)}_tokens"]
        return out


def at_units(sites: Sequence[Site], values: Sequence[int | float]) -> np.ndarray:
    """Return each site's value at its units."""
    return np.repeat(values, [site.n_units for site in sites])


def verified(
    work: LayersWork,
    kind: UnitKind,
    known: Mapping[str, np.ndarray],
    layer: Int[np.ndarray, " unit"],
    whole: Bool[np.ndarray, " unit"],
    patch: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Certificate:
    """Return what patching makes of the estimates; `whole` units are patched, or known, in every context."""
    kinds = [k for k in KINDS if known[f"{named(k)}_tokens"].any()]
    given = [
        Estimated(
            sums={name: known[f"{named(k)}_{name}"] for name in SUMS} | {"move": known["move"]},
            n_tokens=int(known[f"{named(k)}_tokens"].sum()),
        )
        for k in kinds
    ]
    enough = small_enough(known["rare_absolute"], known["rare_tokens"])
    n_cells = round(work.verify * (~whole).sum() * len(work.selection.windows))
    rng = generator(work.seed, "layers", "cells", kind)
    return certify(given, patch, rng, n_cells=n_cells, rank=RANK[kind], flagged=whole, layer=layer, enough=enough)


class Patching:
    """Gives exact sums of cells: of units in closed form as they are known, of others by patching."""

    def __init__(
        self,
        work: LayersWork,
        sites: Sequence[Site],
        means: Sequence[torch.Tensor],
        closed: Mapping[str, np.ndarray],
        progress: Progress,
    ) -> None:
        self.work, self.sites, self.means, self.closed, self.progress = work, sites, means, closed, progress
        self.head = head_of(work.adapter.anatomy)
        self.first = np.cumsum([0, *(site.n_units for site in sites)])
        rare = work.selection.rare
        self.kinds = [kind for kind in KINDS if (rare == kind).any()]

    def __call__(
        self, units: Int[np.ndarray, " cell"], contexts: Int[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "outcome cell"]:
        """Return the sums of |Δ| and Δ of each kind of target."""
        out = np.zeros((2 * len(self.kinds), len(units)))
        of_site = np.searchsorted(self.first, units, side="right") - 1
        for i, site in enumerate(self.sites):
            cells = np.flatnonzero(of_site == i)
            if not len(cells):
                continue
            local = units[cells] - self.first[i]
            if self.closed and site.layer == self.work.adapter.n_layers - 1:
                for j, (kind, name) in enumerate((k, n) for k in self.kinds for n in KEPT[:2]):
                    out[j, cells] = self.closed[f"{named(kind)}_{name}"][contexts[cells], local]
                continue
            for context in np.unique(contexts[cells]):
                here = contexts[cells] == context
                out[:, cells[here]] = patched_sums(
                    self.work.adapter.anatomy,
                    self.head,
                    site,
                    self.work.selection,
                    int(context),
                    dict.fromkeys(KINDS, self.means[i]),
                    local[here],
                    self.kinds,
                )
                self.progress(int(here.sum()))
        return out


def other_reference(
    work: LayersWork,
    sites: Sequence[Site],
    means: Sequence[SiteMeans],
    flagged: Bool[np.ndarray, " unit"],
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Return mean |Δ| and Δ of doubtful units replaced by their mean without a context's first two positions.

    It is patched where both means differ by more than a fiftieth of the residual stream's length; elsewhere, NaN.
    """
    difference = np.concatenate(
        [
            (((m.mean - m.mean_later)[:, None] * s.W_out.double()).unflatten(0, (-1, s.width)).sum(1).norm(dim=1))
            .cpu()
            .numpy()
            / m.median_norm
            for s, m in zip(sites, means, strict=True)
        ]
    )
    chosen = np.flatnonzero(flagged & (difference > SINK))
    out = {f"{name}_later": np.full(len(flagged), np.nan) for name in KEPT[:2]}
    if len(chosen):
        patch = Patching(work, sites, [m.mean_later for m in means], {}, progress)
        n_contexts = len(work.selection.windows)
        units, contexts = np.repeat(chosen, n_contexts), np.tile(np.arange(n_contexts), len(chosen))
        sums = patch(units, contexts)[:2].reshape(2, len(chosen), n_contexts).sum(-1)
        for name, values in zip(out, sums / work.selection.rare.sum(), strict=True):
            out[name][chosen] = values
    return out
