"""groups.json, groups.safetensors: both groups and every random draw (docs/reproduce.md)."""

import numpy as np


def top(delta, size, n):
    order = np.argsort(-size, kind="stable")
    return order[delta[order] > 0][:n], order[delta[order] < 0][:n]


def strata(members, pool, covariate):
    everyone = np.concatenate([members, pool])
    in_order = everyone[np.argsort(covariate[everyone], kind="stable")]
    return np.array_split(in_order, max(1, len(in_order) // 20))


def matched(members, pool, covariate, n_draws, rng):
    n_of = [(s, int(np.isin(s, members).sum())) for s in strata(members, pool, covariate)]
    return np.array([np.concatenate([rng.choice(s, n, replace=False) for s, n in n_of if n]) for _ in range(n_draws)])


def pairs(first, second, pool, covariate, n_draws, rng):
    both = np.concatenate([first, second])
    n_of = [(s, np.isin(s, first).sum(), np.isin(s, both).sum()) for s in strata(both, pool, covariate)]
    out = []
    for _ in range(n_draws):
        drawn = [(rng.choice(s, n_both, replace=False), n) for s, n, n_both in n_of if n_both]
        out.append(np.concatenate([d[:n] for d, n in drawn] + [d[n:] for d, n in drawn]))
    return np.array(out)


def draw_all(delta, size, covariate, config, rng):
    """Both groups and all random ones, in the order in which the one generator makes them."""
    n, n_draws = config["group_size"], config["n_random"]
    boosting, suppressing = top(delta, size, n)
    pool = np.setdiff1d(np.arange(len(size)), np.concatenate([boosting, suppressing]))
    if len(pool) > 4096:
        pool = np.sort(rng.choice(pool, 4096, replace=False))
    random = np.array([rng.choice(pool, n, replace=False) for _ in range(n_draws)])
    like = [matched(members, pool, covariate, n_draws, rng) for members in (boosting, suppressing)]
    return {
        "boosting": boosting,
        "suppressing": suppressing,
        "random": random,
        "matched_random": np.concatenate(like),
        "matched_pairs": pairs(boosting, suppressing, pool, covariate, n_draws, rng),
    }


def check(run, step, report):
    table, record = run.at(step, "effects.parquet"), run.at(step, "groups.json")
    columns = (table[name].to_numpy() for name in ("delta_loss", "abs_delta_loss", "move"))
    found = draw_all(*columns, run.config, run.generator("groups"))
    stored = {name: record[name] for name in ("boosting", "suppressing")} | run.at(step, "groups.safetensors")
    report.same("groups: files", sorted(stored), sorted(found))
    for name, neurons in found.items():
        report.same(f"groups: {name}", stored[name], neurons)
    covariate = table[record["matched_on"]].to_numpy()
    for role, drawn in zip(("boosting", "suppressing"), np.split(found["matched_random"], 2), strict=True):
        numbers = record["matching"][role]
        report.close("groups: matching", numbers["group"], covariate[found[role]].mean())
        report.close("groups: matching", numbers["matched"], covariate[drawn].mean())
        report.close("groups: matching", numbers["uniform"], covariate[found["random"]].mean())
        report.close("groups: matching", numbers["shared"], np.isin(drawn, found[role]).mean())
        report.same("groups: distinct", numbers["distinct"], len(np.unique(drawn)))
    return found
