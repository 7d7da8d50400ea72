"""Measures the units of several layers at one checkpoint: estimates by gradient, then patching that verifies them.

Neurons and heads of all layers come from the same backward passes. Units are replaced by their mean over all positions.
Neurons of the last layer are exact where a readout stands behind it; heads of the last layer are patched in every
context, and so are units that move the residual stream far and may be among the largest. Of the others, patching takes
what the budget allows, and ends as soon as nothing at the border of the largest is undecided that contexts wouldn't
leave open anyway. Contexts come in pieces, which are kept as those of `measure.pieces` are.
Oracle: tests/measure/test_layers.py, the patching engine.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rareneuron.errors import Unavailable
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.clustered import sums_by_context
from rareneuron.maths.first_order import SUMS, ContextTotals
from rareneuron.measure.capture import Progress, capture, rows_of
from rareneuron.measure.cells import KINDS, named
from rareneuron.measure.layer_units import KEPT, RANK, SPACE, LayersWork, VerifiedUnits
from rareneuron.models.adapter import Adapter
from rareneuron.models.anatomy import layer_index
from rareneuron.models.gradient import estimates
from rareneuron.models.sites import Site, UnitKind, head_of, site_of
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layers import Layers
from rareneuron.runs.records import GradientCheck, LayersRecord

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


def measure_layers(
    work: LayersWork, check: GradientCheck | None, *, estimating: Progress, verifying: Progress
) -> Layers:
    """Estimate, verify, and put into a table, with how the closed form checked the gradient.

    Progress is told tokens, then cells.
    """
    known = estimated_sums(work, estimating)
    exact = exact_sums(work)
    kinds = dict.fromkeys(site.kind for site in work.sites)
    parts = [VerifiedUnits.of(work, kind, known, exact, verifying) for kind in kinds]
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


def exact_sums(work: LayersWork) -> dict[str, np.ndarray]:
    """Return sums for the last layer's neurons in closed form; nothing where they aren't asked for or have none."""
    adapter, last = work.adapter, work.adapter.n_layers - 1
    found = [i for i, site in enumerate(work.sites) if site.layer == last and site.kind == "neurons"]
    readout = adapter.readout_behind(-1)
    if not found or isinstance(readout, Unavailable):
        return {}
    site, mean = work.sites[found[0]], work.means[found[0]].mean
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
