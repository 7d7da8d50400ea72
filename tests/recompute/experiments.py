"""experiments.safetensors: what claims need beyond single effects, from the model, in the drawn sample of contexts."""

import numpy as np
from folder import ROLES
from scipy.stats import rankdata

RANKS = 0.01  # of effects among tokens: two that are as good as equal may change places
SINGLE = 1e-5  # of one token's Δ, which the engine computes from tables in float32; means have more digits


def sampled(run, tokens):
    """The contexts of the sample: in a drawn order until they hold 600 rare tokens, half of all contexts at most."""
    n_rare = np.bincount(tokens["context"][tokens["rare"]], minlength=len(run.windows))
    order = run.generator("experiments").permutation(len(n_rare))
    enough = max(1, min(int(np.searchsorted(n_rare[order].cumsum(), 600)) + 1, len(order) // 2))
    return np.isin(tokens["context"], order[:enough])


def equal_loss(rare, common):
    """Weights of the tokens of either kind under which both spread alike over ten bins of clean loss."""
    both = np.concatenate([rare, common])
    edges = np.quantile(both, np.arange(1, 10) / 10)
    bins = [np.searchsorted(edges, x, side="right") for x in (rare, common)]
    counts = np.array([np.bincount(b, minlength=10) for b in bins])
    share = np.where(counts.min(0) > 0, counts[0], 0) / counts[0][counts.min(0) > 0].sum()
    return [share[b] / n[b] for b, n in zip(bins, counts, strict=True)]


def check(run, step, groups, model, tokens, report):
    stored, table = run.at(step, "experiments.safetensors"), run.at(step, "effects.parquet")
    chosen, found = sampled(run, tokens), {}
    parts = {}
    for kind, of_kind in (("rare", True), ("common", False)):
        at = chosen & (tokens["rare"] == of_kind)
        mean = table["mean_act" if of_kind else "common_mean_act"].to_numpy()
        shift = mean - tokens["act"][at]
        parts[kind] = {"at": at, "shift": shift} | {name: tokens[name][at] for name in ("delta", "direct", "loss")}
    rows = np.unique(tokens["context"][chosen], return_inverse=True)[1]
    weights = equal_loss(parts["rare"]["loss"], parts["common"]["loss"])
    found["common_n_eff"] = [len(parts["common"]["loss"]), weights[1].sum() ** 2 / (weights[1] ** 2).sum()]
    for (kind, part), weight in zip(parts.items(), weights, strict=True):
        row = rows[part["at"][chosen]]
        for suffix, w in (("", np.ones(len(row))), ("_equal_loss", weight)):
            for name, value in (("ablation", part["delta"]), ("shift", part["shift"])):
                sums = np.zeros((rows.max() + 1, value.shape[1]))
                np.add.at(sums, row, w[:, None] * abs(value))
                found[f"{kind}_{name}{suffix}"] = sums
    found |= of_rare(groups, model, tokens, parts["rare"])
    report.same("experiments: arrays", sorted(stored), sorted(found))
    for name, value in found.items():
        ranked = name.startswith(("delta_rank", "type_correlation"))
        report.close(f"experiments: {name}", stored[name], value, RANKS if ranked else SINGLE)


def of_rare(groups, model, tokens, rare):
    """Both ablations, the norm's part, and joint effects beside the sums of single ones."""
    at, delta, shift = rare["at"], rare["delta"], rare["shift"]
    resid, act, target = (tokens[name][at] for name in ("resid", "act", "target"))
    zero, _, _ = model.ablated(resid, -act, target)
    both = np.concatenate([groups[role] for role in ROLES])
    out = {"context": tokens["context"][at], "mean_ablation": abs(delta).mean(0), "zero_ablation": abs(zero).mean(0)}
    out["rare_total"] = abs(delta[:, both]).mean(1)
    out["rare_norm_part"] = abs(delta - rare["direct"])[:, both].mean(1)

    def joint(some, group):
        move = shift[some][:, group] @ model.W_out[group]
        single = delta[some][:, group]
        return model.delta(resid[some], move, target[some]), single.sum(1), abs(single).sum(1)

    out["target"] = target
    ranks = rankdata(delta, axis=0)
    pairs = (target[:, None] == target) & (out["context"][:, None] != out["context"])
    centred = ranks - ranks.mean(0)
    out["type_correlation"] = (centred * (pairs @ centred)).sum(0) / pairs.sum() / centred.var(0)
    for role in ROLES:
        out[f"delta_rank_{role}"] = ranks[:, groups[role]]
        for name, value in zip(("joint", "sum", "abs_sum"), joint(slice(None), groups[role]), strict=True):
            out[f"{name}_{role}"] = value
    matched = dict(zip(ROLES, np.split(groups["matched_random"], 2), strict=True))
    random = {"uniform": groups["random"]} | {f"matched_{role}": drawn for role, drawn in matched.items()}
    n = min(128, max(16, len(target) // 4))  # fewer where the vocabulary is large (docs/reproduce.md)
    out["joint_at"] = np.round(np.linspace(0, len(target) - 1, n)).astype(int)
    for name, drawn in random.items():
        out[f"joint_{name}"] = np.array([[x.mean() for x in joint(out["joint_at"], g)] for g in drawn[:600]])
    return out
