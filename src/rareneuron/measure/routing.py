"""Measures what attention heads of earlier layers write to the neurons of the studied one, at the last checkpoint.

All heads are estimated, on contexts that judge nothing. The few with the largest influence on the groups are then
replaced by their mean, one at a time, in the contexts of the experiments, which judge the groups: their influence on
every neuron is exact. Oracle: tests/measure/test_routing.py, whole forward passes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from rareneuron.data.selection import Selection
from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.clustered import sums_by_context
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.routing import Influence
from rareneuron.maths.specificity import ROLES
from rareneuron.measure.capture import part_of_tokens
from rareneuron.models.adapter import Adapter
from rareneuron.models.gradient import SiteMeans, positions_within, site_means
from rareneuron.models.head_influence import estimated_influence, exact_influence
from rareneuron.models.sites import Site, site_of
from rareneuron.runs.options import with_option
from rareneuron.runs.routing import Routing
from rareneuron.runs.seeds import generator

PATCHED = 4  # heads that are replaced one at a time
ESTIMATED_TOKENS = 256  # at which all heads are estimated, rare and common ones together
CONTEXTS_AT_ONCE = 8  # of an exact pass


@dataclass(frozen=True, kw_only=True)
class RoutingWork:
    """The inputs of the stage: a model, its tokens, the groups, and the contexts that judge them."""

    adapter: Adapter
    selection: Selection
    layer: int
    groups: NeuronGroups
    judging: Int[np.ndarray, " context"]
    seed: int
    memory: int  # bytes that the graph of a forward pass may take
    bar: Callable[[str, int, str], AbstractContextManager[Any]]  # label, total, unit; shows how far a part has come

    @property
    def heads(self) -> list[Site]:
        """The heads of every earlier layer."""
        return [site_of(self.adapter.anatomy, layer, "heads") for layer in range(self.layer)]

    @property
    def row_positions(self) -> int:
        """How many positions a batch of rows may have."""
        longest = self.selection.windows.shape[1]
        return positions_within(self.adapter.anatomy, every_mlp(self.adapter), self.memory, longest)

    @property
    def others(self) -> Int[np.ndarray, " token"]:
        """Rows of tokens in contexts that judge nothing, at which heads are estimated."""
        rng, rows = generator(self.seed, "routing"), []
        elsewhere = ~np.isin(self.selection.context, self.judging)
        for kind in (True, False):
            of_kind = np.flatnonzero(elsewhere & (self.selection.rare == kind))
            rows.append(rng.permutation(of_kind)[: ESTIMATED_TOKENS // 2])
        return np.sort(np.concatenate(rows))


def routing(work: RoutingWork) -> Routing | Unavailable:
    """Return what heads write to the neurons, or why that can't be measured."""
    if work.layer == 0:
        return Unavailable("The study's neurons are those of layer 0, and no attention head stands before them.")
    judged = part_of_tokens(work.selection, np.flatnonzero(np.isin(work.selection.context, work.judging)))
    if judged.rare.all() or not judged.rare.any():
        return Unavailable("The contexts that judge the groups hold no common targets to compare with.")
    if not len(work.others):
        return Unavailable("No context is left to choose heads on. Analyse more tokens (--n-tokens).")
    try:
        heads = work.heads
    except RareNeuronError as error:
        return Unavailable(with_option(error))
    target = site_of(work.adapter.anatomy, work.layer)
    means = site_means(work.adapter.anatomy, heads, work.selection.windows)
    table = estimated_heads(work, heads, target, means)
    largest = table.nlargest(PATCHED, "influence").index.to_numpy()
    of_site = np.repeat(np.arange(len(heads)), [site.n_units for site in heads])
    chosen = [(heads[of_site[i]], int(table["index"][i])) for i in largest]
    influence = exact_sums(work, judged, target, chosen, [means[of_site[i]] for i in largest])
    names = [site.name(head) for site, head in chosen]
    return Routing(
        heads=table.assign(patched=table["unit"].isin(names)), influence=dict(zip(names, influence, strict=True))
    )


