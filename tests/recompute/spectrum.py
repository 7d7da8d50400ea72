"""spectrum.json: Table 4 and its nulls, from the weights (docs/spectrum.md)."""

import numpy as np
from folder import ROLES, against, compare_rows

RULES = ("fix-finger", "fraction", "half")


def eigenvalues_of(matrix):
    found = np.linalg.eigvalsh(matrix)[::-1]
    return found[found > len(found) * np.finfo(float).eps * found[0]]


def peak(logs):
    """K of fix-finger: where the density of log λ is highest. Quartiles are order statistics."""
    n = len(logs)
    width = max(1.06 * (logs[n // 4] - logs[3 * n // 4]) / 1.349 * n**-0.2, np.finfo(float).eps)
    density = np.exp(-(((logs[:, None] - logs) / width) ** 2) / 2).sum(1)
    return n - int(density[::-1].argmax())


def hill(logs, k):
    excess = (logs[:k] - logs[k - 1]).sum()
    return k / excess if excess > 0 else np.inf


def density_exponent(logs):
    """1 + Hill's estimate for the tail of least Kolmogorov-Smirnov distance; of equal ones the longest."""
    best, nearest = 0.0, np.inf
    for m in range(2, len(logs) + 1):
        ratio = logs[:m] - logs[m - 1]
        alpha = hill(logs, m)
        distance = abs(np.exp(-alpha * ratio) - np.arange(1, m + 1) / m).max()
        if distance <= nearest:
            best, nearest = 1 + alpha, distance
    return best


def statistics(eigenvalues, size, d):
    logs, share = np.log(eigenvalues), eigenvalues / eigenvalues.sum()
    n = len(logs)
    k = {"fix-finger": peak(logs), "fraction": n // 10, "half": n // 2}
    out = {"alpha_hill": hill(logs, max(2, k["fix-finger"]))}
    out |= {f"alpha_hill_{rule}": hill(logs, max(2, k[rule])) for rule in RULES[1:]}
    return out | {
        "n_tail": max(2, k["fix-finger"]),
        "stable_rank": eigenvalues.sum() / eigenvalues[0],
        "spectral_entropy": -(share * np.log(share)).sum() / np.log(size),
        "pl_alpha_hat": density_exponent(logs) * np.log10(eigenvalues[0] * d),
        "largest_eigenvalue": eigenvalues[0],
    }


def directions(n_draws, size, d, rng):
    """Products of unit vectors in random directions."""
    out = []
    for _ in range(n_draws):
        rows = rng.standard_normal((size, d))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        out.append(rows @ rows.T)
    return np.array(out)


def check(run, step, groups, model, report):
    stored, rng = run.at(step, "spectrum.json"), run.generator("spectrum")
    size, n_gaussian = len(groups["boosting"]), max(200, len(groups["random"]))
    matched = dict(zip(ROLES, np.split(groups["matched_random"], 2), strict=True))
    rows, turned = {}, {}
    for matrix, W in (("W_in", model.W_in), ("W_out", model.W_out)):
        d = W.shape[1]
        if d not in turned:  # one set of directions for all matrices of a width
            turned[d] = directions(n_gaussian, size, d, rng)

        def many(matrices, d=d):
            found = [statistics(eigenvalues_of(X), size, d) for X in matrices]
            return {name: np.array([x[name] for x in found], float) for name in found[0]}

        def products(drawn, W=W, d=d):
            return np.array([W[group] @ W[group].T / d for group in np.atleast_2d(drawn)])

        uniform = many(products(groups["random"]))
        for group in (*ROLES, "random"):
            own = products(groups[group])
            length = np.resize(np.sqrt(np.diagonal(own, axis1=1, axis2=2)), (n_gaussian, size))
            nulls = {"marchenko-pastur": many(turned[d] * length[:, :, None] * length[:, None, :])}
            if group != "random":
                nulls |= {"uniform": uniform, "matched": many(products(matched[group]))}
            for statistic, value in many(own).items():
                for null, draws in nulls.items():
                    rows[matrix, statistic, group, null] = against(value.mean(), draws[statistic])
            mean = np.mean([np.linalg.eigvalsh(X)[::-1] for X in own], 0)
            report.close("spectrum: eigenvalues", stored["eigenvalues"][matrix][group], mean)
            edge = mean.mean() * (1 + np.sqrt(size / d)) ** 2
            report.close("spectrum: edges", stored["edges"][f"{matrix} {group}"], edge)
    compare_rows(report, "spectrum", stored["rows"], rows, ("matrix", "statistic", "group", "null"))
