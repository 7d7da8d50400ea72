"""layers.parquet beside its sums, and the claims about layers and what heads write (docs/layers.md, docs/claims.md)."""

import numpy as np
from claims import curve, groups_elsewhere, of_contexts, one_test
from folder import ROLES, against, levels

NAMES = [f"neurons.{kind}.{name}" for kind in ("rare", "common") for name in ("abs_delta_loss", "moved")]
MARGIN = 0.1


def check(run, step, report):
    """Means of all units, added up, are what the sums say of a layer; ranks follow from the means."""
    table, sums = run.at(step, "layers.parquet"), run.at(step, "layers.safetensors")
    of_layer = table.groupby("layer")
    report.same("layers: layer", sums["neurons.layer"], sorted(of_layer.groups))
    for of, prefix in (("rare", ""), ("common", "common_")):
        n = sums[f"{of}.n_tokens"].sum()
        for name in ("abs_delta_loss", "moved"):
            mean = sums[f"neurons.{of}.{name}"].astype(float).sum(0) / n
            report.close(f"layers: {prefix}{name}", of_layer[f"{prefix}{name}"].sum(), mean)
    order = np.argsort(-table["abs_delta_loss"].to_numpy(), kind="stable")
    report.same("layers: rank", table["rank"].to_numpy()[order], 1 + np.arange(len(table)))


def by_layer(run, step):
    sums = run.at(step, "layers.safetensors")
    return np.stack([sums[name].astype(float) for name in NAMES], 1)


def last_layer_special(run, step, rng):
    """Rare over common, each for the distance moved: the last layer's over another's, the largest other first."""
    sums = by_layer(run, step)

    def ratio(totals):
        a, b, c, d = totals.reshape(len(totals), 4, -1).transpose(1, 0, 2)
        return (a / b) / (c / d)

    flat, state, out = sums.reshape(len(sums), -1), rng.bit_generator.state, []
    for layer in np.argsort(-ratio(flat.sum(0)[None])[0, :-1], kind="stable"):
        rng.bit_generator.state = state

        def beyond(totals, layer=layer):
            return ratio(totals)[:, -1] / ratio(totals)[:, layer] - 1

        out.append(of_contexts(flat, beyond, rng, source=layer))
    return out


def layers_share(run, step, rng):
    sums = by_layer(run, step)

    def more(totals):
        rare, _, common, _ = totals.reshape(len(totals), 4, -1).transpose(1, 0, 2)
        return rare[:, -1] / rare.sum(1) - common[:, -1] / common.sum(1)

    return [of_contexts(sums.reshape(len(sums), -1), more, rng)]


def within(value, null_mean, ends, p, least, source, found_from):
    """A test of an absence: what the difference leaves of the margin, and the interval of that."""
    nearest = 0 if ends[0] <= 0 <= ends[1] else min(np.abs(ends))
    effect = MARGIN - abs(value - null_mean)
    return one_test(
        value, null_mean, effect, p, least, MARGIN - max(np.abs(ends)), MARGIN - nearest, source, found_from
    )


def beside_groups(value, draws, source):
    beside, n = against(value, draws), len(draws) + 1
    p = max(1 + np.sum(~(draws + MARGIN > value)), 1 + np.sum(~(draws - MARGIN < value))) / n
    q = curve(np.arange(1, n) / n, np.sort(draws) - beside["null_mean"])

    def found_from(p, power):
        missed = (1 - power) / 2
        return max(q(1 - missed) - q(p), q(1 - p) - q(missed))

    ends = value - beside["null_high"], value - beside["null_low"]
    return within(value, beside["null_mean"], ends, p, 1 / n, source, found_from)


def over_contexts(statistic, n_contexts, rng, source, n_draws=1000):
    value = statistic(np.ones((1, n_contexts)))[0]
    draws = statistic(rng.multinomial(n_contexts, np.full(n_contexts, 1 / n_contexts), size=n_draws).astype(float))
    n = n_draws + 1
    p = (1 + max(np.sum(draws >= MARGIN), np.sum(draws <= -MARGIN))) / n
    q = curve(np.arange(1, n) / n, np.sort(draws - value))

    def found_from(p, power):
        missed = (1 - power) / 2
        return max(q(1 - missed) + q(1 - p), -q(missed) - q(p))

    return within(value, 0.0, np.quantile(draws, levels(n_contexts)), p, 1 / n, source, found_from)


def no_routing(run, step, rng):
    """Log influence of each replaced head on a group at rare over common targets, less that on other groups."""
    groups = groups_elsewhere(run, step, run.at(step, "experiments.safetensors"))
    arrays, out = run.at(step, "routing.safetensors"), []
    for head in run.at(step, "routing.json")["patched"]:

        def R(drawn, weights, head=head):
            means = [
                np.stack([weights @ arrays[f"{head}.{kind}"].astype(float)[:, g].sum(1) for g in drawn], 1)
                / (weights @ arrays[f"n_{kind}"])[:, None]
                for kind in ("rare", "common")
            ]
            return np.log(means[0] / means[1])

        n_contexts = len(arrays["n_rare"])
        once = np.ones((1, n_contexts))
        for role, matched in zip(ROLES, np.split(groups["matched_random"], 2), strict=True):
            own = groups[role][None]
            value = R(own, once)[0, 0]
            uniform = R(groups["random"], once)[0]
            N, n = len(np.unique(groups["random"])), groups["random"].shape[1]
            uniform = uniform.mean() + np.sqrt((N + n) / (N - n)) * (uniform - uniform.mean())
            out += [beside_groups(value, draws, (head, role)) for draws in (uniform, R(matched, once)[0])]

            def beyond(weights, own=own, matched=matched):
                return R(own, weights)[:, 0] - R(matched[:200], weights).mean(1)

            out.append(over_contexts(beyond, n_contexts, rng, (head, role, "contexts")))
    return out


TESTS = {"last-layer-special": last_layer_special, "layers-share": layers_share, "no-routing": no_routing}
