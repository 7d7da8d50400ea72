"""phases.json: breaks, line, candidates, nulls and bootstrap of one rank curve (docs/phases.md, docs/reproduce.md)."""

from itertools import pairwise

import numpy as np
from folder import levels
from scipy.special import ndtri

LOOK_AHEAD = (0.0, 0.25, 0.5, 0.75, 1.0)
TINY = 1e-12


def local_slope(y):
    """κ(u) of Eq. 7 on a grid of 0.05 in log rank, averaged over 11 points."""
    u = np.log(np.arange(1, len(y) + 1))
    grid = np.arange(0, u[-1], 0.05)
    on_grid = np.interp(grid, u, y)
    raw = on_grid[:-20] - on_grid[20:]
    kappa = np.full(len(grid), np.nan)
    kappa[5 : len(raw) - 5] = np.convolve(raw, np.full(11, 1 / 11), "valid")
    return grid, kappa


def cuts(signal, shortest=10, most=3):
    """The places that cut a signal 1, 2, 3 times with the least sum of squares, segments no shorter than 10 points."""
    n, total, squares = len(signal), np.append(0, signal.cumsum()), np.append(0, (signal**2).cumsum())
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    length = np.maximum(j - i, 1)
    cost = squares[j] - squares[i] - (total[j] - total[i]) ** 2 / length
    cost[j - i < shortest] = np.inf
    best, back, out = cost[0], [], []
    for _ in range(most):
        through = best[:, None] + cost
        back.append(through.argmin(0))
        best = through.min(0)
        places = [n]
        for step in back[::-1]:
            places.append(int(step[places[-1]]))
        out.append(places[:0:-1])
    return out


