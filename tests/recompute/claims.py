"""claims.json: every test, Holm's correction and verdict, and the checks, from the other files (docs/claims.md)."""

import numpy as np
from folder import OUTER, ROLES, against, levels, outer_levels
from groups import draw_all, top
from phases import FAMILIES, TINY, order_statistics
from scipy.interpolate import PchipInterpolator
from scipy.stats import norm, rankdata

ABSENCES = ("no-clustering", "no-routing")
NOT_TESTED = "plateau-grows"  # needs six checkpoints
KINK = 1e-4  # the fit of the cubic stops at 1e-10 of the likelihood, so its scores have about five digits; p is exact


def one_test(value, null_mean, effect, p, least, low=np.nan, high=np.nan, source=None, found_from=None):
    """A test's numbers; what its errors come from; and the effect that it finds at some p with some power."""
    return {
        "source": source,
        "found_from": found_from,
        "value": value,
        "null_mean": null_mean,
        "effect": effect,
        "p": p,
        "least_p": least,
        "effect_low": low,
        "effect_high": high,
    }


def of_groups(found, above, source=None, step=0):
    """The one-sided test of a value against draws of groups, its interval the value less 95 % of the draws."""
    sign = 1 if above else -1
    value = found["value"]
    low, high = sorted((sign * (value - found["null_high"]), sign * (value - found["null_low"])))
    p = found["p_above" if above else "p_below"]
    effect = sign * (value - found["null_mean"])
    level = [*outer_levels(found["n_draws"]), 0.025, 0.975]
    at = [found[name] - found["null_mean"] for name in (*OUTER, "null_low", "null_high")]
    quantile = curve(level, at) if above else curve(1 - np.array(level), -np.array(at))

    def found_from(p, power):
        return quantile(1 - p) + step - quantile(1 - power)

    return one_test(value, found["null_mean"], effect, p, 1 / (1 + found["n_draws"]), low, high, source, found_from)


def of_contexts(sums, ratio, rng, n_draws=1999, source=None):
    """The test that a statistic is above 0, contexts resampled."""
    n, value = len(sums), ratio(sums.sum(0, keepdims=True))[0]
    draws = ratio(rng.multinomial(n, np.full(n, 1 / n), size=n_draws) @ sums)
    low, high = np.quantile(draws, levels(n))
    error = np.sort(draws - value)
    quantile = curve(np.arange(1, n_draws + 1) / (n_draws + 1), error)
    skewness = np.mean(((error - error.mean()) / error.std()) ** 3)

    def found_from(p, power):
        return -quantile(p) * max(1, 1 + skewness / 2 * norm.ppf(1 - power)) - quantile(1 - power)

    p = (1 + np.sum(draws <= 0)) / (1 + n_draws)
    return one_test(value, 0.0, value, p, 1 / (1 + n_draws), low, high, source, found_from)


def curve(level, at):
    """A distribution's quantiles, interpolated over normal scores, with normal tails beyond them."""
    order = np.argsort(level)
    z, at = norm.ppf(np.asarray(level)[order]), np.asarray(at)[order]
    inside = PchipInterpolator(z, at)

    def quantile(p):
        x = norm.ppf(p)
        if z[0] <= x <= z[-1]:
            return float(inside(x))
        i, j = (0, 1) if x < z[0] else (-1, -2)
        return at[i] + (at[i] - at[j]) / (z[i] - z[j]) * (x - z[i])

    return quantile


def three_phases(run, step, rng):
    found = run.at(step, "phases.json")["all"]
    p, there = max(found["null_p"].values()), found["outcome"] == "three phases"
    p = p if there or p > 0.05 else 1.0
    return [one_test(found["kappa"], np.nan, float(there), p, 1 / (1 + found["n_draws"]))]


def slope_kink(run, step, rng):
    """The largest score of a kink, beside those of samples of smooth curves."""
    y = np.log(run.at(step, "rank_curve.parquet")["abs_delta_loss"].to_numpy())
    last = len(y) // 2
    u = np.log(np.arange(4, last))
    smooth = np.linalg.qr(np.vander(2 * (u - u[0]) / np.ptp(u) - 1, 4))[0]
    kink = np.maximum(u[:, None] - np.arange(u[0] + 0.5, u[-1] - 0.5, 0.1), 0)
    kink = kink - smooth @ (smooth.T @ kink)
    kink /= np.linalg.norm(kink, axis=0)

    def spacings(y):
        return np.maximum(np.arange(4, last) * -np.diff(y[:, 3:last]), TINY)

    def scores(D):
        eta = np.array([fitted(row, smooth) for row in D])
        return ((D * np.exp(-eta) - 1) @ kink).max(1), eta

    (value,), eta = scores(spacings(y[None]))
    samples = [np.exp(eta) * rng.standard_exponential((600, len(u)))]
    samples += [spacings(log_q(order_statistics(600, len(y), rng))) for log_q, _ in FAMILIES.values()]
    return [of_groups(against(value, scores(D)[0]), above=True) for D in samples]


