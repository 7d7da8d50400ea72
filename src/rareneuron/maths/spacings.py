r"""The normalised spacings D_r = r (y_r − y_{r+1}) of a rank curve, their likelihood, and lines through the curve.

For a sample from a density whose log-log curve has slope −κ(r) the spacings are independent and exponential with mean
κ(r) (Rényi), so a likelihood of whatever is said about the slope is a sum over ranks. Sums over ranks are kept, so that
a fit over any range costs a few subtractions. Oracle: tests/maths/test_phases.py, loops over ranks.
"""

from dataclasses import dataclass
from functools import lru_cache

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
    """Sums over ranks of one curve, so that any fit over a range of ranks costs a few subtractions."""

    def __init__(self, y: Float[np.ndarray, " rank"]) -> None:
        self.n, self.y = len(y), y
        self.u, self._rank_sums = rank_sums(self.n)
        self.D = normalised_spacings(y)
        self._sums = sums_from_zero(np.stack([y, y * self.u]))
        self._sum_D = sums_from_zero(self.D)

    def log_likelihood(
        self, first: np.ndarray | int, last: np.ndarray | int
    ) -> Float[np.ndarray, "*ends"] | np.floating:
        """Return the log likelihood of exponential spacings with one mean between ranks `first` and `last`."""
        n = np.subtract(last, first)
        mean = (self._sum_D[np.subtract(last, 1)] - self._sum_D[np.subtract(first, 1)]) / n
        return -n * (np.log(np.maximum(mean, TINY)) + 1)

    def means(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return the means of y, yu, u, u² over ranks first … last."""
        before, n = first - 1, last - first + 1
        of_y = (self._sums[:, last] - self._sums[:, before]) / n
        of_rank = (self._rank_sums[:, last] - self._rank_sums[:, before]) / n
        return np.concatenate([of_y, of_rank])

    def line(self, first: int, last: int) -> Line:
        """Fit y = β − κ log rank by least squares over ranks first … last."""
        u, y = self.u[first - 1 : last], self.y[first - 1 : last]
        du, dy = u - u.mean(), y - y.mean()
        kappa = float(-(du @ dy) / (du @ du))
        explained = kappa**2 * (du @ du) / max(dy @ dy, TINY)
        return Line(kappa=kappa, beta=float(y.mean() + kappa * u.mean()), r_squared=explained, first=first, last=last)

    def bend(self, first: int, last: int) -> float:
        """Return the score of a slope that grows with log rank, in standard errors of exponential spacings."""
        D, u = self.D[first - 1 : last - 1], self.u[first - 1 : last - 1]
        u = u - u.mean()
        return float((D / max(D.mean(), TINY)) @ u / np.sqrt(u @ u))

    def plateau(self, last: int) -> tuple[int, float]:
        r"""Return the end p of the best plateau left of a line that ends at rank `last`, and its statistic.

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
