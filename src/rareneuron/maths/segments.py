r"""Where a rank curve is straight, what lies above that line at its left and below at its right (Eq. 7, 8).

Breaks are sought on κ(u) by exact dynamic programming (ruptures), then moved and counted on the *normalised spacings*
D_r = r (y_r − y_{r+1}). For a sample from a density whose log-log curve has slope −κ(r) these are independent and
exponential with mean κ(r) (Rényi), while samples of κ(u) share their ranks with all others within a factor e. The
curves of half-normal, exponential, lognormal and Weibull samples bend down everywhere: seen from a line through their
middle they lie *below* at both ends. A plateau is a lift above the line, so it needs a place where the curve is convex.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ruptures
from jaxtyping import Float, Int

from rareneuron.maths.rank_curve import GRID_STEP, LocalSlope

MOST_BREAKS = 3  # plateau | fall to the line | power law | decay
SHORTEST = 0.5  # of a segment on κ(u), in log rank: less can't be seen through Eq. 7
FIRST_RANK = 4  # κ(u) left of it rests on a handful of neurons
LOOK_AHEAD = np.linspace(0.0, 1.0, 5)  # a bend on the curve lies up to a factor e right of its break on κ
SMALLEST_PLATEAU = 4  # neurons: fewer are outliers, not a phase
NARROWEST = 1.5  # log width of a power law: a factor 4.5 in rank
GUARD = 1.3  # factor in rank kept clear at both ends of the fit: measurement noise smears bends
EDGE = 0.7  # δ is tested over the last 30 % of a plateau's ranks, where a lift is seen best against sampling noise
STRAIGHT = 2.5  # standard errors by which a straight middle may steepen: one in 160
BELOW = 1.96  # sampling errors below the line at which decay starts
TINY = 1e-12  # slope of ties, whose logarithm is taken


@dataclass(frozen=True, kw_only=True)
class Line:
    """y = β − κ log rank, by least squares over ranks `first` … `last`."""

    kappa: float
    beta: float
    r_squared: float
    first: int
    last: int

    def at(self, rank: Int[np.ndarray, " rank"] | Float[np.ndarray, "*ranks"]) -> Float[np.ndarray, "*ranks"]:
        """log|Δ| that the power law predicts."""
        return self.beta - self.kappa * np.log(rank)


@dataclass(frozen=True, kw_only=True)
class Segments:
    """One curve, taken apart. Statistics are free of scale: multiplying y by a constant changes none of them."""

    breaks: tuple[int, ...]  # ranks; the number is chosen, 0 allowed
    line: Line
    plateau_end: int  # of the best candidate, whether or not it is one
    decay_start: int | None
    lift: float  # of that candidate: signed root of a likelihood ratio; 0 where nothing rises above the line
    bend: float  # standard errors by which the middle steepens
    fall: float  # log likelihood gained by another slope from the decay on


class Spacings:
    """Sums over ranks of one curve, so that any fit over a range of ranks costs a few subtractions."""

    def __init__(self, y: Float[np.ndarray, " rank"]) -> None:
        self.n, self.y = len(y), y
        self.u, self._rank_sums = rank_sums(self.n)
        self.D = np.arange(1, self.n) * -np.diff(y)
        self._sums = sums_from_zero(np.stack([y, y * self.u]))
        self._sum_D = sums_from_zero(self.D)

    def log_likelihood(
        self, first: np.ndarray | int, last: np.ndarray | int
    ) -> Float[np.ndarray, "*ends"] | np.floating:
        """Of exponential spacings with one mean between ranks `first` and `last`."""
        n = np.subtract(last, first)
        mean = (self._sum_D[np.subtract(last, 1)] - self._sum_D[np.subtract(first, 1)]) / n
        return -n * (np.log(np.maximum(mean, TINY)) + 1)

    def means(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Means of y, yu, u, u² over ranks first … last."""
        before, n = first - 1, last - first + 1
        of_y = (self._sums[:, last] - self._sums[:, before]) / n
        of_rank = (self._rank_sums[:, last] - self._rank_sums[:, before]) / n
        return np.concatenate([of_y, of_rank])

    def line(self, first: int, last: int) -> Line:
        """Least squares over ranks first … last."""
        u, y = self.u[first - 1 : last], self.y[first - 1 : last]
        du, dy = u - u.mean(), y - y.mean()
        kappa = float(-(du @ dy) / (du @ du))
        explained = kappa**2 * (du @ du) / max(dy @ dy, TINY)
        return Line(kappa=kappa, beta=float(y.mean() + kappa * u.mean()), r_squared=explained, first=first, last=last)

    def bend(self, first: int, last: int) -> float:
        """Score test of a slope that grows with log rank, in standard errors of exponential spacings."""
        D, u = self.D[first - 1 : last - 1], self.u[first - 1 : last - 1]
        u = u - u.mean()
        return float((D / max(D.mean(), TINY)) @ u / np.sqrt(u @ u))

    def plateau(self, last: int) -> tuple[int, float]:
        r"""The end p of the best plateau left of a line that ends at rank `last`, and its statistic.

        With $x = \bar\delta / \kappa$ over ranks EDGE·p … p, $\sqrt{2p(x - \log(1 + x))}$: the signed root of the
        likelihood ratio of p exponential spacings, whose null distribution hardly depends on p (x √p is skewed where
        p is small, and would hand every null's maximum to the smallest p). δ must be positive over 1 … p as a whole.
        """
        p = np.arange(SMALLEST_PLATEAU, largest_plateau(last) + 1)
        y, yu, u, uu = self.means(np.ceil(p * GUARD).astype(int) + 1, np.full_like(p, last))
        kappa = np.maximum(-(yu - y * u) / (uu - u * u), TINY)
        edge = np.floor(p * EDGE).astype(int) + 1
        mean_y, _, mean_u, _ = self.means(np.stack([np.ones_like(p), edge]), np.stack([p, p]))
        whole, at_edge = mean_y - y + kappa * (mean_u - u)
        x = np.where(whole > 0, np.maximum(at_edge, 0) / kappa, 0)
        lift = np.sqrt(2 * p * (x - np.log1p(x)))
        best = int(np.argmax(lift))
        return int(p[best]), float(lift[best])