def fitted(D, smooth):
    """Log κ(u) by maximum likelihood: exponential spacings whose log mean is a cubic; Newton's steps, halved."""

    def value(eta):
        return -(eta + D * np.exp(-eta)).sum()

    eta = np.full(len(D), np.log(D.mean()))
    for _ in range(200):
        step, size = smooth @ (smooth.T @ (D * np.exp(-eta) - 1)), 1.0
        while value(eta + size * step) < value(eta) and size > 1e-9:
            size /= 2
        gain = value(eta + size * step) - value(eta)
        eta = eta + size * step
        if gain <= 1e-13 * abs(value(eta)):
            break
    return eta


def of_rows(name, statistic, of, above, step=0, **where):
    def tests(run, step, rng):
        rows = [
            r
            for r in run.at(step, name)["rows"]
            if r["statistic"] == statistic and all(r[k] == v for k, v in where.items())
        ]
        found = [
            r
            for group in of
            for null in ("uniform", "matched")
            for r in rows
            if (r["group"], r["null"]) == (group, null)
        ]
        return [of_groups(row, above, row["group"], step) for row in found]

    return tests


def groups_elsewhere(run, step, arrays):
    """Groups chosen by effects in the contexts that are not in the sample of the experiments."""
    sums = run.at(step, "context_sums.safetensors")
    others = np.setdiff1d(np.flatnonzero(sums["n_tokens"] > 0), np.unique(arrays["context"]))
    n = sums["n_tokens"][others].sum()
    delta, size = (sums[name][others].astype(float).sum(0) / n for name in ("delta_loss", "abs_delta_loss"))
    covariate = run.at(step, "effects.parquet")["move"].to_numpy()
    return draw_all(delta, size, covariate, run.config, run.generator("claims", "groups elsewhere"))


def specificity(suffix):
    def tests(run, step, rng):
        arrays, length = (
            run.at(step, "experiments.safetensors"),
            run.at(step, "effects.parquet")["W_out_norm"].to_numpy(),
        )
        groups = groups_elsewhere(run, step, arrays)
        parts = [arrays[f"{k}_{n}{suffix}"].astype(float) for k in ("rare", "common") for n in ("ablation", "shift")]
        parts[1], parts[3] = parts[1] * length, parts[3] * length

        def S(drawn, weights):
            a, b, c, d = (np.stack([weights @ x[:, g].sum(1) for g in drawn], 1) for x in parts)
            return (a / b) / (c / d)

        once, out = np.ones((1, len(parts[0]))), []
        for role, matched in zip(ROLES, np.split(groups["matched_random"], 2), strict=True):
            own = groups[role][None]
            value, drawn = S(own, once)[0, 0], (groups["random"], matched)
            out += [of_groups(against(value, S(some, once)[0]), above=True, source=role) for some in drawn]

            def excess(weights, own=own, matched=matched):
                return S(own, weights)[:, 0] - S(matched[:200], weights).mean(1)

            out.append(of_contexts(np.eye(len(parts[0])), excess, rng, 1000, f"{role}, contexts"))
        return out

    return tests


def joint_sum(run, step, rng):
    arrays, out = run.at(step, "experiments.safetensors"), []
    row = np.unique(arrays["context"], return_inverse=True)[1]
    for role, sign in zip(ROLES, (1, -1), strict=True):
        excess = sign * (arrays[f"joint_{role}"] - arrays[f"sum_{role}"])
        sums = np.stack([np.bincount(row, x) for x in (excess, arrays[f"abs_sum_{role}"])], 1)
        out.append(of_contexts(sums, lambda totals: totals[:, 0] / totals[:, 1], rng, source=role))
    return out


