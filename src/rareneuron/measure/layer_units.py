"""Verifies what gradients say of the units of several layers: patches cells, keeps what is exact, and tabulates.

A unit is known in closed form, patched in every context, or estimated with an interval that patched cells of other
units give. Oracle: tests/measure/test_layers.py, the patching engine.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from rareneuron.data.selection import Selection
from rareneuron.errors import InvalidConfig
from rareneuron.maths.certificate import FAR, Certificate, Estimated, cells_allowed, certify, in_doubt
from rareneuron.maths.clustered import ClusteredMean
from rareneuron.maths.first_order import SUMS
from rareneuron.measure.capture import Progress
from rareneuron.measure.cells import KINDS, UnitsOfSite, named, patched_sums, small_enough
from rareneuron.measure.pieces import PieceStore
from rareneuron.models.adapter import Adapter
from rareneuron.models.gradient import SiteMeans, positions_within, site_means
from rareneuron.models.sites import Site, UnitKind, head_of
from rareneuron.runs.files import digest
from rareneuron.runs.seeds import generator

SINK = 0.02  # of the residual stream's median length: a difference between a unit's means that is worth patching for
RANK = {"neurons": 50, "heads": 10}  # patching decides who is among so many
SPACE = 0.5  # share of the memory that sums of all contexts may take
CLEAN_SPACE = 0.25  # share of the memory that one clean pass may keep for the cells of several sites
CONTEXTS_AT_ONCE = 16  # whose cells are stored together, so that an interrupted study goes on
WORTH_KEEPING = 1.0  # seconds that they took
KEPT = ("abs_delta_loss", "delta_loss", "kl", "moved")  # per context and unit, of each kind of target


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
        longest = self.selection.windows.shape[1]
        return positions_within(self.adapter.anatomy, self.sites, int(SPACE * self.memory), longest)

    @cached_property
    def offsets(self) -> np.ndarray:
        """The first unit of every site, and the number of all."""
        return np.cumsum([0, *(site.n_units for site in self.sites)])


@dataclass(frozen=True)
class VerifiedUnits:
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
    later: Mapping[str, np.ndarray]  # mean |Δ| and Δ of units in doubt, with the mean of later positions

    @classmethod
    def of(
        cls,
        work: LayersWork,
        kind: UnitKind,
        known: Mapping[str, np.ndarray],
        exact: Mapping[str, np.ndarray],
        progress: Progress,
    ) -> "VerifiedUnits":
        """Verify the units of one kind."""
        chosen = [i for i, site in enumerate(work.sites) if site.kind == kind]
        columns = slice(work.offsets[chosen[0]], work.offsets[chosen[-1] + 1])
        part = {name: value if name.endswith("_tokens") else value[..., columns] for name, value in known.items()}
        sites, means = [work.sites[i] for i in chosen], [work.means[i] for i in chosen]
        layer, norm = at_units(sites, [s.layer for s in sites]), at_units(sites, [m.median_norm for m in means])
        last = layer == work.adapter.n_layers - 1
        in_closed_form = last if kind == "neurons" and exact else np.zeros(len(layer), bool)
        flagged = (part["move"].max(0) > FAR * norm) & ~in_closed_form
        exact_cells = ExactCells(work, sites, [m.mean for m in means], exact if in_closed_form.any() else {}, progress)
        certificate, later = None, {}
        if work.verify:
            doubtful = in_doubt(part["rare_absolute"], part["move"], norm, RANK[kind])
            whole = doubtful | in_closed_form | (last if kind == "heads" else False)
            certificate = verified(work, kind, part, layer, whole, exact_cells)
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
        """Return sums over the units of each layer, [context, layer], tokens of each context, and every unit's mean."""
        edges = np.cumsum([0, *(site.n_units for site in self.sites)])[:-1]
        out = {f"{self.kind}.layer": np.array([site.layer for site in self.sites])}
        for kind in KINDS:
            for name in ("abs_delta_loss", "moved"):
                sums = np.add.reduceat(self.sums(kind, name), edges, axis=1)
                out[f"{self.kind}.{named(kind)}.{name}"] = sums
            out[f"{named(kind)}.n_tokens"] = self.known[f"{named(kind)}_tokens"]
        for site, mean in zip(self.sites, self.means, strict=True):
            out[f"{self.kind}.mean.{site.layer}"] = mean.mean.cpu().numpy()
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
    n_cells = cells_allowed(work.verify, int((~whole).sum()) * len(work.selection.windows))
    rng = generator(work.seed, "layers", "cells", kind)
    return certify(given, patch, rng, n_cells=n_cells, rank=RANK[kind], flagged=whole, layer=layer, enough=enough)


