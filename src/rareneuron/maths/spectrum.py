r"""How heavy the tail of a group's weight spectrum is (App. 5.2.2, 5.3.3; Eq. 6; Table 4).

Ξ = W_G W_Gᵀ / d of the group's rows in W_in, in W_out and, where gated, in W_gate: each alone, always labelled. With 50
eigenvalues, α_Hill is decided by d and by the rule for k before it is by the weights: 50 Gaussian rows of width 1,024
give 6.2 or 24. So each value stands beside random groups and beside rows of the same lengths in random directions
(Marchenko–Pastur), which pass through the same computation. docs/spectrum.md holds the choices and their spread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import entr

from rareneuron.errors import InvalidConfig
from rareneuron.maths import Definitions
from rareneuron.maths.eigen import eigenvalues_of
from rareneuron.maths.significance import AgainstNull, finite
from rareneuron.shown import Shown

RULES = ("fix-finger", "fraction", "half")  # for k of Eq. 6
FEWEST_GAUSSIAN = 200  # draws of the Marchenko–Pastur null
BLOCK = 2**20  # pairs of eigenvalues held at once


@dataclass(frozen=True, kw_only=True)
class Spectrum(Shown):
    """Every statistic of every group and matrix, beside its nulls.

    `against` has keys (matrix, statistic, group, null). Groups are boosting, suppressing and random; nulls `uniform`
    and `matched` (random groups; not for `random` itself) and `marchenko-pastur`. The value of `random` is the mean
    over its draws, and its p, of a mean among single draws, only says whether a typical group could be one of them.
    """

    definitions: Definitions
    k: str | int  # the rule behind `alpha_hill` and `n_tail`; statistics of the other rules carry their names
    against: dict[tuple[str, str, str, str], AgainstNull]
    eigenvalues: dict[tuple[str, str], Float[np.ndarray, " size"]]  # by (matrix, group), largest first; 95 % of random
    edges: dict[tuple[str, str], float]  # where Marchenko–Pastur ends, for the group's mean row variance
    unit_rows: tuple[str, ...] = ()  # matrices whose rows were brought to length 1, as the model leaves it open

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return `rows` as a table."""
        rows = self.rows()
        return list(rows[0]), [tuple(row.values()) for row in rows]

    def rows(self) -> list[dict[str, Any]]:
        """Return one plain record per comparison, ready for JSON: what isn't finite is None."""
        return [
            {
                "matrix": matrix,
                "statistic": statistic,
                "group": group,
                "value": finite(found.value),
                "null": null,
                "null_mean": finite(found.null_mean),
                "null_low": finite(found.null_low),
                "null_high": finite(found.null_high),
                "effect_size": finite(found.effect_size),
                "p": found.p,
                "p_above": found.p_above,
                "p_below": found.p_below,
                "n_draws": found.n_draws,
                "null_lowest": finite(found.null_lowest),
                "null_q01": finite(found.null_q01),
                "null_q20": finite(found.null_q20),
                "null_q80": finite(found.null_q80),
                "null_q99": finite(found.null_q99),
                "null_highest": finite(found.null_highest),
            }
            for (matrix, statistic, group, null), found in self.against.items()
        ]