def joint_random(run, step, rng):
    arrays, out = run.at(step, "experiments.safetensors"), []
    at = arrays["joint_at"]
    for role, sign in zip(ROLES, (1, -1), strict=True):
        excess = sign * (arrays[f"joint_{role}"] - arrays[f"sum_{role}"])[at].sum()
        value = excess / arrays[f"abs_sum_{role}"][at].sum()
        for null in ("uniform", f"matched_{role}"):
            together, alone, size = arrays[f"joint_{null}"].T
            out.append(of_groups(against(value, sign * (together - alone) / size), above=True, source=role))
    return out


def no_clustering(run, step, rng):
    """Modularity less than 0.1 off the mean of either null: two tests on either side, the larger p of both."""
    found, out = run.at(step, "modularity.safetensors"), []
    for role in ROLES:
        for null in ("matched", "same strengths"):
            value, draws = found[role][0], found[f"{role} {null}"]
            draws = draws + found[f"{role} error"][0] * rng.standard_normal(len(draws))
            beside, n = against(value, draws), len(draws) + 1
            p = max(1 + np.sum(~(draws + 0.1 > value)), 1 + np.sum(~(draws - 0.1 < value))) / n
            ends = [value - beside["null_high"], value - beside["null_low"]]
            nearest = 0 if ends[0] <= 0 <= ends[1] else min(np.abs(ends))
            low, high = 0.1 - max(np.abs(ends)), 0.1 - nearest
            effect = 0.1 - abs(value - beside["null_mean"])
            quantile = curve(np.arange(1, n) / n, np.sort(draws) - beside["null_mean"])

            def found_from(p, power, q=quantile):
                missed = (1 - power) / 2
                return max(q(1 - missed) - q(p), q(1 - p) - q(missed))

            out.append(one_test(value, beside["null_mean"], effect, p, 1 / n, low, high, role, found_from))
    return out


WITH_RANDOM = tuple(f"{role}-random" for role in ROLES)
TESTS = {
    "three-phases": three_phases,
    "slope-kink": slope_kink,
    "correlation-within": of_rows("geometry.json", "correlation", ROLES, True),
    "correlation-random": of_rows("geometry.json", "correlation", WITH_RANDOM, False),
    "dimension": of_rows("geometry.json", "d_eff_zscored", ROLES, False, step=1),
    "cosine-within": of_rows("geometry.json", "cosine", ROLES, True),
    "cosine-across": of_rows("geometry.json", "cosine", ("boosting-suppressing",), True),
    "cosine-random": of_rows("geometry.json", "cosine", WITH_RANDOM, False),
    "heavy-tail-W_in": of_rows("spectrum.json", "alpha_hill", ROLES, False, matrix="W_in"),
    "heavy-tail-W_out": of_rows("spectrum.json", "alpha_hill", ROLES, False, matrix="W_out"),
    "rare-specific": specificity(""),
    "rare-specific-loss": specificity("_equal_loss"),
    "joint-sum": joint_sum,
    "joint-random": joint_random,
    "no-clustering": no_clustering,
}


def holm(p):
    order, out, running = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - k) * p[i]))
        out[i] = running
    return out


def largest_p(least, n_tested):
    """The largest p that Holm accepts at its hardest, and that isn't too close to call."""
    wanted = [k for k in range(1, 1000) if k == 1 or k * least < 1]
    error = [0.0 if k == 1 else np.sqrt((1 - k * least) / k) for k in wanted]
    found = [k * least for k, e in zip(wanted, error, strict=True) if k * least * n_tested * (1 + 1.96 * e) <= 0.05]
    return max(found, default=np.nan)


def verdict(tests, weakest, p_holm, smallest, n_tested, *, absence=False):
    """The rule of docs/claims.md, in its order, and the effect that all tests find in 80 % of cases."""
    p, least = weakest["p"], weakest["least_p"]
    levels = [largest_p(t["least_p"], n_tested) for t in tests]
    could = all(np.isfinite(levels))
    power = 1 - 0.2 / len({t["source"] for t in tests})
    sizes = [
        t["found_from"](x, power) if t["found_from"] and could else np.nan for t, x in zip(tests, levels, strict=True)
    ]
    error = 0.0 if round(p / least) <= 1 else np.sqrt((1 - p) * least / p)
    if (
        p_holm <= 0.05
        and p_holm * (1 + 1.96 * error) <= 0.05
        and (absence or min(t["effect"] for t in tests) >= smallest)
    ):
        return "supported", max(sizes)
    earned = could and max(sizes) <= smallest
    return "not supported" if p_holm > 0.05 and p > 0.05 and earned else "inconclusive", max(sizes)


