r"""The normalised spacings D_r = r (y_r − y_{r+1}) of a rank curve, their likelihood, and lines through the curve.

For a sample from a density whose log-log curve has slope −κ(r) the spacings are independent and exponential with mean
κ(r) (Rényi), so a likelihood of whatever is said about the slope is a sum over ranks. Sums over ranks are kept, so that
a fit over any range costs a few subtractions. Oracle: tests/maths/test_phases.py, loops over ranks.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

FIRST_RANK = 4  # ranks left of it are a handful of neurons, and so is κ(u) there
SMALLEST_PLATEAU = 4  # neurons: fewer are outliers, not a phase
NARROWEST = 1.5  # log width of a power law: a factor 4.5 in rank
GUARD = 1.3  # factor in rank kept clear at both ends of the fit: measurement noise smears bends
EDGE = 0.7  # δ is tested over the last 30 % of a plateau's ranks, where a lift is seen best against sampling noise
TINY = 1e-12  # slope of ties, whose logarithm is taken


def normalised_spacings(
    y: Float[np.ndarray, "*curves rank"], first: int = 1, last: int | None = None
) -> Float[np.ndarray, "*curves spacing"]:
    """Return D_r = r (y_r − y_{r+1}) at ranks r = `first` … `last` − 1 of log effects sorted from the largest."""
    last = y.shape[-1] if last is None else last
    return np.arange(first, last) * -np.diff(y[..., first - 1 : last], axis=-1)


def exponential_log_likelihood(
    D: Float[np.ndarray, "*curves spacing"], log_mean: Float[np.ndarray, "*curves spacing"]
) -> Float[np.ndarray, "*curves"] | np.floating:
    """Return the log likelihood of exponential spacings with means exp(`log_mean`)."""
    with np.errstate(over="ignore"):
        return -(log_mean + D * np.exp(-log_mean)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """y = β − κ log rank, by least squares over ranks `first` … `last`."""

    kappa: float
    beta: float
    r_squared: float
    first: int
    last: int

    def at(self, rank: Int[np.ndarray, " rank"] | Float[np.ndarray, "*ranks"]) -> Float[np.ndarray, "*ranks"]:
        """Return log|Δ| as the power law predicts it at these ranks."""
        return self.beta - self.kappa * np.log(rank)


class Spacings:
    """Sums over ranks of one curve, or of many of a length, so that any fit over a range of ranks costs little.

    Many are searched at once, since each alone is so few numbers that numpy's calls would be most of the time.
    """

    def __init__(self, y: Float[np.ndarray, "*curves rank"]) -> None:
        self.y = np.atleast_2d(y)
        self.n = y.shape[-1]
        self.u, self._rank_sums = rank_sums(self.n)
        self.D = normalised_spacings(self.y)
        self._sums = sums_from_zero(np.stack([self.y, self.y * self.u]))
        self._sum_D = sums_from_zero(self.D)

    def log_likelihood(self, first: Any, last: Any, curve: int | None = None) -> Any:
        """Return the log likelihood of exponential spacings with one mean between ranks `first` and `last`.

        Ends are [curve, end], or those of one `curve`.
        """
        n, of = last - first, np.arange(len(self.y))[:, None] if curve is None else curve
        mean = (self._sum_D[of, last - 1] - self._sum_D[of, first - 1]) / n
        return -n * (np.log(np.maximum(mean, TINY)) + 1)

    def means(
        self, curve: Int[np.ndarray, "some 1"], first: np.ndarray, last: np.ndarray
    ) -> Float[np.ndarray, "4 some end"]:
        """Return the means of y, yu, u, u² over ranks first … last of some of the curves."""
        before, n = first - 1, last - first + 1
        of_y = (self._sums[:, curve, last] - self._sums[:, curve, before]) / n
        of_rank = (self._rank_sums[:, last] - self._rank_sums[:, before]) / n
        return np.concatenate([of_y, of_rank])

    def line(self, first: int, last: int, curve: int = 0) -> Line:
        """Fit y = β − κ log rank by least squares over ranks first … last of one curve."""
        u, y = self.u[first - 1 : last], self.y[curve, first - 1 : last]
        du, dy = u - u.mean(), y - y.mean()
        kappa = float(-(du @ dy) / (du @ du))
        explained = kappa**2 * (du @ du) / max(dy @ dy, TINY)
        return Line(kappa=kappa, beta=float(y.mean() + kappa * u.mean()), r_squared=explained, first=first, last=last)

    def bend(self, first: int, last: int, curve: int = 0) -> float:
        """Return the score of a slope that grows with log rank, in standard errors of exponential spacings."""
        D, u = self.D[curve, first - 1 : last - 1], self.u[first - 1 : last - 1]
        u = u - u.mean()
        return float((D / max(D.mean(), TINY)) @ u / np.sqrt(u @ u))

    def plateau(self, last: int, curve: int = 0) -> tuple[int, float]:
        """Return the end of the best plateau left of a line that ends at rank `last`, and its statistic."""
        end, lift = self.plateaus(np.array([curve]), np.array([last]))
        return int(end[0]), float(lift[0])

    def plateaus(
        self, curve: Int[np.ndarray, " some"], last: Int[np.ndarray, " some"]
    ) -> tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"]]:
        r"""Return the end p of the best plateau left of each line that ends at rank `last`, and its statistic.

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
    """Return the sums over the first 0, 1, 2, … ranks."""
    return np.cumsum(np.concatenate([np.zeros_like(x[..., :1]), x], axis=-1), axis=-1)


@lru_cache(maxsize=4)
def rank_sums(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of ranks 1 … n, and the sums of them and of their squares."""
    u = np.log(np.arange(1, n + 1))
    return u, sums_from_zero(np.stack([u, u * u]))


def largest_plateau(last: int) -> int:
    """Return the last rank of a plateau that leaves room for the narrowest power law before rank `last`."""
    return int(last / np.exp(NARROWEST) / GUARD)
