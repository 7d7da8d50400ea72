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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from rareneuron.maths.significance import Z

OUTCOMES = ("absolute", "signed")
LARGEST = 128  # units of the first stratum
PILOT_CONTEXTS = 6  # of each unit of the pilot
RIDGE = 0.01
BINS = 4
LEAST_CELLS = 512  # whatever the share: half are the pilot, from which a model of errors is fitted
FLOOR = 0.1  # of a unit's mean w: what a cell's w is at least
PILOT_CELLS = 2 * LARGEST * PILOT_CONTEXTS  # at most, however large the budget
ROUNDS = 8  # in which the other cells are patched, with a look at what is decided before each
Z_DECIDED = 3.29  # standard deviations from the border at which a unit counts as decided: one in a thousand is wrong

FAR = 0.2  # of the residual stream's median length: a move that a gradient can't be trusted with
DOUBT = 2.0  # how many times its estimate the effect of a unit that moves far may be

Patch = Callable[[Int[np.ndarray, " cell"], Int[np.ndarray, " cell"]], Float[np.ndarray, "outcome cell"]]
"""Takes units and contexts of some cells; returns their exact sums of |Δ| and of Δ, for each kind of token in turn."""


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """What is estimated of one kind of token: sums over the tokens of every context, by name."""

    sums: Mapping[str, Float[np.ndarray, "context unit"]]  # the outcomes; others predict errors (`first_order.SUMS`)
    n_tokens: int

    @property
    def outcomes(self) -> Float[np.ndarray, "2 context unit"]:
        """Return the sums of |Δ| and of Δ."""
        return np.stack([self.sums[name] for name in OUTCOMES]).astype(np.float64)


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
    """Mean effects with intervals of approximation, in nats per token; outcomes are |Δ| and Δ of each kind of token."""

    estimate: Float[np.ndarray, "outcome unit"]
    half_width: Float[np.ndarray, "outcome unit"]  # zero where every cell was patched
    by_context: Float[np.ndarray, "outcome context unit"]  # sums: exact where patched, else the best prediction
    residual: Float[np.ndarray, "outcome context unit"]  # exact − estimated of patched cells, zero elsewhere
    known: Bool[np.ndarray, "context unit"]  # which cells were patched
    undecided: Int[np.ndarray, " some"]  # units whose mean |Δ| may lie on either side of the border of the largest
    rank: int  # how many are the largest

    @property
    def exact(self) -> Bool[np.ndarray, " unit"]:
        """Whether every cell of a unit was patched."""
        return np.all(self.known, axis=0)


