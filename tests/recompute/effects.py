"""effects.parquet, rank_curve.parquet, context_sums.safetensors: from the sums, and from the model (Eq. 1, 3, 4)."""

import numpy as np
from folder import ROLES

# The engine computes single tokens' Δ and KL from tables in float32 and expansions whose error it bounds: 1e-6 of the
# largest and less in means of |Δ|. A signed mean loses two digits more to cancellation, and so does KL, a difference.
OF_ENGINE = {"abs": 1e-5, "signed": 1e-4, "kl": 5e-4}


def mean_and_se(sums, n_tokens):
    """Mean per token, and its standard error clustered by context."""
    sums, n_tokens = sums[n_tokens > 0].astype(np.float64), n_tokens[n_tokens > 0]
    mean, C = sums.sum(0) / n_tokens.sum(), len(sums)
    residual = sums - mean * n_tokens[:, None]
    return mean, np.sqrt(C / (C - 1) * (residual**2).sum(0)) / n_tokens.sum()


def sort_of(name):
    return "kl" if name == "kl" else "abs" if "abs" in name else "signed"


def from_sums(run, step, report):
    """What follows from the sums per context alone: means, errors, ranks, the rank curve, roles."""
    table, sums = run.at(step, "effects.parquet"), run.at(step, "context_sums.safetensors")
    for prefix in ("", "common_"):
        for name in (f"{prefix}delta_loss", f"{prefix}abs_delta_loss"):
            mean, se = mean_and_se(sums[name], sums[f"{prefix}n_tokens"])
            report.close(f"effects from sums: {name}", table[name], mean)
            report.close(f"effects from sums: {name}_se", table[f"{name}_se"], se)
    size = table["abs_delta_loss"].to_numpy()
    order = np.argsort(-size, kind="stable")
    curve, groups = run.at(step, "rank_curve.parquet"), run.at(step, "groups.json")
    report.same("rank curve: order", curve["index"], order)
    report.same("rank curve: values", curve["abs_delta_loss"], size[order])
    report.same("effects: rank", table["rank"].to_numpy()[order], np.arange(1, len(size) + 1))
    role = np.full(len(size), "other", dtype=object)
    for name in ROLES:
        role[groups[name]] = name
    report.same("effects: role", table["role"].to_numpy(dtype=object), role)


def from_model(run, step, model, report):
    """The same by the definitions, and everything else in the table, from the model's weights and the contexts.

    Returns the tokens as the model sees them, with Δ and direct Δ of every neuron.
    """
    table, tokens = run.at(step, "effects.parquet"), run.tokens
    resid, act = model.forward(run.windows)
    at = tokens["context"].to_numpy(), tokens["position"].to_numpy()
    resid, act, target = resid[at], act[at], tokens["target"].to_numpy()
    loss = -model.log_p(resid)[np.arange(len(target)), target]
    report.close("token_loss: loss", run.at(step, "token_loss.safetensors")["loss"], loss)
    report.close("effects: W_out_norm", table["W_out_norm"], np.linalg.norm(model.W_out, axis=1))
    stored = run.at(step, "context_sums.safetensors")
    every = np.empty((2, *act.shape))
    for prefix, kind in (("", True), ("common_", False)):
        some = tokens["rare"].to_numpy() == kind
        mean = act[some].mean(0)
        report.close(f"effects: {prefix}mean_act", table[f"{prefix}mean_act"], mean)
        delta, kl, direct = model.ablated(resid[some], mean - act[some], target[some])
        every[:, some] = delta, direct
        values = {"delta_loss": delta, "abs_delta_loss": abs(delta), "kl": kl, "abs_shift": abs(mean - act[some])}
        values |= {"direct_delta_loss": direct, "direct_abs_delta_loss": abs(direct)}
        for name, value in values.items():
            sums = np.zeros((len(run.windows), value.shape[1]))
            np.add.at(sums, at[0][some], value)
            found = mean_and_se(sums, np.bincount(at[0][some], minlength=len(sums)))
            for suffix, numbers in zip(("", "_se"), found, strict=True):
                report.close(
                    f"effects: {prefix}{name}{suffix}",
                    table[f"{prefix}{name}{suffix}"],
                    numbers,
                    OF_ENGINE[sort_of(name)],
                )
            if name in ("delta_loss", "abs_delta_loss"):
                report.close(f"context_sums: {prefix}{name}", stored[f"{prefix}{name}"], sums, OF_ENGINE["signed"])
    rare = tokens["rare"].to_numpy()
    report.close("effects: mean_abs_act", table["mean_abs_act"], abs(act[rare]).mean(0))
    report.close("effects: move", table["move"], table["abs_shift"] * np.linalg.norm(model.W_out, axis=1))
    tokens = {"resid": resid, "act": act, "target": target, "rare": rare, "context": at[0], "loss": loss}
    return tokens | {"delta": every[0], "direct": every[1]}