def estimated_heads(work: RoutingWork, heads: list[Site], target: Site, means: tuple[SiteMeans, ...]) -> pd.DataFrame:
    """Return every head's influence on either group's neurons, root mean squares at rare and at common targets."""
    part, columns = part_of_tokens(work.selection, work.others), {}
    weights = np.zeros((len(ROLES), target.n_units), np.float32)
    for weight, role in zip(weights, ROLES, strict=True):
        members = getattr(work.groups, role)
        weight[members] = len(members) ** -0.5
    weights /= spread_of_acts(work.adapter, part, target).clip(min=1e-30)
    squared = np.zeros((len(ROLES), len(part.context), sum(site.n_units for site in heads)))
    with work.bar("heads, all estimated", len(part.context), "token") as bar:
        for found in estimated_influence(
            work.adapter.anatomy,
            heads,
            target,
            part.windows,
            (part.context, part.position),
            [mean.mean for mean in means],
            weights,
            key=int(generator(work.seed, "routing", "signs").integers(2**31)),
            row_positions=work.row_positions,
        ):
            squared[:, found.index] = found.squared
            bar.update(len(found.index))
    for role, of_role in zip(ROLES, squared, strict=True):
        for kind in (True, False):
            mean = of_role[part.rare == kind].mean(0) if (part.rare == kind).any() else np.full(len(of_role[0]), np.nan)
            columns[f"{role}_{'rare' if kind else 'common'}"] = np.sqrt(mean)
    return pd.DataFrame(
        {
            "unit": [site.name(i) for site in heads for i in range(site.n_units)],
            "layer": np.repeat([site.layer for site in heads], [site.n_units for site in heads]),
            "index": np.concatenate([np.arange(site.n_units) for site in heads]),
            **columns,
            "influence": np.sqrt(squared.mean((0, 1))),
        }
    )


def every_mlp(adapter: Adapter) -> list[Site]:
    """Return the neurons of all layers, whose activations a graph holds."""
    return [site_of(adapter.anatomy, layer) for layer in range(adapter.n_layers)]


def spread_of_acts(adapter: Adapter, part: Selection, target: Site) -> Float[np.ndarray, " neuron"]:
    """Return the standard deviation of every neuron's activation over some tokens, infinite where it never moves."""
    acts = []
    for contexts, row, position in batches(part):
        seen, _ = exact_influence(adapter.anatomy, [], target, part.windows[contexts], (row, position), [])
        acts.append(seen.double().cpu().numpy())
    spread = np.concatenate(acts).std(0)
    return np.where(spread > 0, spread, np.inf).astype(np.float32)


def batches(part: Selection) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return a few contexts at a time, with the row among them and the position of each of their tokens, in order."""
    out = []
    for first in range(0, len(part.windows), CONTEXTS_AT_ONCE):
        contexts = np.arange(first, min(first + CONTEXTS_AT_ONCE, len(part.windows)))
        tokens = np.flatnonzero(np.isin(part.context, contexts))
        if len(tokens):
            out.append((contexts, part.context[tokens] - first, part.position[tokens]))
    return out


def exact_sums(
    work: RoutingWork,
    judged: Selection,
    target: Site,
    heads: list[tuple[Site, int]],
    means: list[SiteMeans],
) -> list[Influence]:
    """Return the influence of each head on every neuron, as sums over each context's tokens."""
    adapter = work.adapter
    spread = torch.from_numpy(spread_of_acts(adapter, judged, target))
    shape = (len(heads), 2, len(judged.windows), target.n_units)
    sums = np.zeros(shape, np.float32)
    with work.bar("heads, the largest replaced", len(judged.windows), "context") as bar:
        for contexts, row, position in batches(judged):
            tokens = np.flatnonzero(np.isin(judged.context, contexts))
            _, changes = exact_influence(
                adapter.anatomy, heads, target, judged.windows[contexts], (row, position), [m.mean for m in means]
            )
            for head, change in enumerate(changes):
                size = (change.abs() / spread.to(change)).double()
                for i, kind in enumerate((True, False)):
                    of_kind = torch.from_numpy(np.flatnonzero(judged.rare[tokens] == kind)).to(size.device)
                    rows = torch.from_numpy(row).to(size.device)[of_kind]
                    summed = sums_by_context(size[of_kind], rows, len(contexts))
                    sums[head, i, contexts] = summed.cpu().numpy()
            bar.update(len(contexts))
    n_rare, n_common = (
        np.bincount(judged.context[judged.rare == kind], minlength=len(judged.windows)) for kind in (True, False)
    )
    return [Influence(rare=of[0], common=of[1], n_rare=n_rare, n_common=n_common) for of in sums]
