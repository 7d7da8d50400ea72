r"""How neurons of a group act together: correlation, clusters, dimension, cosine (App. 5.3.2, Eq. 5, Tables 1-3).

Every statistic is a function of second moments, which stream: no activation is kept, and all groups are measured on the
same tokens, as effective dimensions of unequal samples cannot be compared. Each value stands beside the same value
of many random groups. Domain: neurons that vary; constant ones are left out of correlations and clusters and counted.
Where the model leaves signs of activations open (`maths.gauge`), mean ρ and mean cosine are not defined; their sizes,
mean |ρ| and mean |cosine|, always are.
Oracle: tests/geometry_oracle.py, loops over activation vectors. docs/geometry.md says why the nulls are fair.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from rareneuron.errors import InvalidConfig, NotMeasured, RareNeuronError, TooFewNeurons
from rareneuron.maths import Definitions
from rareneuron.maths.clusters import clusters
from rareneuron.maths.eigen import effective_dimensions
from rareneuron.maths.groups import NeuronGroups, disjoint_partners
from rareneuron.maths.significance import AgainstNull, against_null, finite
from rareneuron.shown import Shown

Statistics = dict[str, np.ndarray]  # name → float64 [draw]
Measure = Callable[[np.ndarray], Statistics]  # groups [draw, size] → statistics of each

FEWEST_NEURONS = 3
NULL_COLUMNS = (
    *("null_mean", "null_low", "null_high", "effect_size", "p", "p_above", "p_below", "n_draws"),
    *("null_lowest", "null_q01", "null_q20", "null_q80", "null_q99", "null_highest"),
)
ENTRIES_AT_ONCE = 2**19  # of stacked [draw, size, size]: 4 MiB, which stay in the cache


@runtime_checkable
class Moments(Protocol):
    """Second moments of a layer's activations, as `moments.SecondMoments` streams them; any other source will do."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the moments are sums over."""

    def covariance(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return the unbiased covariance of neurons `rows` with neurons `columns`."""

    def correlation(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return Pearson's ρ; NaN where a neuron is constant."""

    def cosine(
        self, rows: Int[np.ndarray, "*draw row"], columns: Int[np.ndarray, "*draw column"]
    ) -> Float[np.ndarray, "*draw row column"]:
        """Return the cosine between uncentred activation vectors; NaN where a neuron is always 0."""

    def constant(self, neurons: Int[np.ndarray, "*draw size"]) -> Bool[np.ndarray, "*draw size"]:
        """Return whether each neuron has the same activation at every token."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A statistic beside what random groups have; None where there is no such null."""

    value: float
    uniform: AgainstNull | None  # any neurons
    matched: AgainstNull | None  # neurons like those of the group in `NeuronGroups.matched_on`


@dataclass(frozen=True, kw_only=True)
class Geometry(Shown):
    """How neurons of one layer act together over the same `n_tokens` tokens.

    `within[statistic][group]` has groups boosting, suppressing and random; `between[statistic][pair]` the pairs
    boosting-random, suppressing-random, boosting-suppressing and random-random. Random values are means over all
    draws, which are the null and have none. Where a layer has too few neurons for random pairs, `missing` says so.
    """

    within: dict[str, dict[str, Compared]]
    between: dict[str, dict[str, Compared]]
    n_constant: dict[str, float]  # neurons that never vary, per group; a mean for random
    n_tokens: int
    variance: float  # τ of the effective dimension
    definitions: Definitions
    matched_on: str | None
    signed: bool = True  # whether mean ρ and mean cosine are defined; their sizes are anyhow
    as_written: bool = False  # whether covariances are of n · ‖w_out‖, since the model leaves the scale of n open
    missing: dict[str, RareNeuronError] = field(default_factory=dict)  # pair of groups → why it has no random pairs

    def shown_table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return `rows` as a table."""
        rows = self.rows()
        return list(rows[0]), [tuple(row.values()) for row in rows]

    def rows(self) -> list[dict[str, Any]]:
        """Return a tidy row per statistic, group and null, without a null for random. What isn't defined is None."""
        return [
            {"definitions": self.definitions, "statistic": statistic, "group": group, "value": compared.value} | null
            for table in (self.within, self.between)
            for statistic, groups in table.items()
            for group, compared in groups.items()
            for null in null_rows(compared)
        ]


def null_rows(compared: Compared) -> list[dict[str, Any]]:
    """Return one row for each null of a value, or one without a null."""
    nulls = {"uniform": compared.uniform, "matched": compared.matched}
    rows = []
    for name, null in nulls.items():
        if null is not None:
            fields = asdict(null) | {"p": null.p}
            fields["effect_size"] = finite(null.effect_size)
            rows.append({"null": name} | {column: fields[column] for column in NULL_COLUMNS})
    return rows or [{"null": None} | dict.fromkeys(NULL_COLUMNS)]


def geometry_of(
    moments: Moments,
    groups: NeuronGroups,
    rng: np.random.Generator,
    variance: float = 0.95,
    definitions: Definitions = "paper",
    *,
    signed: bool = True,
    lengths: Float[np.ndarray, " neuron"] | None = None,
) -> Geometry:
    """Measure every statistic of both groups, each against uniform and matched random groups.

    `rng` draws the disjoint halves that random pairs need. Where the model leaves the signs of its activations open,
    `signed` is False, and mean ρ and mean cosine are left out. Where it leaves their scales open, `lengths` has the
    length of each neuron's row of W_out, and covariances are those of what it writes, n · ‖w_out‖ (docs/geometry.md).
    Time is that of the eigenvalues: O(draw · size³).
    """
    refuse_unusable(moments, variance)
    if groups.size < FEWEST_NEURONS:
        raise TooFewNeurons(
            f"Groups of {groups.size} neurons have no geometry: fewer than {FEWEST_NEURONS} make one pair at most. "
            f"Use groups of {FEWEST_NEURONS} neurons or more.",
            argument="size",
        )
    measures = Measures(moments, definitions, signed=signed, lengths=lengths)
    constant = {"boosting": groups.boosting, "suppressing": groups.suppressing, "random": groups.random}

    def inside(drawn: np.ndarray) -> Statistics:
        return within(measures, drawn, variance)

    uniform = by_blocks(inside, groups.random)
    table = {role: beside_nulls(inside, group, uniform, half) for role, (group, half) in roles(groups).items()}
    table["random"] = {name: beside_draws(draws.mean()) for name, draws in uniform.items()}
    for found in table.values():
        found |= {f"{name}_share": in_share(d, groups.size) for name, d in found.items() if name.startswith("d_eff")}
    pairs, missing = between(measures, groups, rng)
    return Geometry(
        within=by_statistic(table),
        between=by_statistic(pairs),
        n_constant={name: float(moments.constant(drawn).sum(-1).mean()) for name, drawn in constant.items()},
        n_tokens=moments.n_tokens,
        variance=variance,
        definitions=definitions,
        matched_on=groups.matched_on,
        signed=signed,
        as_written=lengths is not None,
        missing=missing,
    )


def members(groups: NeuronGroups) -> Int[np.ndarray, " member"]:
    """Return all neurons of all groups, whose moments are needed."""
    matched = [drawn for drawn in (groups.matched_random, groups.matched_pairs) if drawn is not None]
    return np.unique(
        np.concatenate([np.ravel(g) for g in (groups.boosting, groups.suppressing, groups.random, *matched)])
    )


def refuse_unusable(moments: Moments, variance: float) -> None:
    """Raise before anything is computed from too few tokens or an impossible share of variance."""
    if moments.n_tokens < 2:
        raise InvalidConfig(
            f"Activations at {moments.n_tokens} token{'' if moments.n_tokens == 1 else 's'} were given, and nothing "
            "varies over fewer than 2. Analyse more tokens.",
            argument="n_tokens",
        )
    if not 0 < variance <= 1:
        raise InvalidConfig(
            f"A share of variance of {variance} was asked for, and the effective dimension is defined for shares above "
            "0 and up to 1. Use 0.95, for example."
        )


class Measures:
    """What is measured of neurons' second moments; of similarities of either sign also, or only, the size.

    The released scripts divide by the unbiased variance, the products by N.
    """

    def __init__(
        self,
        moments: Moments,
        definitions: Definitions = "paper",
        *,
        signed: bool = True,
        lengths: Float[np.ndarray, " neuron"] | None = None,
    ) -> None:
        self.moments, self.definitions, self.signed, self.lengths = moments, definitions, signed, lengths

    def correlation(self, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "*draw row column"]:
        """Return Pearson's ρ of neurons `rows` with neurons `columns`."""
        scale = 1 - 1 / self.moments.n_tokens if self.definitions == "released" else 1.0
        return scale * self.moments.correlation(rows, columns)

    def covariance(self, neurons: Int[np.ndarray, "*draw size"]) -> Float[np.ndarray, "*draw size size"]:
        """Return the covariances of each group's neurons, of what they write where their scale is open."""
        found = self.moments.covariance(neurons, neurons)
        if self.lengths is None:
            return found
        length = self.lengths[neurons]
        return found * length[..., :, None] * length[..., None, :]

    def similarities(self, rows: np.ndarray, columns: np.ndarray) -> dict[str, np.ndarray]:
        """Return by name what is averaged over pairs, each [*draw, row, column]."""
        return self.with_sizes(self.correlation(rows, columns), self.moments.cosine(rows, columns))

    def with_sizes(self, correlation: np.ndarray, cosine: np.ndarray) -> dict[str, np.ndarray]:
        """Return similarities, where their signs mean something, and their sizes."""
        sizes = {"abs_correlation": np.abs(correlation), "abs_cosine": np.abs(cosine)}
        return {"correlation": correlation, "cosine": cosine} | sizes if self.signed else sizes


def within(measures: Measures, groups: Int[np.ndarray, "draw size"], variance: float) -> Statistics:
    """Return the statistics of each group by itself.

    A constant neuron has a defined covariance, 0, so it is a neuron of the group that adds no effective dimension.
    Flipping a neuron's sign flips a row and a column of ρ, which leaves eigenvalues and 1 − |ρ| as they are.
    """
    pairs, correlation = ~np.eye(groups.shape[1], dtype=bool), measures.correlation(groups, groups)
    similar = measures.with_sizes(correlation, measures.moments.cosine(groups, groups))
    out = {name: mean_over(values, pairs) for name, values in similar.items()}
    zscored = effective_dimensions(correlation, variance)
    if measures.definitions == "paper":
        out["d_eff"] = effective_dimensions(measures.covariance(groups), variance)
        out["d_eff_zscored"] = zscored
    else:
        out["d_eff"] = zscored
    out |= clusters(correlation, measures.definitions)
    return {name: draws.astype(np.float64) for name, draws in out.items()}


def mean_over(
    values: Float[np.ndarray, "draw row column"], pairs: Bool[np.ndarray, "*#draw #row column"]
) -> Float[np.ndarray, " draw"]:
    """Return the mean over those pairs whose value is defined."""
    return share_out(*sums_over(values, pairs))


def sums_over(
    values: Float[np.ndarray, "draw row column"], weights: np.ndarray
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Return the weighted sum of the values that are defined, and the sum of their weights."""
    defined = ~np.isnan(values)
    return (np.where(defined, values, 0) * weights).sum((-2, -1)), (defined * weights).sum((-2, -1)).astype(np.float64)


def share_out(total: Float[np.ndarray, " draw"], weight: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    """Return the means, or raise where there is nothing to average."""
    if not weight.all():
        raise NotMeasured(
            "A group of neurons, or two compared with each other, have no pair of neurons that both vary on these "
            "tokens, so their correlation is undefined. Use larger groups or more tokens.",
            argument="size",
        )
    return total / weight


def roles(groups: NeuronGroups) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return both groups, each with the random groups matched to it."""
    matched = groups.matched
    return {
        "boosting": (groups.boosting, matched.get("boosting")),
        "suppressing": (groups.suppressing, matched.get("suppressing")),
    }


def beside_nulls(
    measure: Measure, group: Int[np.ndarray, " size"], uniform: Statistics, matched: np.ndarray | None
) -> dict[str, Compared]:
    """Return a measure of a group beside the same measure of uniform and of matched draws."""
    alike = None if matched is None else by_blocks(measure, matched)
    return {
        name: beside_draws(found[0], uniform[name], None if alike is None else alike[name])
        for name, found in measure(group[None]).items()
    }


def by_statistic(table: dict[str, dict[str, Compared]]) -> dict[str, dict[str, Compared]]:
    """Turn a table by group and statistic into one by statistic and group."""
    names = next(iter(table.values()))
    return {name: {group: found[name] for group, found in table.items() if name in found} for name in names}


def beside_draws(value: float, uniform: np.ndarray | None = None, matched: np.ndarray | None = None) -> Compared:
    """Return a value beside the nulls that its draws make."""
    return Compared(
        value=float(value),
        uniform=None if uniform is None else against_null(float(value), uniform),
        matched=None if matched is None else against_null(float(value), matched),
    )


def in_share(count: Compared, size: int) -> Compared:
    """Return a count as a share of the group; effect size and p stay."""

    def scaled(null: AgainstNull | None) -> AgainstNull | None:
        names = [f.name for f in fields(AgainstNull) if f.name == "value" or f.name.startswith("null_")]
        return null and replace(null, **{name: getattr(null, name) / size for name in names})

    return Compared(value=count.value / size, uniform=scaled(count.uniform), matched=scaled(count.matched))


def by_blocks(measure: Measure, groups: Int[np.ndarray, "draw size"]) -> Statistics:
    """Measure many groups, a few at a time: matrices of all pairs of all draws need not fit."""
    blocks = np.array_split(groups, 1 + groups.size * groups.shape[1] // ENTRIES_AT_ONCE)
    parts = [measure(block) for block in blocks if len(block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def between(
    measures: Measures, groups: NeuronGroups, rng: np.random.Generator
) -> tuple[dict[str, dict[str, Compared]], dict[str, RareNeuronError]]:
    """Return means over pairs of neurons from two groups, and why some have no null or can't be made.

    Disjoint groups are the null of boosting-suppressing. A layer may have too few neurons for them; then
    boosting-suppressing stands beside matched pairs alone, and random-random is missing.
    """
    out, missing = {}, dict[str, RareNeuronError]()
    for role, (group, half) in roles(groups).items():
        measure = toward_random(measures, groups, group)
        out[f"{role}-random"] = beside_nulls(measure, group, by_blocks(measure, groups.random), half)

    def paired(pairs: np.ndarray) -> Statistics:
        return by_blocks(lambda block: of_pairs(measures, block), pairs)

    uniform: Statistics = {}
    try:
        uniform = paired(np.hstack([groups.random, disjoint_partners(groups.random, rng)]))
    except TooFewNeurons as error:
        missing = dict.fromkeys(("boosting-suppressing", "random-random"), error)
    matched = {} if groups.matched_pairs is None else paired(groups.matched_pairs)
    out["boosting-suppressing"] = {
        name: beside_draws(value[0], uniform.get(name), matched.get(name))
        for name, value in paired(np.hstack([groups.boosting, groups.suppressing])[None]).items()
    }
    out["random-random"] = {name: beside_draws(draws.mean()) for name, draws in uniform.items()}
    return out, missing


def toward_random(measures: Measures, groups: NeuronGroups, group: Int[np.ndarray, " size"]) -> Measure:
    """Return the mean similarity of some neurons with all others in random draws, each as often as it was drawn.

    For `group` that is the mean over draws. A random group takes its place: its neurons leave what it is compared
    with, and those of `group` join it with the weight of an average neuron. Were either left out, groups of a small
    layer would be compared with different neurons; single pairs of draws would vary more than a mean over draws.
    """
    everyone, drawn = members(groups), np.unique(groups.random)
    weight_of = np.bincount(groups.random.ravel(), minlength=everyone[-1] + 1).astype(np.float64)
    weight_of[group] = weight_of[drawn].mean()
    others = np.concatenate([drawn, group])
    totals: dict[str, np.ndarray] = {}
    for block in np.array_split(everyone, 1 + len(everyone) * len(others) // ENTRIES_AT_ONCE):
        for name, values in measures.similarities(block, others).items():
            found = totals.setdefault(name, np.zeros((2, len(weight_of))))
            found[:, block] = sums_over(values[:, None, :], weight_of[others])

    def measure(some: Int[np.ndarray, "draw size"]) -> Statistics:
        out = {}
        for name, values in measures.similarities(some, some).items():
            total, weight = totals[name][:, some].sum(-1)
            own_total, own_weight = sums_over(values, weight_of[some][:, None, :])
            out[name] = share_out(total - own_total, weight - own_weight)
        return out

    return measure


def of_pairs(measures: Measures, pairs: Int[np.ndarray, "draw both"]) -> Statistics:
    """Return the mean similarity between two disjoint groups that stand side by side."""
    first, second = np.split(pairs, 2, axis=1)
    all_pairs = np.ones((first.shape[1], second.shape[1]), dtype=bool)
    return {name: mean_over(values, all_pairs) for name, values in measures.similarities(first, second).items()}
