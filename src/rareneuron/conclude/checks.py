"""Checks whether the measurement can be trusted: would another text, another ablation, a frozen norm say the same?

Such properties may hold for a random model too, so they are neither claims nor part of Holm's family (docs/claims.md).
"""

from collections.abc import Callable

import numpy as np

from rareneuron.errors import RareNeuronError
from rareneuron.maths import reliability
from rareneuron.maths.claims import Check
from rareneuron.maths.reliability import Estimate
from rareneuron.maths.significance import Z, bootstrap_interval
from rareneuron.runs.experiments import read_experiments
from rareneuron.runs.options import with_option
from rareneuron.runs.run import Run
from rareneuron.runs.seeds import generator

HALF_WIDTH = "abs_delta_loss_half_width"  # a column of runs whose effects are estimates
WHAT = {
    "split-half": "Reliability of mean |Δ| (Spearman between halves of the contexts, corrected to full length)",
    "split-half-groups": "Share of a group that both halves of the contexts choose, of the group that keeps less",
    "estimated-groups": "Share of a group that is chosen again within what estimates leave open, of the one that keeps "
    "less",
    "zero-ablation": "Spearman correlation of mean |Δ| over neurons, at the same tokens",
    "direct": "Share of |Δ| of the groups' neurons that stays with the norm's scale frozen",
}


def checks(run: Run) -> tuple[Check, ...]:
    """Return the checks of the measurement, with 95 % intervals; one that can't be made says why."""
    wanted: list[tuple[str, str, float, Callable[[Run, np.random.Generator], Estimate]]] = [
        ("split-half", "Another half of the text ranks the neurons alike", 0.8, split_half),
        ("split-half-groups", "Another half of the text chooses the same groups", 0.8, group_stability),
        ("zero-ablation", "Zero- and mean-ablation rank the neurons alike", 0.8, zero_ablation_agreement),
        ("direct", "The groups act directly, not through the final norm's scale", 0.5, direct_share),
    ]
    if HALF_WIDTH in run.effects():
        wanted.insert(2, ("estimated-groups", "Better estimates would choose the same groups", 0.8, group_certainty))
    out = []
    for name, title, least, compute in wanted:
        try:
            found = compute(run, generator(run.manifest.config.seed, "checks", name))
        except RareNeuronError as error:
            why = with_option(error)
            out.append(Check(name=name, title=title, value=None, low=None, high=None, at_least=least, sentence=why))
            continue
        value, low, high = found.value, found.low, found.high
        holds = "holds" if low >= least else "does not hold"
        sentence = f"{WHAT[name]}: {value:.3f} (95 %: {low:.3f} … {high:.3f}); asked for are {least:g}: {holds}."
        out.append(Check(name=name, title=title, value=value, low=low, high=high, at_least=least, sentence=sentence))
    return tuple(out)


def split_half(run: Run, rng: np.random.Generator) -> Estimate:
    """Return the reliability of mean |Δ| between halves of the contexts."""
    stored = run.context_sums()
    return reliability.split_half(sums_of_contexts(stored, "abs_delta_loss"), rng)


def group_stability(run: Run, rng: np.random.Generator) -> Estimate:
    """Return the share of a group that both halves of the contexts choose."""
    stored, size = run.context_sums(), run.manifest.config.group_size
    sums, abs_sums = (sums_of_contexts(stored, name) for name in ("delta_loss", "abs_delta_loss"))
    return reliability.group_stability(sums, abs_sums, size, rng)


def group_certainty(run: Run, rng: np.random.Generator) -> Estimate:
    """Return the share of a group that is chosen again within what verification left open about its estimates."""
    table, names = run.effects(), ("delta_loss", "abs_delta_loss")
    means, errors = (
        table[[f"{name}{suffix}" for name in names]].to_numpy(np.float64).T / scale
        for suffix, scale in (("", 1.0), ("_half_width", Z))
    )
    return reliability.group_certainty(means, errors, run.manifest.config.group_size, rng)


def sums_of_contexts(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return a statistic's sums [context, neuron] at rare targets, for contexts that have such targets, in float64."""
    return stored[name][stored["n_tokens"] > 0].astype(np.float64)


def zero_ablation_agreement(run: Run, rng: np.random.Generator) -> Estimate:
    """Return Spearman's ρ of zero- and mean-ablation at the same tokens."""
    found = read_experiments(run.folder())
    return reliability.rank_agreement(found["mean_ablation"], found["zero_ablation"])


def direct_share(run: Run, rng: np.random.Generator) -> Estimate:
    """Return 1 − E|Δ − direct Δ| / E|Δ|, with contexts resampled."""
    found = read_experiments(run.folder())
    _, row = np.unique(found["context"], return_inverse=True)
    sums = np.stack([np.bincount(row, found["rare_norm_part"]), np.bincount(row, found["rare_total"])], 1)
    value = 1 - float(sums[:, 0].sum() / sums[:, 1].sum())
    low, high = bootstrap_interval(sums, np.bincount(row), rng, lambda t, _: 1 - t[:, 0] / t[:, 1])
    return Estimate(value=value, low=float(low), high=float(high))
