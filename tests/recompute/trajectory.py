"""trajectory.parquet, from the other files of the run."""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
GEOMETRY = ("correlation", "cosine", "abs_correlation", "abs_cosine", "d_eff", "d_eff_zscored")


def group_columns(run, step):
    out, geometry, spectrum = {}, *(run.at(step, f"{name}.json")["rows"] for name in ("geometry", "spectrum"))
    rows = [(f"{row['statistic']}_{row['group'].replace('-', '_')}", row) for row in geometry]
    rows = [(n, row) for n, row in rows if row["statistic"] in GEOMETRY and not row["group"].startswith("random")]
    spectrum = [row for row in spectrum if row["statistic"] == "alpha_hill" and row["group"] != "random"]
    rows += [(f"alpha_hill_{row['matrix']}_{row['group']}", row) for row in spectrum]
    for name in dict(rows):
        null = {row["null"]: row for column, row in rows if column == name}
        uniform, matched = null["uniform"], null["matched"]
        one_side = (uniform["value"] > uniform["null_mean"]) == (matched["value"] > matched["null_mean"])
        out[name], out[f"{name}_null"] = uniform["value"], uniform["null_mean"]
        out[f"{name}_matched"] = matched["null_mean"]
        out[f"{name}_p"] = max(uniform["p"], matched["p"]) if one_side else 1.0
    return out


def row_of(run, step, before, after):
    size, found = run.at(step, "effects.parquet")["abs_delta_loss"].to_numpy(), run.at(step, "phases.json")["all"]
    tokens, loss = run.tokens, run.at(step, "token_loss.safetensors")["loss"]
    out = {"step": int(step), "definitions": run.config["definitions"], "outcome": found["outcome"]}
    out |= {"loss_rare": loss[tokens["rare"]].mean(), "loss_common": loss[~tokens["rare"]].mean()}
    out |= {f"abs_delta_loss_{name}": np.quantile(size, q) for name, q in QUANTILES.items()}
    out["n_eff"] = size.sum() ** 2 / (size**2).sum()
    out |= {name: found[name] for name in ("kappa", "beta", "r_squared", "plateau_end", "decay_start")}
    out["kappa_low"], out["kappa_high"] = found["intervals"]["kappa"]
    end = found["plateau_end"]
    deviation = run.at(step, "phases.safetensors")["all.deviation"]
    out["plateau_share"] = None if end is None else end / len(size)
    out["plateau_height"] = None if end is None else deviation[:end].mean()
    out |= group_columns(run, step)
    out |= layer_shares(run, step)
    for name, other in (("previous", before), ("last", after)):
        out[f"plateau_overlap_{name}"] = None if other is None else overlap(run, step, other, None)
        out[f"top_overlap_{name}"] = None if other is None else overlap(run, step, other, 50)
    others = None if after is None else run.at(after, "effects.parquet")["abs_delta_loss"]
    out["rank_correlation_last"] = None if others is None else spearmanr(size, others).statistic
    return out


def layer_shares(run, step):
    """Each layer's part of the sum of |Δ| over neurons, at rare and at common targets."""
    sums, out = run.at(step, "layers.safetensors"), {}
    for kind, prefix in (("rare", ""), ("common", "common_")):
        total = sums[f"neurons.{kind}.abs_delta_loss"].astype(float).sum(0)
        shares = zip(sums["neurons.layer"], total / total.sum(), strict=True)
        out |= {f"{prefix}share_layer_{layer}": share for layer, share in shares}
    return out


def overlap(run, step, other, n):
    """Jaccard overlap of the n largest effects, or of the plateaus, of two steps."""
    sets = []
    for at in (step, other):
        end = run.at(at, "phases.json")["all"]["plateau_end"] if n is None else n
        if end is None:
            return None
        sets.append(set(run.at(at, "rank_curve.parquet")["index"][:end]))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def check(run, report):
    stored, steps, rows = run.table("trajectory.parquet"), run.steps, []
    for i, step in enumerate(steps):
        last = None if i == len(steps) - 1 else steps[-1]
        rows.append(row_of(run, step, steps[i - 1] if i else None, last))
    found = pd.DataFrame(rows)
    report.same("trajectory: columns", sorted(stored.columns), sorted(found.columns))
    for name in found.columns.intersection(stored.columns):
        if name in ("definitions", "outcome"):
            report.same(f"trajectory: {name}", stored[name].to_numpy(dtype=object), found[name].to_numpy(dtype=object))
        else:
            pair = (x[name].astype("float64").to_numpy(na_value=np.nan) for x in (stored, found))
            report.close(f"trajectory: {name}", *pair)
