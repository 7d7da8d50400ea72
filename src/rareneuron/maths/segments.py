r"""Where a rank curve is straight, what lies above that line at its left and below at its right (Eq. 7, 8).

Breaks are sought on κ(u) by exact dynamic programming (ruptures), then moved and counted on the *normalised spacings*
D_r = r (y_r − y_{r+1}). For a sample from a density whose log-log curve has slope −κ(r) these are independent and
exponential with mean κ(r) (Rényi), while samples of κ(u) share their ranks with all others within a factor e. The
curves of half-normal, exponential, lognormal and Weibull samples bend down everywhere: seen from a line through their
middle they lie *below* at both ends. A plateau is a lift above the line, so it needs a place where the curve is convex.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
RANKS_AT_ONCE = 2**17  # of curves that are searched together: their sums stay in cache

Middle = tuple[float, int, int, int, int, float]  # bend, end of the middle, first and last of its line, plateau, lift


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
    """Sums over ranks of one curve, or of many of a length, so that any fit over a range of ranks costs a few
    subtractions. Many are searched at once since each alone is a few numbers, for which numpy is slow.
    """

    def __init__(self, y: Float[np.ndarray, "*curves rank"]) -> None:
        self.y = np.atleast_2d(y)
        self.n = y.shape[-1]
        self.u, self._rank_sums = rank_sums(self.n)
        self.D = np.arange(1, self.n) * -np.diff(self.y)
        self._sums = sums_from_zero(np.stack([self.y, self.y * self.u]))
        self._sum_D = sums_from_zero(self.D)

    def log_likelihood(self, first: Any, last: Any, curve: int | None = None) -> Any:
        """Of exponential spacings with one mean between ranks `first` and `last`: [curve, end], or of one curve."""
        n, of = last - first, np.arange(len(self.y))[:, None] if curve is None else curve
        mean = (self._sum_D[of, last - 1] - self._sum_D[of, first - 1]) / n
        return -n * (np.log(np.maximum(mean, TINY)) + 1)

    def means(
        self, curve: Int[np.ndarray, "some 1"], first: np.ndarray, last: np.ndarray
    ) -> Float[np.ndarray, "4 some end"]:
        """Means of y, yu, u, u² over ranks first … last of some of the curves."""
        before, n = first - 1, last - first + 1
        of_y = (self._sums[:, curve, last] - self._sums[:, curve, before]) / n
        of_rank = (self._rank_sums[:, last] - self._rank_sums[:, before]) / n
        return np.concatenate([of_y, of_rank])

    def line(self, first: int, last: int, curve: int = 0) -> Line:
        """Least squares over ranks first … last of one curve."""
        u, y = self.u[first - 1 : last], self.y[curve, first - 1 : last]
        du, dy = u - u.mean(), y - y.mean()
        kappa = float(-(du @ dy) / (du @ du))
        explained = kappa**2 * (du @ du) / max(dy @ dy, TINY)
        return Line(kappa=kappa, beta=float(y.mean() + kappa * u.mean()), r_squared=explained, first=first, last=last)

    def bend(self, first: int, last: int, curve: int = 0) -> float:
        """Score test of a slope that grows with log rank, in standard errors of exponential spacings."""
        D, u = self.D[curve, first - 1 : last - 1], self.u[first - 1 : last - 1]
        u = u - u.mean()
        return float((D / max(D.mean(), TINY)) @ u / np.sqrt(u @ u))

    def plateau(self, last: int, curve: int = 0) -> tuple[int, float]:
        """The end of the best plateau left of a line that ends at rank `last`, and its statistic (`plateaus`)."""
        end, lift = self.plateaus(np.array([curve]), np.array([last]))
        return int(end[0]), float(lift[0])

    def plateaus(
        self, curve: Int[np.ndarray, " some"], last: Int[np.ndarray, " some"]
    ) -> tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"]]:
        r"""The end p of the best plateau left of each line that ends at rank `last`, and its statistic.

        With $x = \bar\delta / \kappa$ over ranks EDGE·p … p, $\sqrt{2p(x - \log(1 + x))}$: the signed root of the
        likelihood ratio of p exponential spacings, whose null distribution hardly depends on p (x √p is skewed where
        p is small, and would hand every null's maximum to the smallest p). δ must be positive over 1 … p as a whole.
        """
        largest = np.array([largest_plateau(rank) for rank in last.tolist()])
        # A curve with room for fewer ends meets its last one again, which never is a first maximum.
        p = np.minimum(np.arange(SMALLEST_PLATEAU, largest.max() + 1), largest[:, None])
        curve, last = curve[:, None], last[:, None]
        y, yu, u, uu = self.means(curve, np.ceil(p * GUARD).astype(int) + 1, np.broadcast_to(last, p.shape))
        kappa = np.maximum(-(yu - y * u) / (uu - u * u), TINY)
        mean_y, _, mean_u, _ = self.means(curve, np.ones_like(p), p)
        edge_y, _, edge_u, _ = self.means(curve, np.floor(p * EDGE).astype(int) + 1, p)
        whole, at_edge = mean_y - y + kappa * (mean_u - u), edge_y - y + kappa * (edge_u - u)
        x = np.where(whole > 0, np.maximum(at_edge, 0) / kappa, 0)
        lift = np.sqrt(2 * p * (x - np.log1p(x)))
        row, best = np.arange(len(p)), np.argmax(lift, axis=1)
        return p[row, best], lift[row, best]


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


def candidate_breaks(spacings: Spacings, slope: LocalSlope) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Of each curve the breaks of the chosen number, and every break that any number up to the most proposes.

    Exact dynamic programming on log κ (noise in κ is proportional to it). Each break then moves to where the
    spacings' likelihood wants it, within the factor e that Eq. 7 looks ahead. The number minimises BIC on the
    spacings: a place and a level per break, N independent observations.
    """
    log_rank = breaks_of_slope(slope)
    n, curve = spacings.n, np.arange(len(spacings.y))
    first, last = np.ones_like(curve), np.full_like(curve, n)
    best = -2 * spacings.log_likelihood(first[:, None], last[:, None])[:, 0]
    chosen: list[tuple[int, ...]] = [()] * len(curve)
    proposed: list[set[int]] = [set() for _ in curve]
    for number, at in enumerate(log_rank, 1):
        inside = np.round(np.exp(at + LOOK_AHEAD.mean())).astype(int)
        places = np.column_stack([first, inside, last])
        for i in [*range(1, number + 1)] * min(number, 2):  # twice where neighbours bound each other
            left, right = places[:, [i - 1]], places[:, [i + 1]]
            moved = np.clip(np.round(np.exp(at[:, [i - 1]] + LOOK_AHEAD)).astype(int), left + 2, right - 2)
            likelihood = spacings.log_likelihood(left, moved) + spacings.log_likelihood(moved, right)
            places[:, i] = moved[curve, np.argmax(likelihood, axis=1)]
        bic = -2 * spacings.log_likelihood(places[:, :-1], places[:, 1:]).sum(1) + 2 * number * np.log(n)
        for k, row in enumerate(places[:, 1:-1].tolist()):
            proposed[k].update(row)
            if bic[k] < best[k]:
                best[k], chosen[k] = bic[k], tuple(row)
    return chosen, [sorted(ranks, reverse=True) for ranks in proposed]


def breaks_of_slope(slope: LocalSlope) -> list[Float[np.ndarray, "curve number"]]:
    """The log ranks at which log κ of each curve is best cut 1, 2, … times."""
    found = []
    for kappa in np.atleast_2d(slope.kappa):
        seen = np.isfinite(kappa) & (slope.log_rank >= np.log(FIRST_RANK))
        grid, signal = slope.log_rank[seen], np.log(np.maximum(kappa[seen], TINY))
        search = ruptures.KernelCPD(kernel="linear", min_size=round(SHORTEST / GRID_STEP)).fit(signal[:, None])
        search.predict(n_bkps=MOST_BREAKS)  # finds fewer on its way, which are then only looked up
        found.append([grid[np.array(search.predict(n_bkps=number)[:-1])] for number in range(1, MOST_BREAKS + 1)])
    return [np.stack(at) for at in zip(*found, strict=True)]


def segments(y: Float[np.ndarray, " rank"], slope: LocalSlope) -> Segments:
    """`segments_of_each` for one curve."""
    return segments_of_each(y[None], LocalSlope(log_rank=slope.log_rank, kappa=slope.kappa[None]))[0]


def segments_of_each(y: Float[np.ndarray, "curve rank"], slope: LocalSlope) -> list[Segments]:
    """The widest straight middle of each curve, its line, and the candidates for plateau and decay beside it.

    A middle ends at a proposed break, or at the last rank; the rightmost end that leaves it straight is taken, or the
    straightest where none does.
    """
    at_once = max(1, RANKS_AT_ONCE // y.shape[1])
    out: list[Segments] = []
    for begin in range(0, len(y), at_once):
        part = slice(begin, begin + at_once)
        out += some_segments(y[part], LocalSlope(log_rank=slope.log_rank, kappa=slope.kappa[part]))
    return out


def some_segments(y: Float[np.ndarray, "curve rank"], slope: LocalSlope) -> list[Segments]:
    """`segments_of_each` of curves few enough to be held at once."""
    spacings = Spacings(y)
    breaks, proposed = candidate_breaks(spacings, slope)
    ends = [[spacings.n, *of_curve] for of_curve in proposed]
    found: list[list[Middle]] = [[] for _ in ends]
    searched, k = list(range(len(ends))), 0
    while searched:
        last = [end if (end := ends[i][k]) == spacings.n else int(end / GUARD) for i in searched]
        there = [(i, rank) for i, rank in zip(searched, last, strict=True) if largest_plateau(rank) >= SMALLEST_PLATEAU]
        k += 1
        searched = []
        if there:
            best = spacings.plateaus(*(np.array(x) for x in zip(*there, strict=True)))
            for (i, rank), plateau_end, lift in zip(there, *(x.tolist() for x in best), strict=True):
                first = int(np.ceil(plateau_end * GUARD)) + 1
                bend = spacings.bend(first, rank, i)
                found[i].append((bend, ends[i][k - 1], first, rank, plateau_end, lift))
                if bend >= STRAIGHT and k < len(ends[i]):
                    searched.append(i)
    return [segments_by(spacings, i, breaks[i], found[i]) for i in range(len(ends))]


def segments_by(spacings: Spacings, curve: int, breaks: tuple[int, ...], found: list[Middle]) -> Segments:
    """One curve, taken apart by the best of its middles."""
    bend, end, first, last, plateau_end, lift = min(found) if min(found)[0] >= STRAIGHT else found[-1]
    line = spacings.line(first, last, curve)
    fall, is_apart = 0.0, end < spacings.n
    if is_apart:
        cut = spacings.log_likelihood(first, end, curve) + spacings.log_likelihood(end, spacings.n, curve)
        fall = float(cut - spacings.log_likelihood(first, spacings.n, curve))
    return Segments(
        breaks=breaks,
        line=line,
        plateau_end=plateau_end,
        decay_start=decay_start(spacings.y[curve], line) if is_apart else None,
        lift=lift,
        bend=bend,
        fall=fall,
    )


def decay_start(y: Float[np.ndarray, " rank"], line: Line) -> int | None:
    """The first rank from which on the curve stays below the line by more than a sample's noise, κ/√rank."""
    rank = np.arange(line.last, len(y) + 1)
    near = y[line.last - 1 :] - line.at(rank) >= -BELOW * line.kappa / np.sqrt(rank)
    start = int(rank[near][-1]) + 1 if near.any() else line.last
    return start if start <= len(y) else None