def alpha_hill(eigenvalues: ArrayLike, k: str | int = "fix-finger") -> float:
    r"""Return Hill's estimate of how heavy the tail of a spectrum is.

    $\alpha_{Hill} = [\frac{1}{k} \sum_{i \le k} \log(\lambda_i / \lambda_k)]^{-1}$, λ the eigenvalues from the
    largest. For a power law of density λ^(−α) it estimates α − 1; smaller is heavier.

    Args:
        eigenvalues: of a product W Wᵀ, in any order. Those that are 0 to rounding have no logarithm and are left out.
        k: how many are the tail, 2 or more: a number, `fraction` (10 %), `half`, or `fix-finger`, where λ_k is the
            eigenvalue at which the density of log λ peaks, smoothed by a Gaussian kernel of width
            1.06 · IQR/1.349 · n^(−1/5).

    Returns:
        α_Hill; infinite where λ_1 = λ_k, which is no tail at all.

    Raises:
        InvalidConfig: a number is negative or not finite, fewer than two are above 0, or `k` is unknown.

    Source:
        App. 5.3.3, Eq. 6 of “Emergent Specialization: Rare Token Neurons in Language Models”.

    Example:
        >>> import rareneuron as rn
        >>> round(rn.alpha_hill([4.0, 2.0, 1.0, 0.5], k=2), 4)  # 2 / log 2
        2.8854
    """
    given = np.sort(np.asarray(eigenvalues, dtype=np.float64).ravel())[::-1]
    rounding = len(given) * np.finfo(np.float64).eps * np.abs(given).max(initial=0)
    if not np.isfinite(given).all() or (given < -rounding).any():
        raise InvalidConfig(
            f"The {len(given)} numbers given hold NaN, infinity or a negative one, so they aren't the eigenvalues of a "
            "product W Wᵀ and have no tail. Pass np.linalg.eigvalsh(W @ W.T / W.shape[1])."
        )
    spectra = without_rounding(given[None])
    return float(hill(spectra, tail_sizes(spectra, k))[0])


def without_rounding(spectra: Float[np.ndarray, "draw n"]) -> Float[np.ndarray, "draw n"]:
    """Set eigenvalues that are 0 to rounding to 0."""
    n = spectra.shape[1]
    return np.where(spectra > n * np.finfo(np.float64).eps * spectra[:, :1], spectra, 0.0)


def tail_sizes(spectra: Float[np.ndarray, "draw n"], k: str | int) -> Int[np.ndarray, " draw"]:
    """Return k of Eq. 6 for each spectrum."""
    present = (spectra > 0).sum(1)
    if present.min() < 2:
        raise InvalidConfig(
            f"Of {spectra.shape[1]} eigenvalues {present.min()} are above 0, and a tail needs two: the group "
            "is too small, or its weights are 0. Take a larger group, or leave neurons without weights out."
        )
    if k == "fix-finger":
        chosen = peaks(spectra)
    elif k == "fraction":
        chosen = present // 10
    elif k == "half":
        chosen = present // 2
    elif isinstance(k, int | np.integer) and 2 <= k <= present.min():
        chosen = np.full(len(spectra), k)
    else:
        raise InvalidConfig(
            f"k is {k!r}; Eq. 6 takes the k largest eigenvalues, of which {present.min()} are above 0, and needs two. "
            f"Use {', '.join(RULES)}, or a number from 2 to {present.min()}."
        )
    return np.maximum(chosen, 2)


def logs_of(spectra: Float[np.ndarray, "draw n"]) -> Float[np.ndarray, "draw n"]:
    """Return natural logarithms, and for 0 a number that is never used."""
    return np.log(np.maximum(spectra, np.finfo(np.float64).tiny))


