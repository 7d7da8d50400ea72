r"""The weight spectra of groups of neurons beside their nulls (App. 5.2.2; Eq. 6; Table 4).

Ξ = W_G W_Gᵀ / d is computed where the weights lie; `spectrum` holds what is measured of its eigenvalues.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.maths import Definitions
from rareneuron.maths.groups import NeuronGroups
from rareneuron.maths.significance import AgainstNull, against_null
from rareneuron.maths.spectrum import (
    FEWEST_GAUSSIAN,
    Spectrum,
    marchenko_pastur_edge,
    measured,
    random_directions,
    spectra_of,
)


def products(
    W: Float[Tensor, "neuron d"], members: Int[np.ndarray, "draw size"], definitions: Definitions
) -> Float[np.ndarray, "draw size size"]:
    """Ξ of each group in float64; `released`: the Pearson matrix of its rows, in which a constant row is all 0."""
    out = np.empty((*members.shape, members.shape[1]))
    for draw, group in enumerate(torch.from_numpy(members)):
        rows = W[group].double()
        if definitions == "released":
            rows = rows - rows.mean(1, keepdim=True)
            rows = torch.nn.functional.normalize(rows) * W.shape[1] ** 0.5
        out[draw] = (rows @ rows.mT).cpu().numpy() / W.shape[1]
    return out


def spectrum(
    weights: Mapping[str, Tensor | np.ndarray],
    groups: NeuronGroups,
    *,
    k: str | int = "fix-finger",
    definitions: Definitions = "paper",
    rng: np.random.Generator | None = None,
) -> Spectrum:
    """The statistics of every group in every matrix [neuron, d], beside random groups and random directions.

    `released` (Pearson matrix of the rows, λ_{k+1}, k = ⌊n/10⌋) has one rule and ignores `k`. Without `rng` the seed is
    0. Memory: a few numbers per draw and pair of members.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    groups_of = {"boosting": groups.boosting[None], "suppressing": groups.suppressing[None], "random": groups.random}
    groups_of |= {f"matched {name}": drawn for name, drawn in groups.matched.items()}
    n_gaussian = max(FEWEST_GAUSSIAN, len(groups.random))
    directions: dict[int, np.ndarray] = {}
    against: dict[tuple[str, str, str, str], AgainstNull] = {}
    eigenvalues, edges = {}, {}
    for matrix, given in weights.items():
        W = torch.as_tensor(given).detach()
        d = W.shape[1]
        if d not in directions:
            # rows centred in d dimensions are rows of d - 1
            dimensions = d - 1 if definitions == "released" else d
            directions[d] = random_directions(groups.size, dimensions, n_gaussian, rng)
        matrices = {name: products(W, members, definitions) for name, members in groups_of.items()}
        spectra = {name: spectra_of(of) for name, of in matrices.items()}
        found = {name: measured(of, d, k, definitions) for name, of in spectra.items()}
        for group in ("boosting", "suppressing", "random"):
            eigenvalues[matrix, group] = spectra[group].mean(0)
            if group == "random":
                low, high = np.quantile(spectra[group], [0.025, 0.975], axis=0)
                eigenvalues[matrix, "random low"], eigenvalues[matrix, "random high"] = low, high
            edges[matrix, group] = marchenko_pastur_edge(groups.size, d, float(spectra[group].mean()))
            lengths = np.resize(np.sqrt(np.diagonal(matrices[group], axis1=1, axis2=2)), (n_gaussian, groups.size))
            gaussian = spectra_of(directions[d] * lengths[:, :, None] * lengths[:, None, :])
            nulls = {} if group == "random" else {"uniform": found["random"], "matched": found.get(f"matched {group}")}
            nulls["marchenko-pastur"] = measured(gaussian, d, k, definitions)
            for statistic, value in found[group].items():
                for null, drawn in nulls.items():
                    if drawn is not None:
                        against[matrix, statistic, group, null] = against_null(float(value.mean()), drawn[statistic])
    return Spectrum(
        definitions=definitions,
        k="released" if definitions == "released" else k,
        against=against,
        eigenvalues=eigenvalues,
        edges=edges,
    )
