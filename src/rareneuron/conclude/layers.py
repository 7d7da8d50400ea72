"""Compares layers: which share of all effects each has, and how much more its units matter at rare targets.

All from sums over the units of a layer and the tokens of a context, so contexts can be resampled. The effects of
different layers are not parts of a whole, since units are replaced one at a time; a share says how they compare.
Oracle: tests/conclude/test_layers.py, loops over units and contexts.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from rareneuron.maths.significance import FEWEST_CONTEXTS, expanded_levels
from rareneuron.maths.specificity import ROLES
from rareneuron.runs.layers import Layers, read_layers
from rareneuron.runs.run import Run
from rareneuron.runs.seeds import generator

N_DRAWS = 999  # of contexts


def shares(totals: Float[np.ndarray, "*draw layer"]) -> Float[np.ndarray, "*draw layer"]:
    """Return each layer's part of the sum over layers."""
    return np.asarray(totals / totals.sum(-1, keepdims=True))


def rare_over_common(
    rare: Float[np.ndarray, "*draw layer"],
    rare_moved: Float[np.ndarray, "*draw layer"],
    common: Float[np.ndarray, "*draw layer"],
    common_moved: Float[np.ndarray, "*draw layer"],
) -> Float[np.ndarray, "*draw layer"]:
    """Return |Δ| for the distance moved at rare targets, over the same at common ones."""
    return np.asarray((rare / rare_moved) / (common / common_moved))


def stacked(found: Layers, kind: str = "neurons") -> Float[np.ndarray, "context 4 layer"]:
    """Return the sums of |Δ| and of moves at rare, then at common targets."""
    names = [f"{kind}.{of}.{name}" for of in ("rare", "common") for name in ("abs_delta_loss", "moved")]
    return np.stack([found.sums[name].astype(np.float64) for name in names], 1)


def layer_profile(run: Run, step: int | None = None, kind: str = "neurons") -> pd.DataFrame:
    """Return one row per layer, with 95 % intervals over contexts where there are enough of them.

    `share` is the layer's part of Σ |Δ| over all neurons of the layers looked at, at rare targets; `common_share` the
    same at common ones; `rare_over_common` is |Δ| for the distance moved at rare targets over that at common ones.
    """
    found = read_layers(run.folder(step))
    sums = stacked(found, kind)
    table = found.table[found.table["kind"] == kind.removesuffix("s")]
    by_layer = table.groupby("layer")
    out = pd.DataFrame(
        {
            "layer": found.sums[f"{kind}.layer"],
            "units": by_layer.size().to_numpy(),
            "largest": by_layer["abs_delta_loss"].max().to_numpy(),
            "median": by_layer["abs_delta_loss"].median().to_numpy(),
            "here_share": by_layer["here_share"].median().to_numpy(),
            "exact": by_layer["certainty"].agg(lambda c: int((c == "exact").sum())).to_numpy(),
            "flagged": by_layer["flagged"].sum().to_numpy(),
            "screen": by_layer["certainty"].agg(lambda c: bool((c == "screen").any())).to_numpy(),
        }
    )
    n = len(sums)
    rng = generator(run.manifest.config.seed, "layer profile", kind)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=N_DRAWS).astype(np.float64)
    draws = np.tensordot(drawn, sums, 1)
    total = sums.sum(0)
    statistics = {"share": (shares(total[0]), shares(draws[:, 0]))}
    if total[2].any():
        statistics["common_share"] = (shares(total[2]), shares(draws[:, 2]))
        statistics["rare_over_common"] = (rare_over_common(*total), rare_over_common(*draws.transpose(1, 0, 2)))
    for name, (value, resampled) in statistics.items():
        low, high = np.quantile(resampled, expanded_levels(n), axis=0) if n >= FEWEST_CONTEXTS else (np.nan, np.nan)
        out = out.assign(**{name: value, f"{name}_low": low, f"{name}_high": high})
    return out


def writing_heads(run: Run, step: int | None, top: int) -> pd.DataFrame:
    """Return the heads of earlier layers that write most to either group, and by how much more at rare targets.

    Influence in standard deviations of activations (root mean squares), estimated; `patched`: measured, too, and judged
    by the claim `no-routing`.
    """
    table = run.routing(step)
    for role in ROLES:
        table[f"{role}_rare_over_common"] = table[f"{role}_rare"] / table[f"{role}_common"]
    columns = [name for name in table if name not in ("layer", "index")]
    return table.nlargest(top, "influence")[columns].reset_index(drop=True)