class Curve:
    """y at ranks 1 … n, its spacings, and likelihoods and lines over ranges of ranks."""

    def __init__(self, y):
        self.y, self.n = y, len(y)
        self.u = np.log(np.arange(1, self.n + 1))
        self.D = np.arange(1, self.n) * -np.diff(y)
        sums = np.array([y, y * self.u, self.u, self.u**2])
        self.sums = np.concatenate([np.zeros((4, 1)), sums.cumsum(1)], 1)
        self.sum_D = np.append(0, self.D.cumsum())

    def likelihood(self, first, last):
        """Of exponential spacings with one mean, between two ranks."""
        mean = (self.sum_D[last - 1] - self.sum_D[first - 1]) / (last - first)
        return -(last - first) * (np.log(max(mean, TINY)) + 1)

    def breaks(self):
        grid, kappa = local_slope(self.y)
        seen = np.isfinite(kappa) & (grid >= np.log(4))
        grid, chosen, proposed = grid[seen], (), set()
        best = -2 * self.likelihood(1, self.n)
        for at in cuts(np.log(np.maximum(kappa[seen], TINY))):
            at, m = grid[at], len(at)
            places = [1, *np.round(np.exp(at + 0.5)).astype(int).tolist(), self.n]
            for i in [*range(1, m + 1)] * min(m, 2):
                left, right = places[i - 1], places[i + 1]
                moved = np.clip(np.round(np.exp(at[i - 1] + np.array(LOOK_AHEAD))).astype(int), left + 2, right - 2)
                gain = [self.likelihood(left, k) + self.likelihood(k, right) for k in moved.tolist()]
                places[i] = int(moved[np.argmax(gain)])
            proposed |= set(places[1:-1])
            ends = pairwise(places)
            bic = -2 * sum(self.likelihood(a, b) for a, b in ends) + 2 * m * np.log(self.n)
            if bic < best:
                best, chosen = bic, tuple(places[1:-1])
        return chosen, sorted(proposed, reverse=True)

    def line(self, first, last):
        """κ, β, r² of least squares over ranks first … last."""
        u, y = self.u[first - 1 : last], self.y[first - 1 : last]
        du, dy = u - u.mean(), y - y.mean()
        kappa = -(du @ dy) / (du @ du)
        return kappa, y.mean() + kappa * u.mean(), kappa**2 * (du @ du) / max(dy @ dy, TINY)

    def plateau(self, last):
        """The end of the best plateau beside a line that ends at `last`, and its statistic."""
        p = np.arange(4, int(last / np.exp(1.5) / 1.3) + 1)

        def means(first, end):
            return (self.sums[:, end] - self.sums[:, first - 1]) / (end - first + 1)

        y, yu, u, uu = means(np.ceil(1.3 * p).astype(int) + 1, np.full_like(p, last))
        kappa = np.maximum(-(yu - y * u) / (uu - u * u), TINY)
        whole, edge = means(np.ones_like(p), p), means(np.floor(0.7 * p).astype(int) + 1, p)
        over, at_edge = ((m[0] - y) + kappa * (m[2] - u) for m in (whole, edge))
        x = np.where(over > 0, np.maximum(at_edge, 0) / kappa, 0)
        lift = np.sqrt(2 * p * (x - np.log1p(x)))
        return int(p[lift.argmax()]), float(lift.max())

    def bend(self, first, last):
        D, u = self.D[first - 1 : last - 1], self.u[first - 1 : last - 1]
        u = u - u.mean()
        return float(D @ u / max(D.mean(), TINY) / np.sqrt(u @ u))

    def parts(self):
        """The middle that is straight and ends furthest right, and what lies beside it."""
        breaks, proposed = self.breaks()
        found = []
        for end in [self.n, *proposed]:
            last = end if end == self.n else int(end / 1.3)
            if int(last / np.exp(1.5) / 1.3) < 4:
                continue
            p, lift = self.plateau(last)
            first = int(np.ceil(1.3 * p)) + 1
            found.append((self.bend(first, last), end, first, last, p, lift))
            if found[-1][0] < 2.5:
                break
        bend, end, first, last, p, lift = found[-1] if found[-1][0] < 2.5 else min(found)
        kappa, beta, r_squared = self.line(first, last)
        fall, decay = 0.0, None
        if end < self.n:
            fall = self.likelihood(first, end) + self.likelihood(end, self.n) - self.likelihood(first, self.n)
            decay = self.decay(kappa, beta, last)
        return {
            "breaks": breaks,
            "kappa": kappa,
            "beta": beta,
            "r_squared": r_squared,
            "fit_first": first,
            "fit_last": last,
            "plateau": p,
            "decay": decay,
            "lift": lift,
            "bend": bend,
            "fall": fall,
        }

    def decay(self, kappa, beta, last):
        """The first rank from which on the curve stays below the line by 1.96 κ/√rank."""
        rank = np.arange(last, self.n + 1)
        near = self.y[last - 1 :] - (beta - kappa * np.log(rank)) >= -1.96 * kappa / np.sqrt(rank)
        start = int(rank[near][-1]) + 1 if near.any() else last
        return start if start <= self.n else None


FAMILIES = {  # log quantile and slope, of the upper tail probability
    "half-normal": (lambda q: np.log(-ndtri(q / 2)), lambda q: -q / 2 / ndtri(q / 2) / density(ndtri(q / 2))),
    "exponential": (lambda q: np.log(-np.log(q)), lambda q: -1 / np.log(q)),
    "lognormal": (lambda q: -ndtri(q), lambda q: q / density(ndtri(q))),
}


