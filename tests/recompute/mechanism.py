"""The claims about mechanisms, types and the head of the curve (docs/mechanism.md, docs/claims.md)."""

import numpy as np
from claims import groups_elsewhere, of_contexts, of_groups
from folder import ROLES, against

BEYOND = "beyond_frequency_abs_delta_loss"


def judging(run, step):
    """Groups chosen elsewhere, and sums over the contexts of the sample."""
    arrays, sums = run.at(step, "experiments.safetensors"), run.at(step, "context_sums.safetensors")
    rows = np.unique(arrays["context"])
    return groups_elsewhere(run, step, arrays), {name: x[rows].astype(float) for name, x in sums.items()}


def beside_groups(statistic, n_contexts, groups, rng):
    """Either group beside uniform and matched ones, and contexts resampled, less the mean of 200 matched ones."""
    once, out = np.ones((1, n_contexts)), []
    for role, matched in zip(ROLES, np.split(groups["matched_random"], 2), strict=True):
        own = groups[role][None]
        value = statistic(own, once)[0, 0]
        drawn = (groups["random"], matched)
        out += [of_groups(against(value, statistic(some, once)[0]), above=True, source=role) for some in drawn]

        def excess(weights, own=own, matched=matched):
            return statistic(own, weights)[:, 0] - statistic(matched[:200], weights).mean(1)

        out.append(of_contexts(np.eye(n_contexts), excess, rng, 1000, f"{role}, contexts"))
    return out


def share(rest):
    def tests(run, step, rng):
        groups, sums = judging(run, step)
        part, whole = sums[rest], sums["abs_delta_loss"]

        def of(drawn, weights):
            return np.stack([1 - weights @ part[:, g].sum(1) / (weights @ whole[:, g].sum(1)) for g in drawn], 1)

        return beside_groups(of, len(whole), groups, rng)

    return tests


def rare_beyond_frequency(run, step, rng):
    groups, sums = judging(run, step)
    length = run.at(step, "effects.parquet")["W_out_norm"].to_numpy()

    def per_move(kind, g, weights):
        move = (sums[f"{kind}abs_shift"] * length)[:, g].sum(1)
        return weights @ sums[f"{kind}{BEYOND}"][:, g].sum(1) / (weights @ move)

    def of(drawn, weights):
        return np.stack([per_move("", g, weights) / per_move("common_", g, weights) for g in drawn], 1)

    return beside_groups(of, len(sums["abs_shift"]), groups, rng)


def type_specific(run, step, rng):
    """Correlation over pairs of tokens of one type in different contexts, and of one context and different types."""
    arrays, out = run.at(step, "experiments.safetensors"), []
    place = np.unique(arrays["context"], return_inverse=True)[1]
    one_type = arrays["target"][:, None] == arrays["target"]
    one_context = place[:, None] == place

    def correlation(x, w, pairs):
        x = x - w @ x / w.sum()
        weighted = w[:, None] * x
        return (weighted * (pairs @ weighted)).sum(0) / (w @ pairs @ w) / (w @ x**2 / w.sum())

    of_type, of_context = (pairs.astype(float) for pairs in (one_type & ~one_context, one_context & ~one_type))
    of_neuron, drawn = arrays["type_correlation"], run.at(step, "groups.safetensors")
    for role, matched in zip(ROLES, np.split(drawn["matched_random"], 2), strict=True):
        x = arrays[f"delta_rank_{role}"].astype(float)
        value = correlation(x, np.ones(len(place)), of_type).mean()
        nulls = [of_neuron[groups].mean(1) for groups in (drawn["random"], matched)]
        out += [of_groups(against(value, null), above=True, source=role) for null in nulls]

        def beyond(weights, x=x):
            both = ([correlation(x, w[place], pairs).mean() for w in weights] for pairs in (of_type, of_context))
            return np.subtract(*both)

        out.append(of_contexts(np.eye(place.max() + 1), beyond, rng, source=f"{role}, contexts"))
    return out


def rare_only_plateau(run, step, rng):
    """Mean height of the ranks before the line over the line, at rare less at common targets."""
    sums, line = run.at(step, "context_sums.safetensors"), run.at(step, "phases.json")["all"]
    both = (sums["n_tokens"] > 0) & (sums["common_n_tokens"] > 0)
    first, last = line["fit_first"], line["fit_last"]
    kinds = [sums[name][both].astype(float) for name in ("abs_delta_loss", "common_abs_delta_loss")]
    kinds = [x[:, np.argsort(-x.sum(0), kind="stable")] for x in kinds]

    def height(x, weights):
        u, out = np.log(np.arange(1, x.shape[1] + 1)), []
        for total in np.log(np.maximum(weights @ x, x.sum(0).min())):
            slope, start = np.polyfit(u[first - 1 : last], total[first - 1 : last], 1)
            out.append(np.mean(total[: first - 1] - start - slope * u[: first - 1]))
        return np.array(out)

    def difference(weights):
        return height(kinds[0], weights) - height(kinds[1], weights)

    return [of_contexts(np.eye(both.sum()), difference, rng, 999)]


TESTS = {
    "frequency-explains": share(BEYOND),
    "norm-explains": share("direct_abs_delta_loss"),
    "rare-beyond-frequency": rare_beyond_frequency,
    "type-specific": type_specific,
    "rare-only-plateau": rare_only_plateau,
}
