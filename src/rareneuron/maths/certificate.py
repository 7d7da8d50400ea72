r"""Intervals for estimated effects of units, from exact values of chosen cells (a cell is one unit in one context).

Estimates are wrong by little, and by much at few units: residuals e = exact − estimate are heavy-tailed, so the t
interval of a few random contexts covers 72 to 94 % where it promises 95. Here a pilot of two strata (the largest units
and the rest) is patched in random contexts, and a model of the error's size is fitted from what the gradient knows of a
cell: e = m w + τ w (√ρ a_u + √(1 − ρ) ε), w from a ridge of log e² on the cell's sums, m and τ pooled in a stratum, a_u
shared by the cells of a unit. Further cells go where they can decide who is among the largest. Patched cells count as
they are, the others by what the model says of them.

The promise is about units together: of the units of a stratum, 95 % contain their exact value over *these* tokens. The
sampling of contexts is another error, and to be added. Oracle: exhaustive patching, benchmarks/layer_coverage.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

OUTCOMES = ("absolute", "signed")
LARGEST = 128  # units of the first stratum
PILOT_CONTEXTS = 6  # of each unit of the pilot
RIDGE = 0.01
BINS = 4
FLOOR = 0.1  # of a unit's mean w: what a cell's w is at least
Z = 1.959964  # of a 95 % interval

Patch = Callable[[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]], Float[np.ndarray, "2 cell"]]
"""Takes units and contexts of some cells, and returns their exact sums of |Δ| and of Δ."""


@dataclass(frozen=True, kw_only=True)
class ErrorModel:
    """What the pilot says about the residuals of unpatched cells, for one outcome."""

    w: Float[np.ndarray, "context unit"]  # scale of the residual by what is known of the cell
    mean: Float[np.ndarray, " unit"]  # m of the unit's stratum
    mean_se: Float[np.ndarray, " unit"]
    spread: Float[np.ndarray, "context unit"]  # τ w
    shared: Float[np.ndarray, " unit"]  # ρ of the unit's stratum


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Mean effects with intervals of approximation, in nats per token; the first axis is `OUTCOMES`."""

    estimate: Float[np.ndarray, "outcome unit"]
    half_width: Float[np.ndarray, "outcome unit"]  # zero where every cell was patched
    known: Bool[np.ndarray, "context unit"]  # which cells were patched
    undecided: Int[np.ndarray, " some"]  # units whose interval of mean |Δ| holds the border of the largest
    rank: int  # how many are the largest

    @property
    def exact(self) -> Bool[np.ndarray, " unit"]:
        """Whether every cell of a unit was patched."""
        return self.known.all(0)


