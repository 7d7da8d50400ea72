"""Is the measurement itself to be trusted: would another text, another ablation, a frozen norm say the same?

Such properties may hold of a random model, too, so they are no claims and no part of Holm's family (docs/claims.md).
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from rareneuron.errors import RareNeuronError
from rareneuron.maths.claims import Check
from rareneuron.maths.groups import top_neurons
from rareneuron.maths.significance import bootstrap_interval
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.run import Run

SPLITS = 99  # of the contexts into halves
LARGEST = 1 - 1e-12  # correlation that has a finite arctanh
WHAT = {
    "split-half": "Reliability of mean |Δ| (Spearman between halves of the contexts, corrected to full length)",
    "split-half-groups": "Share of a group that both halves of the contexts choose, of the group that keeps less",
    "zero-ablation": "Spearman correlation of mean |Δ| over neurons, at the same tokens",
    "direct": "Share of |Δ| of the groups' neurons that stays with the norm's scale frozen",
}


def checks(run: Run, rng: np.random.Generator) -> tuple[Check, ...]:
    """Properties of the measurement: would another text, another ablation, a frozen norm say the same?"""
    wanted: list[tuple[str, str, float, Callable[[], tuple[float, float, float]]]] = [
        ("split-half", "Another half of the text ranks the neurons alike", 0.8, lambda: split_half(run, rng)),
        ("split-half-groups", "Another half of the text chooses the same groups", 0.8, lambda: same_groups(run, rng)),
        ("zero-ablation", "Zero- and mean-ablation rank the neurons alike", 0.8, lambda: zero_agrees(run)),
        ("direct", "The groups act directly, not through the final norm's scale", 0.5, lambda: direct_share(run, rng)),
    ]
    out = []
    for name, title, least, compute in wanted:
        try:
            value, low, high = compute()
        except RareNeuronError as error:
            out.append(
                Check(name=name, title=title, value=None, low=None, high=None, at_least=least, sentence=str(error))
            )
            continue
        holds = "holds" if low >= least else "does not hold"
        sentence = f"{WHAT[name]}: {value:.3f} (95 %: {low:.3f} … {high:.3f}); asked for are {least:g}: {holds}."
        out.append(Check(name=name, title=title, value=value, low=low, high=high, at_least=least, sentence=sentence))
    return tuple(out)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of effects that differ."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise RareNeuronError("All neurons have the same effect, so there is no ranking that could be repeated.")
    return float(spearmanr(a, b).statistic)


def halvable(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sums per context, and the contexts with rare targets."""
    stored = run.context_sums()
    held = np.flatnonzero(stored["n_tokens"] > 0)
    if len(held) < 4:
        raise RareNeuronError(f"{len(held)} contexts are too few to be halved. Analyse more tokens (--n-tokens).")
    return stored, held


def split_half(run: Run, rng: np.random.Generator) -> tuple[float, float, float]:
    """Median and middle 95 % over splits of the contexts; Spearman–Brown."""
    stored, held = halvable(run)
    sums = stored["abs_delta_loss"][held].astype(np.float64)
    found = []
    for _ in range(SPLITS):
        half = rng.permutation(len(held)) < len(held) // 2
        rho = rank_correlation(sums[half].sum(0), sums[~half].sum(0))
        found.append(2 * rho / (1 + rho) if rho > 0 else rho)  # below 0 there is nothing to correct
    low, middle, high = np.quantile(found, [0.025, 0.5, 0.975])
    return float(middle), float(low), float(high)


def same_groups(run: Run, rng: np.random.Generator) -> tuple[float, float, float]:
    """Median and middle 95 % over splits. A group needs its sign, too, which mean |Δ| doesn't know."""
    stored, held = halvable(run)
    size = run.manifest["config"]["group_size"]
    both = np.stack([stored[name][held] for name in ("delta_loss", "abs_delta_loss")]).astype(np.float64)
    found = []
    for _ in range(SPLITS):
        half = rng.permutation(len(held)) < len(held) // 2
        sums = [both[:, rows].sum(1) for rows in (half, ~half)]
        one, other = (top_neurons(delta, absolute, size) for delta, absolute in sums)
        found.append([len(np.intersect1d(a, b)) / size for a, b in zip(one, other, strict=True)])
    shares = np.array(found)
    low, middle, high = np.quantile(shares[:, shares.mean(0).argmin()], [0.025, 0.5, 0.975])
    return float(middle), float(low), float(high)


def zero_agrees(run: Run) -> tuple[float, float, float]:
    """Spearman's ρ with Fisher's interval over neurons."""
    found = read_experiments(run.folder())
    rho, n = rank_correlation(found["mean_ablation"], found["zero_ablation"]), len(found["mean_ablation"])
    if n <= 3:
        raise RareNeuronError(f"{n} neurons are too few for an interval of a rank correlation.")
    z, error = np.arctanh(min(rho, LARGEST)), 1.96 * 1.06 / np.sqrt(n - 3)
    return rho, float(np.tanh(z - error)), float(np.tanh(z + error))


def direct_share(run: Run, rng: np.random.Generator) -> tuple[float, float, float]:
    """1 − E|Δ − direct Δ| / E|Δ|, contexts resampled."""
    found = read_experiments(run.folder())
    _, row = np.unique(found["context"], return_inverse=True)
    sums = np.stack([np.bincount(row, found["rare_norm_part"]), np.bincount(row, found["rare_total"])], 1)
    value = 1 - float(sums[:, 0].sum() / sums[:, 1].sum())
    low, high = bootstrap_interval(sums, np.bincount(row), rng, lambda t, _: 1 - t[:, 0] / t[:, 1])
    return value, float(low), float(high)