def certify(
    kinds: Sequence[Estimated],
    patch: Patch,
    rng: np.random.Generator,
    *,
    n_cells: int,
    rank: int = 50,
    flagged: Bool[np.ndarray, " unit"] | None = None,
    layer: Int[np.ndarray, " unit"] | None = None,
    enough: Float[np.ndarray, " unit"] | None = None,
) -> Certificate:
    """Patch at most `n_cells` cells, up to half of them as a pilot, and return estimates with intervals.

    Cells are chosen by mean |Δ| of the first kind of token, and serve all. Patching ends early where no unit is
    undecided at `rank`, or where every undecided unit's standard deviation is at most `enough` (nats per token).
    Flagged units are patched in all contexts besides, and take no part in the calibration. `layer` lets units of
    several layers have errors of different sizes.
    """
    work = Verification(kinds, patch, flagged)
    if n_cells >= (~work.flagged).sum() * work.shape[0]:
        work.learn(np.ones(work.shape, bool))
        predicted = [Prediction(by_context=of, variance=np.zeros(work.shape[1])) for of in work.residual]
        return certificate_of(kinds, work, predicted, rank)
    work.learn(np.broadcast_to(work.flagged, work.shape))
    strata = strata_of(np.abs(work.estimated[0]).sum(0), work.flagged)
    pilot = pilot_cells(strata, work.shape[0], min(n_cells // 2, PILOT_CELLS), rng)
    work.learn(pilot)
    features = [log_features(kind.sums, layer) for kind in kinds]
    models = [error_model(of, features[i // 2], pilot, strata) for i, of in enumerate(work.residual)]
    n_left = n_cells - int(pilot.sum())
    for n_now in np.diff(np.linspace(0, n_left, ROUNDS + 1).astype(int)):
        if not is_open(work, models[0], kinds[0].n_tokens, rank, enough):
            break
        work.learn(most_useful(work.estimated[0], work.residual[0], work.known, models[0], int(n_now), rank))
    predicted = [predict(of, work.known, model) for of, model in zip(work.residual, models, strict=True)]
    return certificate_of(kinds, work, predicted, rank)


def cells_allowed(share: float, n_cells: int) -> int:
    """Return how many of the cells may be patched: the share, but no fewer than `LEAST_CELLS` where there are as many.

    16 cells for 219 heads of SmolLM2 gave intervals of up to 16 nats, and moved means by as much as their size.
    """
    return max(round(share * n_cells), min(LEAST_CELLS, n_cells))


class Verification:
    """What is estimated, and what patching has shown so far."""

    def __init__(self, kinds: Sequence[Estimated], patch: Patch, flagged: Bool[np.ndarray, " unit"] | None) -> None:
        self.estimated = np.concatenate([kind.outcomes for kind in kinds])
        self.shape = self.estimated.shape[1:]
        self.flagged = np.zeros(self.shape[1], bool) if flagged is None else flagged
        self.known, self.residual = np.zeros(self.shape, bool), np.zeros_like(self.estimated)
        self.patch = patch

    def learn(self, chosen: Bool[np.ndarray, "context unit"]) -> None:
        """Patch the chosen cells that aren't known."""
        contexts, units = np.nonzero(chosen & ~self.known)
        if len(units):
            self.residual[:, contexts, units] = self.patch(units, contexts) - self.estimated[:, contexts, units]
            self.known[contexts, units] = True


def is_open(
    work: Verification, model: "ErrorModel", n_tokens: int, rank: int, enough: Float[np.ndarray, " unit"] | None
) -> bool:
    """Return whether patching more could still decide something that matters."""
    if enough is None:
        return True
    predicted = predict(work.residual[0], work.known, model)
    estimate = (work.estimated[0] + predicted.by_context).sum(0) / n_tokens
    sd = np.sqrt(predicted.variance) / n_tokens
    undecided = undecided_units(estimate, Z_DECIDED * sd, rank)
    return bool((sd[undecided] > enough[undecided]).any())


def certificate_of(
    kinds: Sequence[Estimated], work: Verification, predicted: "Sequence[Prediction]", rank: int
) -> Certificate:
    """Add the predicted residuals to the estimates, and say which units are undecided."""
    n_tokens = np.repeat([kind.n_tokens for kind in kinds], 2)[:, None]
    by_context = work.estimated + np.stack([of.by_context for of in predicted])
    estimate = by_context.sum(1) / n_tokens
    half_width = Z * np.sqrt(np.stack([of.variance for of in predicted])) / n_tokens
    return Certificate(
        estimate=estimate,
        half_width=half_width,
        by_context=by_context,
        residual=work.residual,
        known=work.known,
        undecided=undecided_units(estimate[0], half_width[0] * (Z_DECIDED / Z), rank),
        rank=rank,
    )


def in_doubt(
    absolute: Float[np.ndarray, "context unit"],
    move: Float[np.ndarray, "context unit"],
    length: Float[np.ndarray, " unit"] | float,
    rank: int = 50,
) -> Bool[np.ndarray, " unit"]:
    """Return which units to patch in every context: they move far, and may be among the `rank` largest.

    `absolute` are estimated sums of |Δ|, `move` the longest move in a context, `length` that of the residual stream.
    Units that move far and are small stay in the calibration, which knows their moves.
    """
    size = absolute.sum(0)
    return (move.max(0) > FAR * np.asarray(length)) & (DOUBT * size >= border_of(size, rank))


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


def log_features(
    sums: Mapping[str, Float[np.ndarray, "context unit"]], layer: Int[np.ndarray, " unit"] | None = None
) -> Float32[np.ndarray, "feature context unit"]:
    """Return logarithms of what is known of a cell, standardised over all cells, and which layer it is of."""
    shape = next(iter(sums.values())).shape
    logs = []
    for values in (np.abs(value) for value in sums.values()):
        log = np.log(values + 1e-3 * values.mean() + 1e-300)
        if log.std() > 1e-9:
            logs.append(((log - log.mean()) / log.std()).astype(np.float32))
    layers = np.unique(layer)[1:] if layer is not None else np.zeros(0, int)
    logs += [np.broadcast_to((layer == one).astype(np.float32), shape) for one in layers]
    return np.stack(logs) if logs else np.zeros((0, *shape), np.float32)


def error_model(
    residual: Float[np.ndarray, "context unit"],
    features: Float32[np.ndarray, "feature context unit"],
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
    features: Float32[np.ndarray, "feature context unit"],
    pilot: Bool[np.ndarray, "context unit"],
) -> Float[np.ndarray, "context unit"]:
    """Return w of every cell by a ridge of log e² on the features of the pilot's cells."""
    x, e2 = features[:, pilot].astype(np.float64), residual[pilot] ** 2
    y = np.log(e2 + 1e-6 * e2.mean() + 1e-300)
    centre = x.mean(1, keepdims=True)
    gram = (x - centre) @ (x - centre).T + RIDGE * x.shape[1] * np.eye(len(x))
    slope = np.linalg.solve(gram, (x - centre) @ (y - y.mean()))
    w = np.exp((np.tensordot(slope, features, 1) - slope @ centre[:, 0] + y.mean()) / 2)
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
    rising = np.maximum.accumulate(tau2)
    return np.sqrt(rising[np.searchsorted(border[:-1], everywhere)])


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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The residuals of all cells, as they are where they are known and expected elsewhere."""

    by_context: Float[np.ndarray, "context unit"]
    variance: Float[np.ndarray, " unit"]  # of a unit's sum


def predict(
    residual: Float[np.ndarray, "context unit"], known: Bool[np.ndarray, "context unit"], model: ErrorModel
) -> Prediction:
    """Expect of a unit's other cells what the model says, given the cells that were patched."""
    rho, spread = model.shared, model.spread
    standard = np.where(known, (residual - model.mean * model.w) / np.where(spread > 0, spread, 1.0), 0.0)
    k = known.sum(0)
    shrunk = np.maximum(1 - rho + k * rho, 1e-12)
    own = rho / shrunk * standard.sum(0)  # what the unit shares, as its known cells show it
    left = np.where(k > 0, rho * (1 - rho) / shrunk, rho)  # the variance of that, given them
    w_rest, spread_rest = np.where(known, 0.0, model.w), np.where(known, 0.0, spread)
    variance = (1 - rho) * np.square(spread_rest).sum(0) + left * spread_rest.sum(0) ** 2
    return Prediction(
        by_context=np.where(known, residual, model.mean * w_rest + own * spread_rest),
        variance=variance + np.square(model.mean_se * w_rest.sum(0)),
    )


def most_useful(
    estimated: Float[np.ndarray, "context unit"],
    residual: Float[np.ndarray, "context unit"],
    known: Bool[np.ndarray, "context unit"],
    model: ErrorModel,
    n_cells: int,
    rank: int,
) -> Bool[np.ndarray, "context unit"]:
    """Choose the cells whose error is large and whose unit is near the border of the largest."""
    predicted = predict(residual, known, model)
    total, sd = (estimated + predicted.by_context).sum(0), np.sqrt(predicted.variance)
    border = border_of(total, rank)
    distance = np.abs(total - border) / np.where(sd > 0, 2 * sd, np.inf) if np.isfinite(border) else np.zeros_like(sd)
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
