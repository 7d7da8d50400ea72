r"""Plateau, power law and decay of a rank curve, with the right to say no (Sec. 3.1, App. 5.3.4; Eq. 1, 7, 8).

`segments` proposes a straight middle and what lies above it at the left and below it at the right. Whether that means
anything is decided by nulls that pass through the very same search: half-normal, exponential and lognormal samples
(is there a power law at all?), the curve with its lift taken off (is there a plateau?), a pure power law (is there a
decay?). With sums per context δ must also leave its bootstrap band. docs/phases.md derives it and shows the power.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from rareneuron.errors import InvalidConfig, TooFewNeurons
from rareneuron.maths.nulls import FAMILIES, Family, lift_removed, log_likelihood_ratio, uniform_order_statistics
from rareneuron.maths.phases import FEWEST_NEURONS, ContextSums, Outcome, Phases
from rareneuron.maths.rank_curve import RankCurve, local_slope
from rareneuron.maths.segments import STRAIGHT, Segments, segments, segments_of_each
from rareneuron.maths.significance import LEVEL, expanded_levels
from rareneuron.maths.spacings import EDGE, TINY, Line, Spacings

FEWEST_DRAWS = 19  # of a null: with fewer no p can reach the level
FITTING = 1e-3  # between a neuron's mean and that of its sums, which are kept in float32


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Lines and deviations of every draw of contexts."""

    lines: list[Line]
    deviation: Float[np.ndarray, "draw rank"]  # neurons in the order of the full sample
    resorted: list[Segments]
    levels: tuple[float, float]  # quantiles of the draws between which an interval lies


def fit_phases(
    curve: RankCurve,
    context_sums: ContextSums | None = None,
    rng: np.random.Generator | None = None,
    *,
    n_draws: int = 200,
) -> Phases:
    r"""Fit plateau, power law and decay to a rank curve, and test each of them against its null.

    The power law is $\log |\Delta| = \beta - \kappa \log r$ in the middle; a plateau lies above it at the left, a decay
    below it at the right: δ(r) of Eq. 8 is above or below 0. A phase is found where at most 5 % of null samples, which
    pass through the same search, look as convincing, and where δ leaves its bootstrap band.

    Args:
        curve: rank curve of at least 128 neurons with an effect above 0, as `rank_curve` returns it.
        context_sums: |Δ| summed over the tokens of each context, for the bootstrap; without them the nulls decide
            alone, and there are no intervals.
        rng: source of all random numbers; without it the seed is 0.
        n_draws: samples of each null and of the bootstrap, 19 or more; no p is below 1 / (1 + `n_draws`).

    Returns:
        The outcome, κ, β, the ranks at which phases end, and the p-value against each null.

    Raises:
        TooFewNeurons: the curve is too short to tell phases from outliers.
        InvalidConfig: there are too few draws, or the sums are not of this curve.

    Source:
        Sec. 3.1, App. 5.3.4 and Eq. 1, 7 and 8 of “Emergent Specialization: Rare Token Neurons in Language Models”;
        the nulls are this package's (docs/phases.md).

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> rank = np.arange(1, 513)
        >>> y = -0.4 * np.log(rank) + (rank <= 24) - np.maximum(rank / 154 - 1, 0)  # all three, planted
        >>> found = rn.fit_phases(rn.rank_curve(np.exp(y)), n_draws=39)
        >>> found.outcome, round(found.kappa, 2), found.plateau_end, found.decay_start
        ('three phases', 0.4, 22, 164)
    """
    rng = np.random.default_rng(0) if rng is None else rng
    if n_draws < FEWEST_DRAWS:
        raise InvalidConfig(
            f"With n_draws = {n_draws} no p can reach {LEVEL:g}, so no phase could ever be found. Draw {FEWEST_DRAWS} "
            "or more."
        )
    n = curve.n_positive
    if n < FEWEST_NEURONS:
        raise TooFewNeurons(
            f"The curve has {n} neurons with an effect above 0 (of {len(curve.value)}); with fewer than "
            f"{FEWEST_NEURONS} a plateau of a few per cent is a handful of outliers, and no power law can be told from "
            "a bend. Rank a whole layer, or both signs together."
        )
    y = np.log(curve.value[:n].astype(np.float64))
    slope = local_slope(y)
    found = segments(y, slope)
    deviation = y - found.line.at(np.arange(1, n + 1))
    null_p = null_p_values(y, found, rng, n_draws)
    bootstrap = None if context_sums is None else resample(curve, context_sums, found.line, rng, n_draws)
    straight = found.line.kappa > TINY and found.bend < STRAIGHT
    power_law = straight and max(null_p[name] for name in FAMILIES) <= LEVEL
    plateau = power_law and null_p["no plateau"] <= LEVEL
    decay = power_law and found.decay_start is not None and null_p["no decay"] <= LEVEL
    if bootstrap is not None:
        edge = bootstrap.deviation[:, int(found.plateau_end * EDGE) : found.plateau_end].mean(1)
        plateau = plateau and bool(np.quantile(edge, bootstrap.levels[0]) > 0)
        tail = bootstrap.deviation[:, (found.decay_start or n) - 1 :].mean(1)
        decay = decay and bool(np.quantile(tail, bootstrap.levels[1]) < 0)
    return Phases(
        outcome=outcome(power_law, plateau, decay),
        kappa=found.line.kappa,
        beta=found.line.beta,
        r_squared=found.line.r_squared,
        fit_first=found.line.first,
        fit_last=found.line.last,
        plateau_end=found.plateau_end if plateau else None,
        decay_start=found.decay_start if decay else None,
        deviation=deviation,
        band=None if bootstrap is None else np.quantile(bootstrap.deviation, bootstrap.levels, axis=0),
        intervals={} if bootstrap is None else intervals(bootstrap, found, plateau=plateau, decay=decay),
        null_p=null_p,
        breaks=found.breaks,
        slope=slope,
        n_neurons=len(curve.value),
        n_zero=len(curve.value) - n,
        n_draws=n_draws,
    )