class ExactCells:
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
        of_site = self.site_of(units)
        known = np.zeros(len(units), bool)
        if self.closed:
            known = np.array([site.layer == self.work.adapter.n_layers - 1 for site in self.sites])[of_site]
            local = units[known] - self.first[of_site[known]]
            for j, (kind, name) in enumerate((k, n) for k in self.kinds for n in KEPT[:2]):
                out[j, known] = self.closed[f"{named(kind)}_{name}"][contexts[known], local]
        different = np.unique(contexts[~known])
        for some in np.split(different, range(CONTEXTS_AT_ONCE, len(different), CONTEXTS_AT_ONCE)):
            here = np.flatnonzero(~known & np.isin(contexts, some))
            out[:, here] = self.stored(units[here], contexts[here])
            self.progress(len(here))
        return out

    def site_of(self, units: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
        """Return the index of each unit's site."""
        return np.searchsorted(self.first, units, side="right") - 1

    def stored(
        self, units: Int[np.ndarray, " cell"], contexts: Int[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "outcome cell"]:
        """Return the sums of cells of some contexts: read, where an interrupted study has patched them."""
        if not len(units):
            return np.zeros((2 * len(self.kinds), 0))
        store, sites = self.work.store, np.unique(self.site_of(units))
        given = {f"mean {self.sites[i].name(0)}": self.means[i].cpu().numpy() for i in sites}
        given |= {"units": units, "contexts": contexts}
        path = store.path("cells", range(contexts.min(), contexts.max() + 1), digest(given))
        found = store.read(path)
        if found is None:
            began = time.perf_counter()
            found = {"sums": self.patched(units, contexts)}
            if time.perf_counter() - began >= WORTH_KEEPING:
                store.write(path, found)
        return found["sums"]

    def patched(
        self, units: Int[np.ndarray, " cell"], contexts: Int[np.ndarray, " cell"]
    ) -> Float[np.ndarray, "outcome cell"]:
        """Patch cells context by context, those of as many sites as the memory allows after one clean pass."""
        out, work = np.zeros((2 * len(self.kinds), len(units))), self.work
        of_site = self.site_of(units)
        for context in np.unique(contexts):
            sites = np.unique(of_site[contexts == context])
            cells = [np.flatnonzero((contexts == context) & (of_site == i)) for i in sites]
            replaced = [
                UnitsOfSite(self.sites[i], dict.fromkeys(KINDS, self.means[i]), units[at] - self.first[i])
                for i, at in zip(sites, cells, strict=True)
            ]
            given = work.adapter.anatomy, self.head, work.selection, int(context)
            for first in range(0, len(sites), self.sites_at_once):
                some = slice(first, first + self.sites_at_once)
                for at, sums in zip(cells[some], patched_sums(*given, replaced[some], self.kinds), strict=True):
                    out[:, at] = sums
        return out

    @property
    def sites_at_once(self) -> int:
        """How many sites one clean pass may serve: it keeps what each puts out, and what the block before returns."""
        widest = max(len(site.W_out) for site in self.sites) + self.work.adapter.d_model
        kept = 4 * self.work.selection.windows.shape[1] * widest  # bytes, in float32
        return max(1, int(CLEAN_SPACE * self.work.memory) // kept)


def other_reference(
    work: LayersWork,
    sites: Sequence[Site],
    means: Sequence[SiteMeans],
    doubtful: Bool[np.ndarray, " unit"],
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
    chosen = np.flatnonzero(doubtful & (difference > SINK))
    out = {f"{name}_later": np.full(len(doubtful), np.nan) for name in KEPT[:2]}
    if len(chosen):
        patch = ExactCells(work, sites, [m.mean_later for m in means], {}, progress)
        n_contexts = len(work.selection.windows)
        units, contexts = np.repeat(chosen, n_contexts), np.tile(np.arange(n_contexts), len(chosen))
        sums = patch(units, contexts)[:2].reshape(2, len(chosen), n_contexts).sum(-1)
        for name, values in zip(out, sums / work.selection.rare.sum(), strict=True):
            out[name][chosen] = values
    return out
