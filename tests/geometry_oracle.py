"""Co-activation geometry in loops over activation vectors, one pair at a time. Shares no code with what it judges."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def mean_within(acts, group, similarity):
    return np.mean([similarity(acts[:, i], acts[:, j]) for i in group for j in group if i < j])


def mean_between(acts, first, second, similarity):
    return np.mean([similarity(acts[:, i], acts[:, j]) for i in first for j in second])


def effective_dimension(acts, variance, zscore=False):
    """The smallest d whose principal components explain that share of the variance."""
    acts = acts - acts.mean(0)
    if zscore:
        acts = acts / acts.std(0)
    values = sorted(np.linalg.eigh(acts.T @ acts)[0], reverse=True)
    return next(d for d in range(1, len(values) + 1) if sum(values[:d]) / sum(values) >= variance)


def n_clusters(acts, group, method):
    """Eq. 5 as the paper has it: a matrix of distances, a tree, cut at 0.5."""
    distance = np.array([[1 - abs(correlation(acts[:, i], acts[:, j])) for j in group] for i in group])
    np.fill_diagonal(distance, 0)
    return len(np.unique(fcluster(linkage(squareform(distance, checks=False), method), 0.5, "distance")))


def released(acts, group):
    """The released scripts: standard deviations over N - 1, products over N; rows of D are points, cut at 5."""
    x = acts[:, group]
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    rho = z.T @ z / len(z)
    return {
        "correlation": np.mean(rho[np.triu_indices(len(group), 1)]),
        "clusters_ward": len(np.unique(fcluster(linkage(pdist(1 - abs(rho)), "ward"), 5, "distance"))),
        "d_eff": effective_dimension(x, 0.95, zscore=True),
    }


def toward_random(acts, group, draws, place_of, similarity):
    """A group with all random draws; where `group` isn't `place_of`, they change places: then it is a null draw."""
    drawn, times = np.unique(draws, return_counts=True)
    weight = dict(zip(drawn, times, strict=True)) | dict.fromkeys(place_of, times.mean())
    others = [j for j in weight if j not in set(group)]
    pairs = [(similarity(acts[:, i], acts[:, j]), weight[j]) for i in group for j in others]
    return sum(value * w for value, w in pairs) / sum(w for _, w in pairs)
