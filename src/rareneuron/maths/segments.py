r"""Where a rank curve is straight, what lies above that line at its left and below at its right (Eq. 7, 8).

Breaks are sought on κ(u) by exact dynamic programming (ruptures), then moved and counted on the *normalised spacings*
D_r = r (y_r − y_{r+1}). For a sample from a density whose log-log curve has slope −κ(r) these are independent and
exponential with mean κ(r) (Rényi), while samples of κ(u) share their ranks with all others within a factor e. The
curves of half-normal, exponential, lognormal and Weibull samples bend down everywhere: seen from a line through their
middle they lie *below* at both ends. A plateau is a lift above the line, so it needs a place where the curve is convex.
"""

from dataclasses import dataclass

import numpy as np
import ruptures
from jaxtyping import Float

from rareneuron.maths.rank_curve import GRID_STEP, LocalSlope
from rareneuron.maths.spacings import FIRST_RANK, GUARD, SMALLEST_PLATEAU, TINY, Line, Spacings, largest_plateau

MOST_BREAKS = 3  # plateau | fall to the line | power law | decay
SHORTEST = 0.5  # of a segment on κ(u), in log rank: less can't be seen through Eq. 7
LOOK_AHEAD = np.linspace(0.0, 1.0, 5)  # a bend on the curve lies up to a factor e right of its break on κ
STRAIGHT = 2.5  # standard errors by which a straight middle may steepen: one in 160
BELOW = 1.96  # sampling errors below the line at which decay starts


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


def candidate_breaks(
    spacings: Spacings, log_rank: Float[np.ndarray, " grid"], kappa: Float[np.ndarray, " grid"]
) -> tuple[tuple[int, ...], list[int]]:
    """Return the breaks of the chosen number, and every break that any number up to the most proposes.

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
    """Find the widest straight middle, its line, and the candidates for plateau and decay beside it.

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
    """Return the first rank from which on the curve stays below the line by more than a sample's noise, κ/√rank."""
    rank = np.arange(line.last, len(y) + 1)
    near = y[line.last - 1 :] - line.at(rank) >= -BELOW * line.kappa / np.sqrt(rank)
    start = int(rank[near][-1]) + 1 if near.any() else line.last
    return start if start <= len(y) else None
