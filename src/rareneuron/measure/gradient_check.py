"""Holds estimates by gradient against the closed form at the last layer, where both are to be had.

Every study that estimates effects does this, on tokens of its own: a fault in how a model is followed back shows here.
"""

import numpy as np
import torch
from scipy.stats import spearmanr

from rareneuron.data.selection import Selection
from rareneuron.errors import Unavailable, WrongEffects
from rareneuron.maths.ablation import ablation_engine
from rareneuron.measure.capture import capture, join_batches, part_of_tokens
from rareneuron.models.adapter import Adapter
from rareneuron.models.gradient import estimates
from rareneuron.models.sites import head_of, site_of
from rareneuron.runs.records import GradientCheck

N_TOKENS = 64
LARGEST = 100
LEAST_SPEARMAN = 0.8  # below, estimates are refused; random models, whose effects bend most, have more than 0.9


def gradient_check(
    adapter: Adapter, selection: Selection, rng: np.random.Generator, memory: int
) -> GradientCheck | None:
    """Compare both at a random sample of tokens; return None for a model without a readout behind its last layer.

    Neurons are replaced by their mean over these tokens. Raises `WrongEffects` where estimates rank neurons otherwise.
    """
    readout = adapter.readout_behind(-1)
    if isinstance(readout, Unavailable):
        return None
    rows = np.sort(rng.permutation(len(selection.context))[:N_TOKENS])
    part = part_of_tokens(selection, rows)
    site = site_of(adapter.anatomy, -1)
    batch = next(iter(join_batches(capture(adapter, part, -1), len(rows))))
    mean = batch.act.double().mean(0)
    shift = mean - batch.act.double()
    engine = ablation_engine(readout, site.W_out, memory=memory)
    effects = engine.effects(batch.resid, shift, batch.target, mlp_out=readout.mlp_output(batch.act, site.W_out))
    exact = effects.delta_loss[torch.from_numpy(np.argsort(batch.index))].cpu().double().numpy()
    found = np.zeros_like(exact)
    tokens, key = (part.context, part.position), int(rng.integers(2**31))
    for some in estimates(adapter.anatomy, head_of(adapter.anatomy), [site], part.windows, tokens, [mean], key=key):
        found[some.index] = some.of_site[0].estimate.double().cpu().numpy()
    return judged_check(found, exact)


def judged_check(found: np.ndarray, exact: np.ndarray) -> GradientCheck:
    """Return how estimates [token, neuron] compare with exact effects; refuse those that rank neurons otherwise."""
    ours, theirs = np.abs(found).mean(0), np.abs(exact).mean(0)
    largest = np.argsort(-theirs)[:LARGEST]
    check = GradientCheck(
        n_tokens=len(exact),
        spearman=float(spearmanr(ours, theirs).statistic),
        pearson=float(np.corrcoef(found.mean(0), exact.mean(0))[0, 1]),
        median_error=float(np.median(np.abs(ours[largest] / theirs[largest] - 1))),
    )
    if not check.spearman >= LEAST_SPEARMAN:
        raise WrongEffects(
            f"At the last layer, estimates by gradient rank neurons otherwise than the closed form does (Spearman "
            f"{check.spearman:.2f} over {len(ours):,} neurons at {len(exact)} tokens), so those of other layers can't "
            "be trusted either. Use `--engine patching`."
        )
    return check