def outcome(power_law: bool, plateau: bool, decay: bool) -> Outcome:
    """Name the first thing that is missing, the power law before what is measured against it."""
    if not power_law:
        return "no power law"
    if not plateau:
        return "no plateau"
    return "three phases" if decay else "no decay"


def null_p_values(
    y: Float[np.ndarray, " rank"], found: Segments, rng: np.random.Generator, n_draws: int
) -> dict[str, float]:
    """Return the share of null samples, each searched as the curve was, whose statistic is at least the curve's."""

    def p_value(samples: np.ndarray, statistic: Callable[[np.ndarray, Segments], float]) -> float:
        taken_apart = segments_of_each(samples, local_slope(samples))
        drawn = [statistic(sample, s) for sample, s in zip(samples, taken_apart, strict=True)]
        return (1 + int(np.sum(np.array(drawn) >= statistic(y, found)))) / (1 + n_draws)

    def uniform() -> np.ndarray:
        return uniform_order_statistics(n_draws, len(y), rng)

    out = {}
    for name, family in FAMILIES.items():

        def evidence(sample: np.ndarray, s: Segments, family: Family = family) -> float:
            return log_likelihood_ratio(sample, s.line, family) + s.lift**2 / 2

        out[name] = p_value(family.log_quantile(uniform()), evidence)
    out["no plateau"] = p_value(lift_removed(y, found.line, n_draws, rng), lambda _, s: s.lift)
    out["no decay"] = p_value(-np.log(uniform()), lambda _, s: s.fall)
    return out


def resample(curve: RankCurve, contexts: ContextSums, line: Line, rng: np.random.Generator, n_draws: int) -> Bootstrap:
    """Resample contexts, never ranks.

    A ranking of noisy means places its top too high, and sorting each draw again would add that bias once more. So
    for δ every draw keeps the neurons' order of the full sample, and its band is that of these neurons. Where the
    boundaries lie is a property of sorted curves: only for them are draws sorted again.
    """
    if contexts.sums.shape != (len(contexts.n_tokens), len(curve.value)):
        raise InvalidConfig(
            f"Sums per context of shape {contexts.sums.shape} don't belong to {len(contexts.n_tokens)} contexts and a "
            f"curve of {len(curve.value)} neurons, so contexts can't be resampled. Pass the sums [context, neuron] "
            "whose column order is that of the values given to rank_curve."
        )
    held = contexts.n_tokens > 0
    contexts = replace(contexts, sums=contexts.sums[held], n_tokens=contexts.n_tokens[held])
    n, n_contexts = curve.n_positive, len(contexts.n_tokens)
    means = contexts.sums.sum(0, dtype=np.float64)[curve.neuron] / max(1, int(contexts.n_tokens.sum()))
    if not np.allclose(means, curve.value, rtol=FITTING, atol=FITTING * float(curve.value[n - 1])):
        raise InvalidConfig(
            "The sums per context don't add up to the curve's values: they are of other neurons, another order or "
            "other tokens, and intervals from them would be wrong. Pass the sums whose columns are the array given to "
            "rank_curve."
        )
    if n_contexts < 2:
        raise InvalidConfig(
            "One context can't be resampled: every draw would be the same and the band of no width. Analyse more "
            "contexts, or leave out the sums: then the nulls alone decide."
        )
    weights = rng.multinomial(n_contexts, np.full(n_contexts, 1 / n_contexts), size=n_draws).astype(contexts.sums.dtype)
    means = (weights @ contexts.sums)[:, curve.neuron[:n]] / (weights @ contexts.n_tokens)[:, None]
    if contexts.error is not None:
        means = means + rng.standard_normal(means.shape) * contexts.error[curve.neuron[:n]]
    y = np.log(np.maximum(means, curve.value[n - 1]).astype(np.float64))  # a signed mean may cross 0 in a draw
    rank = np.arange(1, n + 1)
    lines = [Spacings(draw).line(line.first, line.last) for draw in y]
    again = -np.sort(-y, axis=1)
    return Bootstrap(
        lines=lines,
        deviation=np.stack([draw - drawn.at(rank) for draw, drawn in zip(y, lines, strict=True)]),
        resorted=segments_of_each(again, local_slope(again)),
        levels=expanded_levels(n_contexts),
    )


def intervals(bootstrap: Bootstrap, found: Segments, *, plateau: bool, decay: bool) -> dict[str, tuple[float, float]]:
    """Return expanded percentile intervals over draws; a boundary's always holds the estimate."""
    drawn = {name: [getattr(line, name) for line in bootstrap.lines] for name in ("kappa", "beta")}
    if plateau:
        drawn["plateau_end"] = [s.plateau_end for s in bootstrap.resorted]
    if decay:
        drawn["decay_start"] = [s.decay_start for s in bootstrap.resorted if s.decay_start is not None]
    out = {}
    for name, values in drawn.items():
        low, high = np.quantile(values, bootstrap.levels)
        if name in ("plateau_end", "decay_start"):
            low, high = min(low, getattr(found, name)), max(high, getattr(found, name))
        out[name] = (float(low), float(high))
    return out
