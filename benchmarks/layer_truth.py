"""Truth for estimates of earlier layers: every neuron of the shipped series' model patched, in every context.

Layers 0 and 1 are replayed (`models/replay.py`), the last layer is computed in closed form. A file holds, for each
layer, neuron and context, the sums over the context's rare tokens of |Δ| and of Δ, and the tokens themselves, so that
estimates and their certificate can be judged in seconds. Neurons are replaced by their mean over all positions.

    python benchmarks/layer_truth.py --step 4096             into benchmarks/truth/; 10 to 20 minutes on one core
    python benchmarks/layer_truth.py --step 2048 --seed 1    other contexts
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import rareneuron as rn
from rareneuron.embedded import SERIES
from rareneuron.maths.ablation import AblationEngine
from rareneuron.models.replay import CleanContext, Replay
from rareneuron.models.sites import head_of, site_of
from rareneuron.study.tokens import choose_tokens, study_corpus

TRUTH = Path(__file__).parent / "truth"


def rare_tokens(adapter, n_contexts, most, seed):
    """Return windows, and context and position of at most `most` rare tokens of each."""
    config = rn.StudyConfig(n_tokens=20 * n_contexts, seed=seed)
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    rng = np.random.default_rng(seed)
    windows, context, position = [], [], []
    counts = np.bincount(selection.context[selection.rare], minlength=len(selection.windows))
    full = np.flatnonzero(counts >= most - 1)
    for row, drawn in enumerate(np.sort(rng.permutation(full)[:n_contexts])):
        at = selection.position[(selection.context == drawn) & selection.rare]
        at = np.sort(rng.permutation(at)[:most])
        windows.append(selection.windows[drawn])
        context += [row] * len(at)
        position += at.tolist()
    return np.array(windows), np.array(context), np.array(position)


def mean_activations(adapter, windows, layer):
    act = adapter.capture(windows, layer).act
    return act.double().mean((0, 1)), act


def replayed(adapter, windows, context, position, layer):
    """Return Δ of every token and neuron."""
    mean_act, _ = mean_activations(adapter, windows, layer)
    site, head = site_of(adapter.anatomy, layer), head_of(adapter.anatomy)
    delta = np.zeros((len(context), site.n_units), np.float32)
    started = time.perf_counter()
    for row in range(len(windows)):
        of_row = context == row
        ids, at = torch.from_numpy(windows[row]).long(), torch.from_numpy(position[of_row])
        replay = Replay(CleanContext(adapter.anatomy, head, [site], ids, at), mean_act)
        delta[of_row] = replay.loss_changes(torch.arange(site.n_units)).delta_loss.T.numpy()
        print(f"layer {layer}, context {row + 1} of {len(windows)}: {time.perf_counter() - started:.0f} s", flush=True)
    return delta


def in_closed_form(adapter, windows, context, position, layer):
    mean_act, act = mean_activations(adapter, windows, layer)
    engine = AblationEngine(adapter.readout(layer), adapter.weights(layer).W_out, memory=2**30)
    resid = adapter.capture(windows, layer).resid[context, position]
    target = torch.from_numpy(windows[context, position + 1]).long()
    return engine.effects(resid, mean_act - act[context, position].double(), target).delta_loss.numpy()


def sums_by_context(values, context, n_contexts):
    sums = np.zeros((n_contexts, values.shape[1]))
    np.add.at(sums, context, values.astype(np.float64))
    return sums.T.astype(np.float32)  # [neuron, context]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=4096)
    parser.add_argument("--contexts", type=int, default=40)
    parser.add_argument("--most", type=int, default=8, help="rare tokens of a context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TRUTH)
    parser.add_argument("--pairs", type=Path, help="a folder that also gets Δ of every pair, for work on estimates")
    args = parser.parse_args()
    adapter = rn.load_model(SERIES / f"step{args.step}", device="cpu")
    windows, context, position = rare_tokens(adapter, args.contexts, args.most, args.seed)
    print(f"{len(context)} rare tokens of {len(windows)} contexts", flush=True)
    found = {"windows": windows.astype(np.int32), "context": context, "position": position}
    for layer in range(adapter.n_layers - 1, -1, -1):
        compute = in_closed_form if layer == adapter.n_layers - 1 else replayed
        delta = compute(adapter, windows, context, position, layer)
        found[f"absolute.{layer}"] = sums_by_context(np.abs(delta), context, len(windows))
        found[f"signed.{layer}"] = sums_by_context(delta, context, len(windows))
        if args.pairs:
            args.pairs.mkdir(parents=True, exist_ok=True)
            np.save(args.pairs / f"step{args.step}-{layer}.npy", delta)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / f"step{args.step}.npz", **found)


if __name__ == "__main__":
    main()