def sums_from_zero(x: Float[np.ndarray, "*rows rank"]) -> Float[np.ndarray, "*rows ranks"]:
    """Sums over the first 0, 1, 2, … ranks."""
    return np.cumsum(np.concatenate([np.zeros_like(x[..., :1]), x], axis=-1), axis=-1)


@lru_cache(maxsize=4)
def rank_sums(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Log ranks 1 … n, and the sums of them and their squares."""
    u = np.log(np.arange(1, n + 1))
    return u, sums_from_zero(np.stack([u, u * u]))


def largest_plateau(last: int) -> int:
    """Ranks that leave a power law of the least width between a plateau and rank `last`."""
    return int(last / np.exp(NARROWEST) / GUARD)


def candidate_breaks(
    spacings: Spacings, log_rank: Float[np.ndarray, " grid"], kappa: Float[np.ndarray, " grid"]
) -> tuple[tuple[int, ...], list[int]]:
    """Breaks of the chosen number, and every break that any number up to the most proposes.

    Exact dynamic programming on log κ (noise in κ is proportional to it). Each break then moves to where the
    spacings' likelihood wants it, within the factor e that Eq. 7 looks ahead. The number minimises BIC on the
    spacings: a place and a level per break, N independent observations.
    """
    seen = np.isfinite(kappa) & (log_rank >= np.log(FIRST_RANK))
    grid, signal = log_rank[seen], np.log(np.maximum(kappa[seen], TINY))
    search = ruptures.KernelCPD(kernel="linear", min_size=round(SHORTEST / GRID_STEP)).fit(signal[:, None])
    chosen: tuple[int, ...] = ()
    best, proposed = -2 * spacings.log_likelihood(1, spacings.n), set()
    for number in range(1, MOST_BREAKS + 1):
        at = grid[np.array(search.predict(n_bkps=number)[:-1])]
        places = [1, *np.round(np.exp(at + LOOK_AHEAD.mean())).astype(int).tolist(), spacings.n]
        for i in [*range(1, number + 1)] * min(number, 2):  # twice where neighbours bound each other
            left, right = places[i - 1], places[i + 1]
            moved = np.clip(np.round(np.exp(at[i - 1] + LOOK_AHEAD)).astype(int), left + 2, right - 2)
            ends = np.stack([np.full_like(moved, left), moved, np.full_like(moved, right)])
            places[i] = int(moved[np.argmax(spacings.log_likelihood(ends[:-1], ends[1:]).sum(0))])
        likelihood = spacings.log_likelihood(np.array(places[:-1]), np.array(places[1:])).sum()
        bic = -2 * likelihood + 2 * number * np.log(spacings.n)
        proposed.update(places[1:-1])
        if bic < best:
            best, chosen = bic, tuple(places[1:-1])
    return chosen, sorted(proposed, reverse=True)


def segments(y: Float[np.ndarray, " rank"], slope: LocalSlope) -> Segments:
    """The widest straight middle, its line, and the candidates for plateau and decay beside it.

    A middle ends at a proposed break, or at the last rank; the rightmost end that leaves it straight is taken, or the
    straightest where none does.
    """
    spacings = Spacings(y)
    breaks, proposed = candidate_breaks(spacings, slope.log_rank, slope.kappa)
    found = []
    for end in [spacings.n, *proposed]:
        last = end if end == spacings.n else int(end / GUARD)
        if largest_plateau(last) < SMALLEST_PLATEAU:
            break
        plateau_end, lift = spacings.plateau(last)
        first = int(np.ceil(plateau_end * GUARD)) + 1
        found.append((spacings.bend(first, last), end, first, last, plateau_end, lift))
        if found[-1][0] < STRAIGHT:
            break
    bend, end, first, last, plateau_end, lift = min(found) if min(found)[0] >= STRAIGHT else found[-1]
    line = spacings.line(first, last)
    apart = spacings.log_likelihood(first, end) + spacings.log_likelihood(end, spacings.n) if end < spacings.n else None
    return Segments(
        breaks=breaks,
        line=line,
        plateau_end=plateau_end,
        decay_start=None if apart is None else decay_start(y, line),
        lift=lift,
        bend=bend,
        fall=0.0 if apart is None else float(apart - spacings.log_likelihood(first, spacings.n)),
    )


def decay_start(y: Float[np.ndarray, " rank"], line: Line) -> int | None:
    """The first rank from which on the curve stays below the line by more than a sample's noise, κ/√rank."""
    rank = np.arange(line.last, len(y) + 1)
    near = y[line.last - 1 :] - line.at(rank) >= -BELOW * line.kappa / np.sqrt(rank)
    start = int(rank[near][-1]) + 1 if near.any() else line.last
    return start if start <= len(y) else None
