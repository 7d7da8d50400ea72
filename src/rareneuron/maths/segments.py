r"""Where a rank curve is straight, what lies above that line at its left and below at its right (Eq. 7, 8).

Breaks are sought on κ(u) by exact dynamic programming (ruptures), then moved and counted on the *normalised spacings*
D_r = r (y_r − y_{r+1}). For a sample from a density whose log-log curve has slope −κ(r) these are independent and
exponential with mean κ(r) (Rényi), while samples of κ(u) share their ranks with all others within a factor e. The
curves of half-normal, exponential, lognormal and Weibull samples bend down everywhere: seen from a line through their
middle they lie *below* at both ends. A plateau is a lift above the line, so it needs a place where the curve is convex.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rareneuron.maths.rank_curve import GRID_STEP, LocalSlope
from rareneuron.maths.spacings import FIRST_RANK, GUARD, SMALLEST_PLATEAU, TINY, Line, Spacings, largest_plateau

MOST_BREAKS = 3  # plateau | fall to the line | power law | decay
SHORTEST = 0.5  # of a segment on κ(u), in log rank: less can't be seen through Eq. 7
LOOK_AHEAD = np.linspace(0.0, 1.0, 5)  # a bend on the curve lies up to a factor e right of its break on κ
STRAIGHT = 2.5  # standard errors by which a straight middle may steepen: one in 160
BELOW = 1.96  # sampling errors below the line at which decay starts
RANKS_AT_ONCE = 2**17  # of curves that are searched together: their sums stay in cache

Middle = tuple[float, int, int, int, int, float]  # bend, end of the middle, first and last of its line, plateau, lift


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The parts of one curve. Statistics are free of scale: multiplying y by a constant changes none of them."""

    breaks: tuple[int, ...]  # ranks; the number is chosen, 0 allowed
    line: Line
    plateau_end: int  # of the best candidate, whether or not it is one
    decay_start: int | None
    lift: float  # of that candidate: signed root of a likelihood ratio; 0 where nothing rises above the line
    bend: float  # standard errors by which the middle steepens
    fall: float  # log likelihood gained by another slope from the decay on


def candidate_breaks(spacings: Spacings, slope: LocalSlope) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Return, for each curve, the breaks of the chosen number, and every break that any number up to the most proposes.

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
    """Return the log ranks at which log κ of each curve is best cut 1, 2, … times."""
    import ruptures  # here, since it takes longer than everything else that reads a run imports

    found = []
    for kappa in np.atleast_2d(slope.kappa):
        seen = np.isfinite(kappa) & (slope.log_rank >= np.log(FIRST_RANK))
        grid, signal = slope.log_rank[seen], np.log(np.maximum(kappa[seen], TINY))
        search = ruptures.KernelCPD(kernel="linear", min_size=round(SHORTEST / GRID_STEP)).fit(signal[:, None])
        search.predict(n_bkps=MOST_BREAKS)  # finds fewer on its way, which are then only looked up
        found.append([grid[np.array(search.predict(n_bkps=number)[:-1])] for number in range(1, MOST_BREAKS + 1)])
    return [np.stack(at) for at in zip(*found, strict=True)]


def segments(y: Float[np.ndarray, " rank"], slope: LocalSlope) -> Segments:
    """Take one curve apart (`segments_of_each`)."""
    return segments_of_each(y[None], LocalSlope(log_rank=slope.log_rank, kappa=slope.kappa[None]))[0]


def segments_of_each(y: Float[np.ndarray, "curve rank"], slope: LocalSlope) -> list[Segments]:
    """Find the widest straight middle of each curve, its line, and the candidates for plateau and decay beside it.

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
    """Take curves apart that are few enough to be held at once."""
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
    """Take one curve apart by the best of its middles."""
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
    """Return the first rank from which on the curve stays below the line by more than a sample's noise, κ/√rank."""
    rank = np.arange(line.last, len(y) + 1)
    near = y[line.last - 1 :] - line.at(rank) >= -BELOW * line.kappa / np.sqrt(rank)
    start = int(rank[near][-1]) + 1 if near.any() else line.last
    return start if start <= len(y) else None
