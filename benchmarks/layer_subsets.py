"""Estimates of a real model's layers against exact values: all neurons of the last layer, and some of others.

The closed form gives the last layer's truth. In other layers the largest by estimate, as many random neurons and those
that move the residual stream furthest are patched in every context. Pairs are of a token and a neuron; a pair is
flagged if its neuron moves the residual stream by more than a fifth of its median length somewhere, or if its random
readout moves by more than half a nat. A few pairs carry most of the error, so r² has an interval, contexts resampled.

    python benchmarks/layer_subsets.py MODEL --data TEXT --counts FILE --layers 2 15 28
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from scipy.stats import spearmanr

import rareneuron as rn
from rareneuron.maths.ablation import ablation_engine
from rareneuron.maths.certificate import FAR
from rareneuron.maths.first_order import STRAIGHT
from rareneuron.maths.significance import expanded_levels
from rareneuron.models.gradient import estimates, site_means
from rareneuron.models.replay import CleanContext, Replay
from rareneuron.models.sites import head_of, site_of
from rareneuron.study.tokens import choose_tokens, study_corpus


def tokens_of(adapter, args):
    """Return windows, and context and position of at most `most` rare tokens of each."""
    config = rn.StudyConfig(
        model=args.model,
        data=args.data,
        counts=args.counts,
        rarity="occurrences",
        percentile=10,
        context_length=args.length,
        n_tokens=args.contexts * args.most,
        per_context=args.most,
        group_size=5,
        max_corpus_tokens=args.max_corpus_tokens,
    )
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    rare = selection.rare
    return selection.windows, selection.context[rare], selection.position[rare]


def estimated(adapter, sites, windows, tokens, means, row_positions):
    """Return D, D + K̂ and the longest move, [site][token, unit], and the seconds it took."""
    D, both, move = ([np.zeros((len(tokens[0]), site.n_units)) for site in sites] for _ in range(3))
    began = time.perf_counter()
    for found in estimates(
        adapter.anatomy,
        head_of(adapter.anatomy),
        sites,
        windows,
        tokens,
        [m.mean for m in means],
        row_positions=row_positions,
    ):
        for i, of_site in enumerate(found.of_site):
            D[i][found.index] = of_site.delta_loss.double().numpy()
            both[i][found.index] = of_site.estimate.double().numpy()
            move[i][found.index] = of_site.move.double().numpy()
    return D, both, move, time.perf_counter() - began


def patched(adapter, site, windows, tokens, mean, units):
    """Return the exact Δ of some units at every token."""
    context, position = tokens
    out = np.zeros((len(context), len(units)))
    began = time.perf_counter()
    for row in np.unique(context):
        at = np.flatnonzero(context == row)
        ids, positions = torch.from_numpy(windows[row]).long(), torch.from_numpy(position[at])
        clean = CleanContext(adapter.anatomy, head_of(adapter.anatomy), [site], ids, positions)
        out[at] = Replay(clean, mean).loss_changes(torch.from_numpy(units)).delta_loss.T.numpy()
    return out, time.perf_counter() - began


def in_closed_form(adapter, windows, tokens, mean):
    """Return the exact Δ of every neuron of the last layer."""
    context, position = tokens
    captured = adapter.capture(windows, -1)
    act, readout = captured.act[context, position], adapter.readout()
    engine = ablation_engine(readout, adapter.W_out, memory=2**30)
    target = torch.from_numpy(windows[context, position + 1]).long()
    mlp_out = readout.mlp_output(act, adapter.W_out)
    effects = engine.effects(captured.resid[context, position], mean - act.double(), target, mlp_out=mlp_out)
    return effects.delta_loss.double().numpy()


def quality(found, exact, context, far, bent):
    """Return how estimates [token, unit] compare with exact values; units may move far, and pairs be bent."""
    low, high = r2_interval(found, exact, context, ~(far | bent))
    ours, theirs = np.abs(found).mean(0), np.abs(exact).mean(0)
    top = np.argsort(-theirs)[:100]
    best = [set(np.argsort(-of)[:50].tolist()) for of in (ours, theirs)]
    return {
        "units": exact.shape[1],
        "far": int(far.sum()),
        "bent_share": float(bent[:, ~far].mean()),
        "spearman": spearmanr(ours, theirs).statistic,
        "r_signed": np.corrcoef(found.mean(0), exact.mean(0))[0, 1],
        "error_top": np.median(np.abs(ours[top] / theirs[top] - 1)),
        "recall_50": len(best[0] & best[1]) / min(50, exact.shape[1]),
        "r2_pairs": r2(found, exact),
        "r2_not_far": r2(found[:, ~far], exact[:, ~far]),
        "r2_unflagged": r2(found[~(far | bent)], exact[~(far | bent)]),
        "r2_unflagged_low": low,
        "r2_unflagged_high": high,
        "worst_far": [round(float(x), 3) for x in np.sort((ours / theirs - 1)[far])[[0, -1]]] if far.any() else None,
    }


def r2(found, exact):
    """Return the share of the variance of pairs that estimates explain."""
    return 1 - np.square(found - exact).sum() / np.square(exact - exact.mean()).sum() if exact.size else None


def r2_interval(found, exact, context, counted, n_draws=2000):
    """Return the ends of r²'s 95 % interval over contexts."""
    rows = []
    for one in np.unique(context):
        here, there = counted[context == one], exact[context == one]
        x, error = there[here], (found[context == one] - there)[here]
        rows.append((np.square(error).sum(), np.square(x).sum(), x.sum(), x.size))
    n = len(rows)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=n_draws) @ np.array(rows)
    error, square, total, size = drawn.T
    return np.quantile(1 - error / (square - total**2 / size), expanded_levels(n))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--counts")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 15, 28])
    parser.add_argument("--contexts", type=int, default=12)
    parser.add_argument("--most", type=int, default=4, help="rare tokens of a context")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--units", type=int, default=24, help="the largest of a layer, and as many random ones")
    parser.add_argument("--max-corpus-tokens", type=int, default=200_000)
    args = parser.parse_args()
    adapter = rn.load_model(args.model, device="cpu")
    windows, *tokens = tokens_of(adapter, args)
    print(f"{len(tokens[0])} rare tokens of {len(windows)} contexts", file=sys.stderr, flush=True)
    layers = [*args.layers, adapter.n_layers - 1]
    sites = [site_of(adapter.anatomy, layer) for layer in range(adapter.n_layers)]
    means = site_means(adapter.anatomy, sites, windows)
    D, both, move, seconds = estimated(adapter, sites, windows, tokens, means, row_positions=512)
    print(json.dumps({"tokens": len(tokens[0]), "seconds_of_all_layers": round(seconds, 1)}), flush=True)
    rng = np.random.default_rng(0)
    for layer in layers:
        far = move[layer].max(0) > FAR * means[layer].median_norm
        bent = both[layer] - D[layer] > STRAIGHT**2 / 2  # K̂ of one draw, |S| > STRAIGHT
        if layer == adapter.n_layers - 1:
            units, per_cell = np.arange(sites[layer].n_units), None
            exact = in_closed_form(adapter, windows, tokens, means[layer].mean)
        else:
            largest = np.argsort(-np.abs(both[layer]).mean(0))[: args.units]
            furthest = np.argsort(-move[layer].max(0))[:6]
            units = np.unique(np.concatenate([largest, furthest, rng.permutation(sites[layer].n_units)[: args.units]]))
            exact, took = patched(adapter, sites[layer], windows, tokens, means[layer].mean, units)
            per_cell = took / (len(units) * len(windows))
        for name, found in (("D", D), ("D + K", both)):
            row = quality(found[layer][:, units], exact, tokens[0], far[units], bent[:, units])
            numbers = {k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}
            print(json.dumps({"layer": layer, "estimate": name, "seconds_a_cell": per_cell} | numbers), flush=True)


if __name__ == "__main__":
    main()
