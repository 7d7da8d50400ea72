r"""Paired differences between two conditions over items of a task, with what could have been found.

The same items are scored with and without a group, so each has a difference. Items of one document aren't independent:
$\mathrm{SE}^2 = \frac{C}{C-1} \sum_c (\sum_{i \in c} w_i (x_i - \bar x_{k(i)}))^2$ over documents c, with $w_i$ the
weight of an item in the estimate and $\bar x_{k(i)}$ the mean of its kind. The same differences of random groups say
what any neurons would do. Oracle: tests/maths/test_paired.py, loops and simulations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtr

from rareneuron.maths.significance import LEVEL, t_quantile

POWER = 0.8  # with which the detectable size would be found


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A mean difference over items, ablated − clean, with a 95 % interval over documents."""

    change: float
    standard_error: float  # NaN from a single document
    low: float
    high: float
    p_below: float  # one-sided, of a true mean of 0 or more
    n_items: int
    n_documents: int


def mean_weights(kind: Int[np.ndarray, " item"], sign: tuple[int, ...]) -> Float[np.ndarray, " item"]:
    """Return the weights of the sum over kinds k of sign[k] times the mean over the items of that kind."""
    counts = np.bincount(kind, minlength=len(sign))
    return np.array(sign, np.float64)[kind] / counts[kind]


def clustered(
    values: Float[np.ndarray, "group item"],
    weight: Float[np.ndarray, " item"],
    kind: Int[np.ndarray, " item"],
    document: Int[np.ndarray, " item"],
) -> tuple[Float[np.ndarray, " group"], Float[np.ndarray, " group"]]:
    """Return the weighted sum of each group's values and its standard error, clustered by document."""
    _, row = np.unique(document, return_inverse=True)
    n_documents = int(row.max()) + 1
    means = np.stack([values[:, kind == k].mean(1) for k in range(int(kind.max()) + 1)], 1)
    residual = weight * (values - means[:, kind])
    if n_documents < 2:
        return values @ weight, np.full(len(values), np.nan)
    sums = (np.arange(n_documents)[:, None] == row).astype(np.float64) @ residual.T
    return values @ weight, np.sqrt(n_documents / (n_documents - 1) * np.square(sums).sum(0))


def paired_change(
    values: Float[np.ndarray, " item"],
    document: Int[np.ndarray, " item"],
    kind: Int[np.ndarray, " item"] | None = None,
    sign: tuple[int, ...] = (1,),
) -> Paired:
    """Return the mean difference over items, or that of one kind of item less that of another (`sign` (1, −1))."""
    kind = np.zeros(len(values), np.int64) if kind is None else kind
    found, error = (float(x[0]) for x in clustered(values[None], mean_weights(kind, sign), kind, document))
    n_documents = len(np.unique(document))
    half = t_quantile(n_documents) * error if n_documents > 1 else np.nan
    unvaried = np.nan if n_documents < 2 else float(found >= 0)  # no difference in any item
    p = float(stdtr(n_documents - 1, found / error)) if error > 0 else unvaried
    return Paired(
        change=found,
        standard_error=error,
        low=found - half,
        high=found + half,
        p_below=p,
        n_items=len(values),
        n_documents=n_documents,
    )


def detectable(standard_error: float) -> float:
    """Return the size of a true change that a one-sided test at 5 % finds in 80 %: 2.49 standard errors."""
    return float((ndtri(1 - LEVEL) + ndtri(POWER)) * standard_error)


@dataclass(frozen=True, kw_only=True)
class BesideRandom:
    """A change beside the same of random groups; nothing is known of them where there is none."""

    mean: float
    low: float  # 2.5 % of them lie below
    high: float
    p_below: float  # one-sided: of a random group that changes as far down, (1 + as low) / (1 + groups)
    p_above: float
    n_groups: int


def beside_random(value: float, draws: Float[np.ndarray, " group"]) -> BesideRandom:
    """Return a change beside those of random groups. The p-values are valid for any number of groups, if coarse."""
    n = len(draws)
    low, high = np.quantile(draws, [0.025, 0.975]) if n else (np.nan, np.nan)
    return BesideRandom(
        mean=float(draws.mean()) if n else np.nan,
        low=float(low),
        high=float(high),
        p_below=float(1 + (draws <= value).sum()) / (1 + n),
        p_above=float(1 + (draws >= value).sum()) / (1 + n),
        n_groups=n,
    )
