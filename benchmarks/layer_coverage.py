"""What estimates by gradient and their certificate are worth, on truths of every neuron (benchmarks/truth).

The first table has the estimates without verification. The second draws the certificate's random parts many times and
counts how often its 95 % intervals hold the exact value; the naive t interval over random contexts, for as many cells,
stands beside it. The truth of step 2048 was used for no choice in the design.

With `--pooled` all layers are certified at once, as `study --layers all` does it: the last layer is known in closed
form, a layer's errors may have a size of their own, and patching ends early by the rule of a study.

    python benchmarks/layer_coverage.py --draws 60
    python benchmarks/layer_coverage.py --draws 60 --pooled --shares 0.02
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr, t

import rareneuron as rn
from rareneuron.embedded import SERIES
from rareneuron.maths.certificate import OUTCOMES, Estimated, certify, in_doubt
from rareneuron.maths.clustered import ClusteredMean
from rareneuron.maths.first_order import ContextTotals
from rareneuron.models.gradient import estimates, site_means
from rareneuron.models.sites import head_of, site_of

TRUTH = Path(__file__).parent / "truth"
POOLED = (
    "| | mean abs Δ covered | top 100 | mean Δ covered | top 100 | recall 50 | undecided | wrongly decided | "
    "patched |\n" + "|---" * 9 + "|"
)


def estimated(step, truth, n_draws, layers=(0, 1, 2)):
    """Return the totals of each layer, and which units move the residual stream far."""
    anatomy = rn.load_model(SERIES / f"step{step}", device="cpu").anatomy
    sites = [site_of(anatomy, layer) for layer in layers]
    windows = truth["windows"].astype(np.int64)
    means = site_means(anatomy, sites, windows)
    totals = [ContextTotals(len(windows), site.n_units) for site in sites]
    tokens = (truth["context"], truth["position"])
    for batch in estimates(
        anatomy, head_of(anatomy), sites, windows, tokens, [m.mean for m in means], n_draws=n_draws, key=step
    ):
        for total, found in zip(totals, batch.of_site, strict=True):
            total.add(found, truth["context"][batch.index])
    return [
        (total.values | {"move": total.move}, in_doubt(total.values["absolute"], total.move, mean.median_norm))
        for total, mean in zip(totals, means, strict=True)
    ]


def quality(sums, exact):
    """Return the measures of an unverified estimate."""
    theirs, ours = exact[0].sum(0), sums["absolute"].sum(0)
    top = np.argsort(-theirs)[:100]
    return {
        "Spearman": spearmanr(theirs, ours).statistic,
        "r signed": np.corrcoef(exact[1].sum(0), sums["signed"].sum(0))[0, 1],
        "error": np.median(np.abs(ours[top] / theirs[top] - 1)),
        "recall 50": len({*top[:50]} & {*np.argsort(-ours)[:50]}) / 50,
    }


def naive(sums, exact, n_tokens, n_contexts, rng):
    """Estimate by the difference over a few random contexts, with a t interval."""
    estimate = np.stack([sums[name] for name in OUTCOMES])
    size = estimate.shape[1]
    residual = (exact - estimate)[:, rng.permutation(size)[:n_contexts]]
    half = t.ppf(0.975, n_contexts - 1) * residual.std(1, ddof=1) * np.sqrt((1 - n_contexts / size) / n_contexts)
    return (estimate.sum(1) + size * residual.mean(1)) / n_tokens, size * half / n_tokens


def coverage(sums, flagged, exact, n_tokens, share, n_draws):
    """Return what the certificate does on average over draws, in one row for each outcome."""
    truth = exact.sum(1) / n_tokens
    top = [np.argsort(-np.abs(of))[:100] for of in truth]
    rows = [[], []]
    for draw in range(n_draws):
        rng = np.random.default_rng([17, draw])
        n_cells = round(share * exact[0].size)
        kinds = [Estimated(sums=sums, n_tokens=n_tokens)]
        found = certify(kinds, lambda unit, context: exact[:, context, unit], rng, n_cells=n_cells, flagged=flagged)
        simple, simple_half = naive(sums, exact, n_tokens, max(3, round(share * exact.shape[1])), rng)
        for i in range(2):
            error, half = np.abs(found.estimate[i] - truth[i]), found.half_width[i]
            ours = np.argsort(-np.abs(found.estimate[i]))[:50]
            decided = np.setdiff1d(ours, found.undecided)
            covered = error <= half + 1e-12
            naively = np.abs(simple[i] - truth[i]) <= simple_half[i]
            rows[i].append(
                (
                    covered[~flagged].mean(),
                    covered[top[i]].mean(),
                    np.median(half[top[i]] / np.abs(truth[i][top[i]])),
                    np.sqrt(np.mean((error / np.abs(truth[i]))[top[i]] ** 2)),
                    len({*ours} & {*top[i][:50]}) / 50,
                    len(found.undecided),
                    len({*decided} - {*top[i][:50]}) if i == 0 else np.nan,
                    found.known.mean(),
                    naively[~flagged].mean(),
                    naively[top[i]].mean(),
                )
            )
    return [np.mean(of, 0) for of in rows]


def pooled(of_layers, truth, n_draws, share):
    """Return what one certificate of all layers does on average over draws: a row for each layer and outcome."""
    names = of_layers[0][0].keys()
    sums = {name: np.concatenate([of[0][name] for of in of_layers], 1) for name in names}
    layer = np.repeat(np.arange(len(of_layers)), [of[1].size for of in of_layers])
    flagged = np.concatenate([of[1] for of in of_layers]) | (layer == layer.max())
    exact = np.stack(
        [
            np.concatenate([truth[f"{name}.{i}"].T.astype(np.float64) for i in range(len(of_layers))], 1)
            for name in OUTCOMES
        ]
    )
    n_tokens = np.bincount(truth["context"], minlength=len(truth["windows"]))
    mean = ClusteredMean(len(layer))
    mean.add(torch.from_numpy(sums["absolute"]), torch.from_numpy(n_tokens))
    kinds = [Estimated(sums=sums, n_tokens=int(n_tokens.sum()))]
    theta = exact.sum(1) / n_tokens.sum()
    top = set(np.argsort(-theta[0])[:50])
    rows = []
    for draw in range(n_draws):
        found = certify(
            kinds,
            lambda unit, context: exact[:, context, unit],
            np.random.default_rng([19, draw]),
            n_cells=round(share * (~flagged).sum() * len(n_tokens)),
            flagged=flagged,
            layer=layer,
            enough=mean.standard_error / 2,
        )
        ours = np.argsort(-found.estimate[0])[:50]
        decided = set(np.setdiff1d(ours, found.undecided))
        patched = found.known[:, ~flagged].mean()
        for i in range(len(of_layers) - 1):
            members = np.flatnonzero((layer == i) & ~flagged)
            largest = members[np.argsort(-theta[0][members])[:100]]
            covered = np.abs(found.estimate - theta) <= found.half_width + 1e-12
            row = [covered[0, members].mean(), covered[0, largest].mean(), covered[1, members].mean()]
            row += [covered[1, largest].mean(), len(set(ours) & top) / 50, len(found.undecided), len(decided - top)]
            rows.append((i, *row, patched))
    return pd.DataFrame(rows).groupby(0).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--steps", type=int, nargs="+", default=[4096, 512, 2048])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--pooled", action="store_true", help="one certificate of all layers")
    parser.add_argument("--signs", type=int, default=1, help="random readouts of each token (R)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    unverified, verified = [], []
    for step in args.steps:
        truth = dict(np.load(TRUTH / f"step{step}.npz"))
        n_tokens = len(truth["context"])
        if args.pooled:
            of_layers = estimated(step, truth, args.signs)
            for share in args.shares:
                print(f"step {step}, at most {share:.0%} of the cells\n{POOLED}")
                for layer, row in pooled(of_layers, truth, args.draws, share).iterrows():
                    print(f"| layer {layer} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
            continue
        for layer, (sums, flagged) in enumerate(estimated(step, truth, args.signs)):
            exact = np.stack([truth[f"{name}.{layer}"].T.astype(np.float64) for name in OUTCOMES])
            found = quality(sums, exact)
            numbers = " | ".join(f"{value:.4f}" for value in found.values())
            print(f"step {step}, layer {layer}: {found}", file=sys.stderr, flush=True)
            unverified.append(f"| step{step} L{layer} | {n_tokens} | {numbers} | {flagged.sum()} |")
            for share in args.shares:
                for name, row in zip(
                    OUTCOMES, coverage(sums, flagged, exact, n_tokens, share, args.draws), strict=True
                ):
                    numbers = " | ".join(f"{value:.3f}" for value in row)
                    verified.append(f"| step{step} L{layer} {name} | {share:.0%} | {numbers} |")
    if args.pooled:
        return
    print("| model, layer | tokens | Spearman | r signed | error, top 100 | recall 50 | flagged |\n" + "|---" * 7 + "|")
    print("\n".join(unverified))
    print(
        "\n| model, layer, effect | cells | covered, all | top 100 | half-width | rms error | recall 50 | undecided | "
        "wrongly decided | patched | naive: all | naive: top 100 |\n" + "|---" * 12 + "|"
    )
    print("\n".join(verified))


if __name__ == "__main__":
    main()
