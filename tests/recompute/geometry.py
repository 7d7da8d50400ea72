"""geometry.json: Tables 1-3 and their nulls, from activations at the rare tokens (docs/geometry.md)."""

import numpy as np
from folder import ROLES, against, compare_rows
from scipy.cluster.hierarchy import fcluster, linkage


class Similar:
    """Correlation, cosine and covariance of all neurons of a layer."""

    def __init__(self, act):
        self.cov = np.cov(act, rowvar=False)
        self.rho = np.clip(np.corrcoef(act, rowvar=False), -1, 1)
        length = np.linalg.norm(act, axis=0)
        self.cosine = np.clip(act.T @ act / np.outer(length, length), -1, 1)
        self.all = {"correlation": self.rho, "cosine": self.cosine}
        self.all |= {"abs_correlation": abs(self.rho), "abs_cosine": abs(self.cosine)}

    def within(self, group):
        block, off = np.ix_(group, group), ~np.eye(len(group), dtype=bool)
        out = {name: values[block][off].mean() for name, values in self.all.items()}
        for name, matrix in (("d_eff", self.cov), ("d_eff_zscored", self.rho)):
            out[name] = dimension(matrix[block])
            out[f"{name}_share"] = out[name] / len(group)
        D = 1 - abs(self.rho[block])
        for how in ("ward", "average"):
            out[f"clusters_{how}"] = len(
                np.unique(fcluster(linkage(D[np.triu_indices(len(D), 1)], how), 0.5, "distance"))
            )
        return out

    def between(self, first, second):
        return {name: values[np.ix_(first, second)].mean() for name, values in self.all.items()}

    def toward_random(self, some, group, random):
        """Mean over pairs of `some` with others, each other neuron as often as it was drawn."""
        weight = np.bincount(random.ravel(), minlength=len(self.rho)).astype(float)
        weight[group] = weight[np.unique(random)].mean()
        weight[some] = 0
        return {name: (values[some] @ weight).mean() / weight.sum() for name, values in self.all.items()}


def dimension(matrix):
    eigenvalues = np.linalg.eigvalsh(matrix)[::-1].clip(min=0)
    held = eigenvalues.cumsum()
    return int((held < (0.95 - 1e-12) * held[-1]).sum() + 1)


def partners(random, rng):
    pool = np.unique(random)
    return np.array([rng.choice(np.setdiff1d(pool, draw), len(draw), replace=False) for draw in random])


def table_of(similar, groups, rng):
    """Every row of the table by statistic, group and null."""
    rows, matched = {}, dict(zip(ROLES, np.split(groups["matched_random"], 2), strict=True))

    def add(name, measure, value_of, nulls):
        value = measure(value_of)
        draws = {null: [measure(draw) for draw in drawn] for null, drawn in nulls.items()}
        for statistic in value:
            for null, found in draws.items():
                rows[statistic, name, null] = against(value[statistic], np.array([x[statistic] for x in found], float))

    def mean_of(name, found):
        for statistic in found[0]:
            rows[statistic, name, None] = {"value": np.mean([x[statistic] for x in found])}

    for role in ROLES:
        nulls = {"uniform": groups["random"], "matched": matched[role]}
        add(role, similar.within, groups[role], nulls)

        def toward(some, group=groups[role]):
            return similar.toward_random(some, group, groups["random"])

        add(f"{role}-random", toward, groups[role], nulls)
    mean_of("random", [similar.within(draw) for draw in groups["random"]])
    size = len(groups["boosting"])
    uniform = np.hstack([groups["random"], partners(groups["random"], rng)])

    def paired(both):
        return similar.between(both[:size], both[size:])

    both_roles = np.concatenate([groups[role] for role in ROLES])
    add("boosting-suppressing", paired, both_roles, {"uniform": uniform, "matched": groups["matched_pairs"]})
    mean_of("random-random", [paired(both) for both in uniform])
    return rows


def check(run, step, groups, act, report):
    """Compares the whole file; the model of the test has neither open signs nor scales, nor constant neurons."""
    stored = run.at(step, "geometry.json")
    report.same("geometry: tokens", stored["n_tokens"], len(act))
    report.same("geometry: constant", [0.0] * 3, list(stored["n_constant"].values()))
    report.same("geometry: signs and scales", [stored["signed"], stored["as_written"]], [True, False])
    rows = table_of(Similar(act), groups, run.generator("geometry"))
    compare_rows(report, "geometry", stored["rows"], rows, ("statistic", "group", "null"))
