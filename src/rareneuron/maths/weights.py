r"""The weight spectra of groups of neurons beside their nulls (App. 5.2.2; Eq. 6; Table 4).

Ξ = W_G W_Gᵀ / d is computed where the weights lie; `spectrum` holds what is measured of its eigenvalues.
"""

from collections.abc import Collection, Mapping

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
    random_directions,
    spectra_of,
    statistics_by_blocks,
)


def products(
    W: Float[Tensor, "neuron d"],
    members: Int[np.ndarray, "draw size"],
    definitions: Definitions,
    *,
    unit_rows: bool = False,
) -> Float[np.ndarray, "draw size size"]:
    """Return Ξ of each group in float64; `released`: the Pearson matrix of its rows, where a constant row is all 0.

    With `unit_rows` each row is brought to length 1 first, where its length means nothing.
    """
    out = np.empty((*members.shape, members.shape[1]))
    for draw, group in enumerate(torch.from_numpy(members)):
        rows = W[group].double()
        if definitions == "released":
            rows = rows - rows.mean(1, keepdim=True)
            rows = torch.nn.functional.normalize(rows) * W.shape[1] ** 0.5
        elif unit_rows:
            rows = torch.nn.functional.normalize(rows)
        out[draw] = (rows @ rows.mT).cpu().numpy() / W.shape[1]
    return out


def spectrum(
    weights: Mapping[str, Tensor | np.ndarray],
    groups: NeuronGroups,
    *,
    k: str | int = "fix-finger",
    definitions: Definitions = "paper",
    unit_rows: Collection[str] = (),
    rng: np.random.Generator | None = None,
) -> Spectrum:
    r"""Measure how heavy the tails of the groups' weight spectra are, beside random groups and random directions.

    The spectrum of a group is that of $\Xi = W_G W_G^T / d$, the products of its rows in one matrix. α_Hill of 50
    eigenvalues depends on d more than on the weights, so each value stands beside uniform and matched random groups and
    beside rows of the same lengths in random directions (Marchenko–Pastur).

    Args:
        weights: matrices by name, each [neuron, d], row i of neuron i.
        groups: which neurons, as `neuron_groups` returns them, with 99 random draws or more.
        k: how many eigenvalues are the tail, for `alpha_hill`.
        definitions: `paper`, or `released` (Pearson matrix of the rows, λ_{k+1}, k = ⌊n/10⌋), which ignores `k`.
        unit_rows: names of matrices in which the model leaves the lengths of rows open, as gated MLPs do in W_in and
            W_out; their rows are brought to length 1 first. The released definitions ignore lengths by themselves.
        rng: source of the random directions; without it the seed is 0.

    Returns:
        Every statistic of every group and matrix, with its nulls; `rows()` makes a table of it.

    Raises:
        InvalidConfig: `k` is unknown, a group has fewer than two eigenvalues above 0, or there are too few draws.

    Source:
        App. 5.2.2 and 5.3.3, Eq. 6 and Table 4 of “Emergent Specialization: Rare Token Neurons in Language Models”;
        the nulls are this package's (docs/spectrum.md).

    Example:
        Gaussian weights have no heavier tail in one group than in another:

        >>> import numpy as np
        >>> import rareneuron as rn
        >>> rng = np.random.default_rng(0)
        >>> delta = np.where(np.arange(40) < 20, 1.0, -1.0) / np.arange(1, 41)
        >>> groups = rn.neuron_groups(delta, np.abs(delta), size=5, n_draws=200, rng=rng)
        >>> found = rn.spectrum({"W_out": rng.normal(size=(40, 64))}, groups)
        >>> found.against["W_out", "alpha_hill", "boosting", "uniform"].p > 0.05
        True
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
        matrices = {
            name: products(W, members, definitions, unit_rows=matrix in unit_rows)
            for name, members in groups_of.items()
        }
        spectra = {name: spectra_of(of) for name, of in matrices.items()}
        found = {name: statistics_by_blocks(of, d, k, definitions) for name, of in spectra.items()}
        for group in ("boosting", "suppressing", "random"):
            eigenvalues[matrix, group] = spectra[group].mean(0)
            if group == "random":
                low, high = np.quantile(spectra[group], [0.025, 0.975], axis=0)
                eigenvalues[matrix, "random low"], eigenvalues[matrix, "random high"] = low, high
            edges[matrix, group] = marchenko_pastur_edge(groups.size, d, float(spectra[group].mean()))
            lengths = np.resize(np.sqrt(np.diagonal(matrices[group], axis1=1, axis2=2)), (n_gaussian, groups.size))
            gaussian = spectra_of(directions[d] * lengths[:, :, None] * lengths[:, None, :])
            nulls = {} if group == "random" else {"uniform": found["random"], "matched": found.get(f"matched {group}")}
            nulls["marchenko-pastur"] = statistics_by_blocks(gaussian, d, k, definitions)
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
        unit_rows=tuple(name for name in weights if name in unit_rows and definitions == "paper"),
    )