def peaks(spectra: Float[np.ndarray, "draw n"]) -> Int[np.ndarray, " draw"]:
    """Return k such that λ_k is where the kernel density of log λ peaks; of several places, the lowest."""
    logs, there = logs_of(spectra), spectra > 0
    present = there.sum(1, keepdims=True)
    quartiles = np.take_along_axis(logs, np.hstack([present // 4, 3 * present // 4]), 1)
    width = 1.06 * (quartiles[:, 0] - quartiles[:, 1]) / 1.349 * present[:, 0] ** -0.2
    width = np.maximum(width, np.finfo(np.float64).eps)  # of equal eigenvalues: then the peak is the commonest one
    distance = (logs[:, :, None] - logs[:, None, :]) / width[:, None, None]
    density = (np.exp(-(distance**2) / 2) * there[:, None, :]).sum(2) * there
    return spectra.shape[1] - density[:, ::-1].argmax(1)


def hill(
    spectra: Float[np.ndarray, "draw n"], k: Int[np.ndarray, " draw"], *, beyond: int = 0
) -> Float[np.ndarray, " draw"]:
    """Return Eq. 6 for each spectrum; with `beyond` = 1 the released scripts' form, which divides by λ_{k+1}."""
    logs = logs_of(spectra)
    excess = logs - np.take_along_axis(logs, (k - 1 + beyond)[:, None], 1)
    with np.errstate(divide="ignore"):
        return k / np.where(np.arange(logs.shape[1]) < k[:, None], excess, 0).sum(1)


def density_exponents(spectra: Float[np.ndarray, "draw n"]) -> Float[np.ndarray, " draw"]:
    """Return α of a density λ^(−α) above λ_m, with the m whose fit is nearest in Kolmogorov–Smirnov distance.

    α = 1 + Eq. 6 at k = m, as in WeightWatcher and powerlaw; with them, a tail of two is allowed.
    """
    logs, n = logs_of(spectra), spectra.shape[1]
    size = np.arange(1, n + 1)
    inside = np.tri(n)  # [m, j]: λ_j belongs to the tail that starts at λ_m
    ratio = (logs[:, None, :] - logs[:, :, None]) * inside
    excess = ratio.sum(2)
    hills = np.divide(size, excess, out=np.full_like(excess, np.inf), where=excess > 0)
    exponent = np.where(np.isinf(hills), 0, hills)
    share_below = 1 - size[None, :] / size[:, None]
    distance = (np.abs(1 - np.exp(-exponent[:, :, None] * ratio) - share_below) * inside).max(2)
    distance[(spectra <= 0) | (excess <= 0)] = np.inf  # such as the tail of one
    best = n - 1 - distance[:, ::-1].argmin(1)
    return 1 + np.take_along_axis(hills, best[:, None], 1)[:, 0]


def statistics(
    spectra: Float[np.ndarray, "draw n"], d: int, k: str | int, definitions: Definitions
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Return every statistic of each spectrum, whose largest eigenvalue comes first."""
    total, largest = spectra.sum(1), spectra[:, 0]
    share = spectra / total[:, None]
    n_tail, alphas = {}, {}
    if definitions == "released":
        n_tail["alpha_hill"] = np.maximum((spectra > 0).sum(1) // 10, 1)
        alphas["alpha_hill"] = hill(spectra, n_tail["alpha_hill"], beyond=1)
    else:
        for rule in dict.fromkeys((k, *RULES)):
            name = "alpha_hill" if rule == k else f"alpha_hill_{rule}".replace("-", "_")
            n_tail[name] = tail_sizes(spectra, rule)
            alphas[name] = hill(spectra, n_tail[name])
    return alphas | {
        "n_tail": n_tail["alpha_hill"].astype(np.float64),
        "stable_rank": total / largest,
        "spectral_entropy": entr(share).sum(1) / np.log(spectra.shape[1]),
        "pl_alpha_hat": density_exponents(spectra) * np.log10(largest * (d if definitions == "paper" else 1)),
        "largest_eigenvalue": largest,
    }


def statistics_by_blocks(
    spectra: Float[np.ndarray, "draw n"], d: int, k: str | int, definitions: Definitions
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Return `statistics` block by block, since they compare all pairs of eigenvalues."""
    blocks = np.array_split(spectra, 1 + spectra.size * spectra.shape[1] // BLOCK)
    parts = [statistics(block, d, k, definitions) for block in blocks if len(block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def random_directions(size: int, d: int, n_draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw size size"]:
    """Draw `size` unit vectors in random directions of d dimensions, and return their products."""
    out = np.empty((n_draws, size, size))
    for draw in out:
        rows = rng.standard_normal((size, d))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        draw[:] = rows @ rows.T
    return out


def spectra_of(matrices: Float[np.ndarray, "draw size size"]) -> Float[np.ndarray, "draw size"]:
    """Return the eigenvalues of each matrix, largest first."""
    return without_rounding(eigenvalues_of(matrices)[:, ::-1])


def marchenko_pastur_edge(size: int, d: int, variance: float) -> float:
    r"""Return the largest eigenvalue of Ξ for wide i.i.d. rows, $\sigma^2 (1 + \sqrt{n/d})^2$."""
    return variance * (1 + (size / d) ** 0.5) ** 2