def check(run, more, report):
    """Compare all claims; `more` are tests of claims that stand in another file."""
    record, step = run.json("claims.json"), run.steps[-1]
    stored = {claim["name"]: claim for claim in record["claims"]}
    all_tests = TESTS | more
    report.same("claims: names", sorted([*all_tests, NOT_TESTED]), sorted(stored))
    report.same("claims: too few steps", stored[NOT_TESTED]["verdict"], "inconclusive")
    found = {name: tests(run, step, run.generator("claims", name)) for name, tests in all_tests.items()}
    for name, tests in found.items():
        report.same(f"claims: {name}, number of tests", len(stored[name]["tests"]), len(tests))
        if len(stored[name]["tests"]) != len(tests):
            continue
        for one, other in zip(stored[name]["tests"], tests, strict=True):
            for column, number in list(other.items())[2:]:
                kept = np.nan if one[column] is None else one[column]
                report.close(f"claims: {name}, {column}", kept, number, KINK if name == "slope-kink" else 1e-6)
    weakest = {name: max(tests, key=lambda t: (t["p"], -t["effect"])) for name, tests in found.items()}
    adjusted = holm([test["p"] for test in weakest.values()])
    for (name, worst), p_holm in zip(weakest.items(), adjusted, strict=True):
        report.close("claims: p", stored[name]["p"], worst["p"])
        report.close("claims: p_holm", stored[name]["p_holm"], p_holm)
        said, size = verdict(
            found[name], worst, p_holm, record["smallest_effects"][name], len(found), absence=name in ABSENCES
        )
        report.same(f"claims: verdict, {name}", stored[name]["verdict"], said)
        kept = stored[name]["detectable"]
        report.close(
            "claims: detectable", np.nan if kept is None else kept, size, KINK if name == "slope-kink" else 1e-5
        )
    for stored_check in record["checks"]:
        value = CHECKS[stored_check["name"]](run, step, run.generator("checks", stored_check["name"]))
        ends = [stored_check[name] for name in ("low", "value", "high")]
        report.close(f"checks: {stored_check['name']}", ends, value)


def spearman(a, b):
    return np.corrcoef(rankdata(a), rankdata(b))[0, 1]


def halves(run, step, rng):
    """Sums of Δ and |Δ| over either half of the contexts, 99 times."""
    sums = run.at(step, "context_sums.safetensors")
    both = [sums[name][sums["n_tokens"] > 0].astype(float) for name in ("delta_loss", "abs_delta_loss")]
    for _ in range(99):
        half = rng.permutation(len(both[0])) < len(both[0]) // 2
        yield [[x[rows].sum(0) for x in both] for rows in (half, ~half)]


def split_half(run, step, rng):
    rho = np.array([spearman(one[1], other[1]) for one, other in halves(run, step, rng)])
    return np.quantile(np.where(rho > 0, 2 * rho / (1 + rho), rho), (0.025, 0.5, 0.975))


def same_groups(run, step, rng):
    n, shares = run.config["group_size"], []
    for halved in halves(run, step, rng):
        one, other = (top(*totals, n) for totals in halved)
        shares.append([len(np.intersect1d(a, b)) / n for a, b in zip(one, other, strict=True)])
    shares = np.array(shares)
    return np.quantile(shares[:, shares.mean(0).argmin()], (0.025, 0.5, 0.975))


def zero_ablation(run, step, rng):
    arrays = run.at(step, "experiments.safetensors")
    rho = spearman(arrays["mean_ablation"], arrays["zero_ablation"])
    error = 1.96 * 1.06 / np.sqrt(len(arrays["mean_ablation"]) - 3)
    return np.tanh(np.arctanh(rho) - error), rho, np.tanh(np.arctanh(rho) + error)


def direct(run, step, rng):
    arrays = run.at(step, "experiments.safetensors")
    row = np.unique(arrays["context"], return_inverse=True)[1]
    sums = np.stack([np.bincount(row, arrays[name]) for name in ("rare_norm_part", "rare_total")], 1)
    n, total = len(sums), sums.sum(0)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=2000) @ sums
    low, high = np.quantile(1 - drawn[:, 0] / drawn[:, 1], levels(n))
    return low, 1 - total[0] / total[1], high


CHECKS = {
    "split-half": split_half,
    "split-half-groups": same_groups,
    "zero-ablation": zero_ablation,
    "direct": direct,
}
