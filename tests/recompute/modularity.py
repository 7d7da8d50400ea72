"""modularity.safetensors: clusters by signed correlations, beside matched groups and shuffled graphs."""

import numpy as np
from folder import ROLES


def gains(w):
    """What each pair adds to Q if it is together."""
    out = w.copy()
    for sign in (1, -1):
        part = np.maximum(sign * w, 0)
        if part.any():
            out -= sign * np.outer(part.sum(1), part.sum(1)) / part.sum()
    return out / abs(w).sum()


def greedy(w):
    """Q once the two clusters that gain most are merged again and again, for as long as they gain."""
    gain = gains(w)
    clusters = [[i] for i in range(len(w))]
    while len(clusters) > 1:
        between = np.array([[gain[np.ix_(a, b)].sum() for b in clusters] for a in clusters])
        np.fill_diagonal(between, -np.inf)
        first, second = divmod(int(between.argmax()), len(clusters))
        if between[first, second] <= 0:
            break
        clusters[first] = clusters[first] + clusters[second]
        del clusters[second]
    return sum(gain[np.ix_(c, c)].sum() for c in clusters)


def shuffled(w, n_draws, rng):
    """Graphs with the strengths of w, of either sign apart."""
    upper = np.triu_indices(len(w), 1)
    order = rng.permuted(np.tile(np.arange(len(upper[0])), (n_draws, 1)), axis=1)
    for pairs in order:
        total = np.zeros_like(w)
        for sign in (1, -1):
            part = np.maximum(sign * w, 0)
            strength = part.sum(1)
            expected = np.outer(strength, strength)
            ratio = np.divide(part, expected, out=np.zeros_like(part), where=expected > 0)[upper]
            drawn = np.zeros_like(w)
            drawn[upper] = ratio[pairs] * expected[upper]
            drawn += drawn.T
            for _ in range(50):
                now = drawn.sum(1)
                scale = np.sqrt(np.divide(strength, now, out=np.ones_like(now), where=now > 0))
                drawn *= np.outer(scale, scale)
            total += sign * drawn
        yield total


def jackknife(act, group, block):
    """The standard error of Q over blocks of contexts, one of which is left out at a time."""
    found = []
    for one in np.unique(block):
        rho = np.corrcoef(act[block != one][:, group], rowvar=False)
        np.fill_diagonal(rho, 0)
        found.append(greedy(rho))
    return np.sqrt((len(found) - 1) * np.var(found))


def check(run, step, groups, act, context, report):
    """Compares every draw."""
    stored, rng = run.at(step, "modularity.safetensors"), run.generator("modularity")
    rho = np.clip(np.corrcoef(act, rowvar=False), -1, 1)
    np.fill_diagonal(rho, 0)
    for role, matched in zip(ROLES, np.split(groups["matched_random"], 2), strict=True):
        own = rho[np.ix_(groups[role], groups[role])]
        report.close("modularity: groups", stored[role], [greedy(own)])
        report.close("modularity: error", stored[f"{role} error"], [jackknife(act, groups[role], context % 20)])
        alike = matched[:600]
        report.close("modularity: matched", stored[f"{role} matched"], [greedy(rho[np.ix_(g, g)]) for g in alike])
        found = [greedy(w) for w in shuffled(own, len(alike), rng)]
        report.close("modularity: same strengths", stored[f"{role} same strengths"], found)