def density(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def order_statistics(n_draws, n, rng):
    sums = rng.standard_exponential((n_draws, n + 1)).cumsum(1)
    return sums[:, :-1] / sums[:, -1:]


def likelihood_ratio(curve, parts, slope):
    """Log likelihood of a power law less that of a family, for the middle's spacings, each with its best factor."""
    first, last = parts["fit_first"], parts["fit_last"]
    D, shape = curve.D[first - 1 : last - 1], slope(np.arange(first, last) / curve.n)
    means = np.maximum([D.mean(), (D / shape).mean()], TINY)
    return len(D) * (np.log(means[1]) - np.log(means[0])) + np.log(shape).sum()


def null_p(curve, parts, n_draws, rng):
    """The share of samples of each null, in this order, that are as convincing."""

    def p_of(samples, statistic):
        drawn = [statistic(c, c.parts()) for c in map(Curve, samples)]
        return (1 + np.sum(np.array(drawn) >= statistic(curve, parts))) / (1 + n_draws)

    out, n = {}, curve.n
    for name, (log_quantile, slope) in FAMILIES.items():

        def evidence(c, s, slope=slope):
            return likelihood_ratio(c, s, slope) + s["lift"] ** 2 / 2

        out[name] = p_of(log_quantile(order_statistics(n_draws, n, rng)), evidence)
    rank, drawn = np.arange(1, n + 1), n * order_statistics(n_draws, n, rng)
    continued = np.where(rank < parts["fit_first"], parts["beta"] - parts["kappa"] * curve.u, curve.y)
    values = np.interp(np.log(drawn), curve.u, continued)
    values = np.where(drawn < 1, parts["beta"] - parts["kappa"] * np.log(drawn), values)
    out["no plateau"] = p_of(-np.sort(-values, axis=1), lambda _, s: s["lift"])
    out["no decay"] = p_of(-np.log(order_statistics(n_draws, n, rng)), lambda _, s: s["fall"])
    return out


def bootstrap(curve, parts, sums, n_tokens, n_draws, rng):
    """κ and β of every draw of contexts, and δ, the neurons in the order of the full sample."""
    C = len(sums)
    weights = rng.multinomial(C, np.full(C, 1 / C), size=n_draws)
    means = (weights @ sums.astype(np.float64)) / (weights @ n_tokens)[:, None]
    y = np.log(np.maximum(means, np.exp(curve.y[-1])))
    lines = np.array([Curve(draw).line(parts["fit_first"], parts["fit_last"])[:2] for draw in y])
    return lines, y - (lines[:, 1:] - lines[:, :1] * curve.u)


def outcome(parts, p, deviation, n, low, high):
    straight = parts["kappa"] > TINY and parts["bend"] < 2.5
    if not straight or max(p[name] for name in FAMILIES) > 0.05:
        return "no power law"
    edge = deviation[:, int(0.7 * parts["plateau"]) : parts["plateau"]].mean(1)
    if p["no plateau"] > 0.05 or np.quantile(edge, low) <= 0:
        return "no plateau"
    tail = deviation[:, (parts["decay"] or n) - 1 :].mean(1)
    falls = parts["decay"] is not None and p["no decay"] <= 0.05 and np.quantile(tail, high) < 0
    return "three phases" if falls else "no decay"


def check(run, step, report):
    """Compares the rankings of both kinds of target at a step that isn't the last: 100 draws of each null."""
    stored, arrays = run.at(step, "phases.json"), run.at(step, "phases.safetensors")
    table, sums = run.at(step, "effects.parquet"), run.at(step, "context_sums.safetensors")
    for index, ranking, prefix in ((0, "all", ""), (3, "common", "common_")):
        record, value = stored[ranking], table[f"{prefix}abs_delta_loss"].to_numpy()
        order, n_tokens = np.argsort(-value, kind="stable"), sums[f"{prefix}n_tokens"]
        order, held = order[value[order] > 0], n_tokens > 0
        curve, rng, n_draws = Curve(np.log(value[order])), run.generator("phases", index), record["n_draws"]
        parts = curve.parts()
        p = null_p(curve, parts, n_draws, rng)
        of_contexts = sums[f"{prefix}abs_delta_loss"][held][:, order]
        lines, deviation = bootstrap(curve, parts, of_contexts, n_tokens[held], n_draws, rng)
        ends_at = levels(held.sum())
        for name in ("kappa", "beta", "r_squared"):
            report.close(f"phases: {name}", record[name], parts[name])
        for name in ("fit_first", "fit_last", "breaks"):
            report.same(f"phases: {name}", record[name], parts[name])
        report.same("phases: null_p", [record["null_p"][name] for name in p], list(p.values()))
        report.same("phases: outcome", record["outcome"], outcome(parts, p, deviation, curve.n, *ends_at))
        ends = np.quantile(lines, ends_at, axis=0).T
        report.close("phases: intervals", [record["intervals"][name] for name in ("kappa", "beta")], ends)
        at_line = parts["beta"] - parts["kappa"] * curve.u
        report.close("phases: deviation", arrays[f"{ranking}.deviation"], curve.y - at_line)
        band = np.quantile(deviation, ends_at, axis=0)
        report.close("phases: band", arrays[f"{ranking}.band"], band)
