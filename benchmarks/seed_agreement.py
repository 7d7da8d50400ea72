"""Do two seeds agree within their intervals? Two studies of one model that differ by the seed alone.

Each draws its own contexts and tokens. Of a neuron, z is the difference of its mean Δ between the seeds, over the root
of the sum of their squared standard errors. Were the errors right, 5 % of neurons had |z| > 1.96. With few contexts
they aren't: an error from 7 contexts is itself uncertain by 29 %. One JSON line for the default choice of tokens, and
one for whole contexts, as a control that fails.

    python benchmarks/seed_agreement.py MODEL --data TEXT --counts FILE --rarity occurrences --percentile 10
"""

import argparse
import json
import time

import numpy as np


def effects_of(config):
    """Return mean Δ and its standard error for each neuron, by the closed form, and what was computed."""
    from rareneuron.measure.checkpoint import load_checkpoint
    from rareneuron.measure.effects import layer_effects
    from rareneuron.measure.engines import engine_kind
    from rareneuron.measure.identity import piece_identity
    from rareneuron.measure.pieces import CapturedPieces, PieceStore, StepPieces
    from rareneuron.study.plan import plan_study
    from rareneuron.study.tokens import choose_tokens, study_corpus

    adapter = load_checkpoint(config, plan_study(config).checkpoints[-1])
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    layer = adapter.n_layers - 1
    source = CapturedPieces(adapter, selection, layer, memory=2**31)
    store = PieceStore(config.run_folder, piece_identity(config, layer=layer, weights="", tokens=""))
    found = layer_effects(source, engine_kind("closed-form"), StepPieces(source, store, None), seed=config.seed)
    return found, selection


def agreement(config_of, seeds) -> dict:
    """Return the share of neurons on which two seeds disagree, the contexts behind them, and what a token cost."""
    began = time.process_time()
    found = [effects_of(config_of(seed)) for seed in seeds]
    (a, b), selections = (effects.table for effects, _ in found), [selection for _, selection in found]
    out = {"contexts": [len(s.windows) for s in selections], "per_context": selections[0].per_context}
    for name in ("delta_loss", "abs_delta_loss"):
        z = (a[name] - b[name]) / np.hypot(a[f"{name}_se"], b[f"{name}_se"])
        out[f"beyond_{name}"] = round(float((z.abs() > 1.96).mean()), 4)
    tokens = [set(zip(s.context_index[s.context].tolist(), s.position.tolist(), strict=True)) for s in selections]
    out["shared_tokens"] = round(len(tokens[0] & tokens[1]) / len(tokens[0]), 3)  # more than a few: no two samples
    rates = [effects.rates for effects, _ in found]
    out["captured_share"] = [round(rate["captured_share"], 3) for rate in rates]
    out["processor_ms_per_token"] = round(1e3 * (time.process_time() - began) / sum(len(s.context) for s in selections))
    return out | {"neurons": len(a)}


def main() -> None:
    """Run both choices, print."""
    import rareneuron as rn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--counts")
    parser.add_argument("--n-tokens", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--rarity", default="types")
    parser.add_argument("--percentile", type=float, default=50.0)
    parser.add_argument("--only", choices=["spread", "whole"])
    chosen = parser.parse_args()
    for name, per_context in (("spread", None), ("whole", 10**6)):
        if chosen.only in (None, name):

            def config_of(seed: int, per_context: int | None = per_context) -> rn.StudyConfig:
                return rn.StudyConfig(
                    model=chosen.model,
                    steps=None if chosen.model else (4096,),
                    data=chosen.data,
                    counts=chosen.counts,
                    n_tokens=chosen.n_tokens,
                    per_context=per_context,
                    rarity=chosen.rarity,
                    percentile=chosen.percentile,
                    seed=seed,
                    out="runs/never-written",
                )

            print(json.dumps({"tokens": name} | agreement(config_of, chosen.seeds)), flush=True)


if __name__ == "__main__":
    main()