def certify(
    sums: Mapping[str, Float[np.ndarray, "context unit"]],
    n_tokens: int,
    patch: Patch,
    rng: np.random.Generator,
    *,
    n_cells: int,
    rank: int = 50,
    flagged: Bool[np.ndarray, " unit"] | None = None,
) -> Certificate:
    """Patch about `n_cells` cells, half of them as a pilot, and return estimates with intervals.

    `sums` has at least the outcomes, other sums predict errors (`first_order.SUMS`). Flagged units are patched in all
    contexts besides, and take no part in the calibration.
    """
    estimated = np.stack([sums[name] for name in OUTCOMES]).astype(np.float64)
    _, n_contexts, n_units = estimated.shape
    flagged = np.zeros(n_units, bool) if flagged is None else flagged
    strata = strata_of(np.abs(estimated[0]).sum(0), flagged)
    known, residual = np.zeros((n_contexts, n_units), bool), np.zeros_like(estimated)

    def learn(chosen: Bool[np.ndarray, "context unit"]) -> None:
        contexts, units = np.nonzero(chosen & ~known)
        if len(units):
            residual[:, contexts, units] = patch(units, contexts) - estimated[:, contexts, units]
            known[contexts, units] = True

    if n_cells >= (~flagged).sum() * n_contexts:
        learn(np.ones_like(known))
    else:
        learn(np.broadcast_to(flagged, known.shape))
        pilot = pilot_cells(strata, n_contexts, n_cells // 2, rng)
        learn(pilot)
        features = log_features(sums)
        models = [error_model(of, features, pilot, strata) for of in residual]
        n_left = n_cells - int(known[:, ~flagged].sum())
        learn(most_useful(estimated[0], residual[0], known, models[0], n_left, rank))
    if known.all():
        total, half = (estimated + residual).sum(1), np.zeros((2, n_units))
    else:
        predicted = [predict(of, known, model) for of, model in zip(residual, models, strict=True)]
        total = estimated.sum(1) + np.stack([mean for mean, _ in predicted])
        half = Z * np.sqrt(np.stack([variance for _, variance in predicted]))
    estimate, half_width = total / n_tokens, half / n_tokens
    return Certificate(
        estimate=estimate,
        half_width=half_width,
        known=known,
        undecided=undecided_units(estimate[0], half_width[0], rank),
        rank=rank,
    )


def strata_of(size: Float[np.ndarray, " unit"], flagged: Bool[np.ndarray, " unit"]) -> Int[np.ndarray, " unit"]:
    """Return 0 for the largest units, 1 for the rest and −1 for flagged ones."""
    order = np.argsort(np.where(flagged, -np.inf, size), kind="stable")[::-1]
    strata = np.ones(len(size), int)
    strata[order[: min(LARGEST, (~flagged).sum() // 2)]] = 0
    strata[flagged] = -1
    return strata


def pilot_cells(
    strata: Int[np.ndarray, " unit"], n_contexts: int, n_cells: int, rng: np.random.Generator
) -> Bool[np.ndarray, "context unit"]:
    """Draw units of both strata, as many of each, and random contexts for every one."""
    chosen = np.zeros((n_contexts, len(strata)), bool)
    of_each = min(PILOT_CONTEXTS, n_contexts)
    for stratum in (0, 1):
        members = np.flatnonzero(strata == stratum)
        n = min(len(members), max(2, n_cells // (2 * of_each)))
        for unit in rng.permutation(members)[:n]:
            chosen[rng.permutation(n_contexts)[:of_each], unit] = True
    return chosen


def log_features(sums: Mapping[str, Float[np.ndarray, "context unit"]]) -> Float[np.ndarray, "feature context unit"]:
    """Return logarithms of what is known of a cell, standardised over all cells."""
    logs = []
    for values in (np.abs(value) for value in sums.values()):
        log = np.log(values + 1e-3 * values.mean() + 1e-300)
        if log.std() > 1e-9:
            logs.append((log - log.mean()) / log.std())
    return np.stack(logs) if logs else np.zeros((0, *next(iter(sums.values())).shape))


def error_model(
    residual: Float[np.ndarray, "context unit"],
    features: Float[np.ndarray, "feature context unit"],
    pilot: Bool[np.ndarray, "context unit"],
    strata: Int[np.ndarray, " unit"],
) -> ErrorModel:
    """Fit the size of residuals on the pilot, then mean, spread and what cells of a unit share, in each stratum."""
    w = error_scale(residual, features, pilot)
    mean, mean_se, shared = np.zeros((3, len(strata)))
    spread = np.zeros_like(w)
    for stratum in (0, 1):
        members = strata == stratum
        cells = pilot & members
        if not cells.any():
            continue
        m, se = pooled_mean(residual[cells], w[cells])
        mean[members], mean_se[members] = m, se
        ratio = np.where(cells, residual / w - m, 0.0)
        tau = spread_by_scale(ratio[cells], w[cells], w[:, members])
        spread[:, members] = tau * w[:, members]
        standard = np.where(cells, (residual - m * w) / np.where(spread > 0, spread, 1.0), 0.0)
        shared[members] = shared_part(standard[:, members], cells[:, members])
    return ErrorModel(w=w, mean=mean, mean_se=mean_se, spread=spread, shared=shared)


def error_scale(
    residual: Float[np.ndarray, "context unit"],
    features: Float[np.ndarray, "feature context unit"],
    pilot: Bool[np.ndarray, "context unit"],
) -> Float[np.ndarray, "context unit"]:
    """Return w of every cell by a ridge of log e² on the features of the pilot's cells."""
    x, e2 = features[:, pilot], residual[pilot] ** 2
    y = np.log(e2 + 1e-6 * e2.mean() + 1e-300)
    centre = x.mean(1, keepdims=True)
    gram = (x - centre) @ (x - centre).T + RIDGE * x.shape[1] * np.eye(len(x))
    slope = np.linalg.solve(gram, (x - centre) @ (y - y.mean()))
    w = np.exp((np.tensordot(slope, features - centre[..., None], 1) + y.mean()) / 2)
    return np.maximum(w, FLOOR * w.mean(0))


def pooled_mean(residual: Float[np.ndarray, " cell"], w: Float[np.ndarray, " cell"]) -> tuple[float, float]:
    """Return Σe/Σw, shrunk by how much of it is noise, and its standard error."""
    m = residual.sum() / w.sum()
    se = float(np.sqrt(np.square(residual - m * w).sum()) / w.sum())
    return float(m * max(0.0, 1 - (se / m) ** 2)) if m else 0.0, se


def spread_by_scale(
    ratio: Float[np.ndarray, " cell"], w: Float[np.ndarray, " cell"], everywhere: Float[np.ndarray, "context unit"]
) -> Float[np.ndarray, "context unit"]:
    """Return τ of every cell, pooled over cells of similar w and never falling with w, a little on the safe side."""
    order = np.argsort(w, kind="stable")
    tau2, border = [], []
    for part in np.array_split(order, min(BINS, len(order))):
        tau2.append(np.square(ratio[part]).mean() * (1 + 2 / np.sqrt(len(part))))
        border.append(w[part].max())
    tau2 = np.maximum.accumulate(tau2)
    return np.sqrt(tau2[np.searchsorted(border[:-1], everywhere)])


def shared_part(standard: Float[np.ndarray, "context unit"], cells: Bool[np.ndarray, "context unit"]) -> float:
    """Return the mean correlation of two cells of a unit, plus its standard error, between 0 and 1."""
    k = cells.sum(0)
    several = k > 1
    if several.sum() < 2:
        return 1.0
    s, k = standard[:, several], k[several]
    products = (s.sum(0) ** 2 - np.square(s).sum(0)) / (k * (k - 1))
    scale = np.square(s).sum() / k.sum()
    rho = (products.mean() + products.std(ddof=1) / np.sqrt(len(k))) / max(scale, 1e-300)
    return float(np.clip(rho, 0, 1))


def predict(
    residual: Float[np.ndarray, "context unit"], known: Bool[np.ndarray, "context unit"], model: ErrorModel
) -> tuple[Float[np.ndarray, " unit"], Float[np.ndarray, " unit"]]:
    """Return each unit's expected sum of residuals and its variance, given the cells that were patched."""
    rest = ~known
    rho, spread = model.shared, model.spread
    standard = np.where(known, (residual - model.mean * model.w) / np.where(spread > 0, spread, 1.0), 0.0)
    k = known.sum(0)
    own = rho / np.maximum(1 - rho + k * rho, 1e-12) * standard.sum(0)  # what known cells say about the others
    w_rest, spread_rest = np.where(rest, model.w, 0.0).sum(0), np.where(rest, spread, 0.0).sum(0)
    mean = np.where(known, residual, 0.0).sum(0) + model.mean * w_rest + own * spread_rest
    left = rho * (1 - rho) / np.maximum(1 - rho + k * rho, 1e-12)
    left = np.where(k > 0, left, rho)
    variance = (1 - rho) * np.square(np.where(rest, spread, 0.0)).sum(0) + left * spread_rest**2
    return mean, variance + np.square(model.mean_se * w_rest)


def most_useful(
    estimated: Float[np.ndarray, "context unit"],
    residual: Float[np.ndarray, "context unit"],
    known: Bool[np.ndarray, "context unit"],
    model: ErrorModel,
    n_cells: int,
    rank: int,
) -> Bool[np.ndarray, "context unit"]:
    """Choose the cells whose error is large and whose unit is near the border of the largest."""
    mean, variance = predict(residual, known, model)
    total, sd = estimated.sum(0) + mean, np.sqrt(variance)
    distance = np.abs(total - border_of(total, rank)) / np.where(sd > 0, 2 * sd, np.inf)
    use = np.where(known, -1.0, model.spread * np.exp(-distance))
    chosen = np.zeros(known.size, bool)
    chosen[np.argsort(-use, axis=None, kind="stable")[: max(0, n_cells)]] = True
    return chosen.reshape(known.shape) & ~known


def border_of(values: Float[np.ndarray, " unit"], rank: int) -> float:
    """Return the value halfway between the last of the `rank` largest and the next; −∞ if there is no next."""
    ordered = np.sort(values)[::-1]
    return float(ordered[rank - 1 : rank + 1].mean()) if rank < len(values) else -np.inf


def undecided_units(
    estimate: Float[np.ndarray, " unit"], half_width: Float[np.ndarray, " unit"], rank: int
) -> Int[np.ndarray, " some"]:
    """Return the units whose interval holds the border of the largest."""
    return np.flatnonzero(np.abs(estimate - border_of(estimate, rank)) < half_width)
