"""Patches cells, units in whole contexts, with each kind of target's own mean: what verifies estimates.

A cell's outcomes are the sums of |Δ| and of Δ over a context's rare tokens, then over its common ones, as
`maths.certificate` takes them. Oracle: tests/measure/test_layers.py, the patching engine.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.data.selection import Selection
from rareneuron.maths.clustered import ClusteredMean
from rareneuron.maths.head import Head
from rareneuron.models.anatomy import Anatomy
from rareneuron.models.replay import CleanContext, Replay
from rareneuron.models.sites import Site

KINDS = (True, False)  # rare, common


def named(kind: bool) -> str:
    """Return the word for a kind of target."""
    return "rare" if kind else "common"


class UnitsOfSite(NamedTuple):
    """Units of a site that are to be replaced, one at a time, and by what at each kind of target."""

    site: Site
    means: Mapping[bool, Float[Tensor, " column"]]
    units: Int[np.ndarray, " unit"]


def patched_sums(
    anatomy: Anatomy,
    head: Head,
    selection: Selection,
    context: int,
    replaced: Sequence[UnitsOfSite],
    kinds: Sequence[bool] = KINDS,
) -> list[Float[np.ndarray, "outcome unit"]]:
    """Replay one context for several units of each site; once for both kinds of token if they share all means.

    `context` is a row of the selection's windows.
    """
    index = np.flatnonzero(selection.context == context)
    rare = selection.rare[index]
    out = [np.zeros((2 * len(kinds), len(of.units))) for of in replaced]
    shared = all(torch.equal(of.means[True], of.means[False]) for of in replaced)
    for together in [tuple(kinds)] if shared else [(kind,) for kind in kinds]:
        chosen = np.isin(rare, together)
        if not chosen.any():
            continue
        ids = anatomy.token_ids(selection.windows[[context]])[0]
        at = torch.from_numpy(selection.position[index[chosen]]).to(ids.device)
        clean = CleanContext(anatomy, head, [of.site for of in replaced], ids, at)
        for which, of in enumerate(replaced):
            replay = Replay(clean, of.means[together[0]].to(ids.device), which)
            delta = replay.loss_changes(torch.from_numpy(of.units).to(ids.device)).delta_loss.cpu().numpy()
            for kind in together:
                of_kind = delta[:, rare[chosen] == kind]
                i = 2 * list(kinds).index(kind)
                out[which][i : i + 2] = np.abs(of_kind).sum(1), of_kind.sum(1)
    return out


def small_enough(
    absolute: Float[np.ndarray, "context unit"], n_tokens: Int[np.ndarray, " context"]
) -> Float[np.ndarray, " unit"]:
    """Return the errors of mean |Δ| that are worth no more patching: half its standard error over contexts."""
    mean = ClusteredMean(absolute.shape[1])
    mean.add(torch.from_numpy(absolute), torch.from_numpy(n_tokens))
    return np.nan_to_num(mean.standard_error / 2)
