"""Is `--dry-run` within a factor of 2 of the truth? Estimate beside measurement, for capture and for both engines.

Seconds are those that the processor spent on one thread, and the estimate's rate of products is measured in the same
way, so other programs disturb both little. Of a study with few tokens, the contexts of a few batches are captured, all
effects are computed by the closed form, and patching runs for a few neurons of the last layer and of the middle; what
was measured on a part is scaled to the whole. One JSON line for each model: a list [estimate, truth, their ratio] for
the number of contexts and for the seconds of each part.

    OMP_NUM_THREADS=1 python benchmarks/estimates.py                 the embedded series and a random Pythia-70M
    OMP_NUM_THREADS=1 python benchmarks/estimates.py MODEL --data TEXT --counts FILE
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

CONTEXTS, NEURONS = 16, 4  # captured, patched


def rate(n: int = 1024) -> float:
    """Return the operations per second of processor time of a float32 product."""
    a = torch.ones(n, n)
    a @ a
    began = time.process_time()
    for _ in range(3):
        a @ a
    return 3 * 2 * n**3 / (time.process_time() - began)


def seconds_of(compute) -> float:
    """Return the processor's seconds."""
    began = time.process_time()
    compute()
    return time.process_time() - began


def compared(config) -> dict[str, Any]:
    """Return estimates beside measurements."""
    from rareneuron.measure.capture import part_of
    from rareneuron.measure.checkpoint import load_checkpoint
    from rareneuron.measure.effects import mean_activations
    from rareneuron.measure.engines import engine_kind
    from rareneuron.measure.engines.base import Limits
    from rareneuron.measure.pieces import CapturedPieces
    from rareneuron.models.patching import patched_loss_changes
    from rareneuron.runs.seeds import generator
    from rareneuron.study.estimate import estimate
    from rareneuron.study.plan import plan_study
    from rareneuron.study.tokens import choose_tokens, study_corpus

    plan = plan_study(config)
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    last, n = adapter.n_layers - 1, len(selection.windows)
    part, _ = part_of(selection, range(min(CONTEXTS, n)))
    adapter.capture(torch.from_numpy(part.windows[:2]))  # warm up
    source = CapturedPieces(adapter, part, last, memory=2**31)
    means = []
    capture = seconds_of(lambda: means.append(mean_activations(source, "analysed", lambda _: None)))
    engine = engine_kind("closed-form").build(adapter, part, last, Limits(memory=2**31), generator(0, "audit"))
    first, again = (seconds_of(lambda: [None for _ in engine.blocks(source.again(), means[0])]) for _ in range(2))
    closed = first - again + again * len(selection.context) / len(part.context)  # tables are made once
    expected = estimate(plan, rate())
    out = {
        "contexts": beside(expected.n_contexts, n),
        "capture": beside(expected.capture_seconds, capture * n / len(part.windows)),
        "closed_form": beside(expected.effects_seconds, closed),
    }
    for layer in (last, adapter.n_layers // 2):
        patched = replace(plan, config=replace(config, engine="patching", layer=layer), engines=())
        by_patching = estimate(patched, rate())
        few, _ = part_of(selection, range(min(8, n)))
        spent = 0.0
        for kind, mean in ((True, means[0].rare), (False, means[0].common)):
            chosen = few.rare == kind
            contexts, row = np.unique(few.context[chosen], return_inverse=True)
            tokens = (row, few.position[chosen])
            changes = patched_loss_changes(adapter, few.windows[contexts], tokens, mean, layer, range(1 + NEURONS))
            next(changes)  # the clean pass, and one neuron
            began = time.process_time()
            for _ in changes:
                pass
            spent += (time.process_time() - began) / NEURONS
        truth = spent * adapter.n_neurons(layer) * len(selection.context) / len(few.context)
        out[f"patching_layer_{layer}"] = beside(by_patching.effects_seconds, truth)
    return out


def beside(estimated: float, truth: float) -> list[float]:
    """Return both, and the estimate over the truth."""
    return [float(f"{x:.3g}") for x in (estimated, truth, estimated / truth)]


def write_pythia(folder: Path) -> list[str]:
    """Save a random model of Pythia-70M's shape with the embedded tokenizer; returns model, text and counts."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from rareneuron.embedded import SERIES
    from rareneuron.embedded.docstrings import analysis_texts

    torch.manual_seed(0)
    shape = {"vocab_size": 50_304, "hidden_size": 512, "intermediate_size": 2_048, "num_hidden_layers": 6}
    GPTNeoXForCausalLM(GPTNeoXConfig(**shape, num_attention_heads=8)).save_pretrained(folder / "pythia-70m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "pythia-70m" / name).write_bytes((SERIES / name).read_bytes())
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in analysis_texts()), encoding="utf-8")
    counts = np.zeros(50_304, np.int64)
    embedded = np.load(SERIES / "unigrams.npy")
    counts[: len(embedded)] = embedded
    np.save(folder / "counts.npy", counts)
    return [str(folder / "pythia-70m"), str(texts), str(folder / "counts.npy")]


def main() -> None:
    """Compare, print."""
    import rareneuron as rn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--counts")
    parser.add_argument("--n-tokens", type=int, default=400)
    chosen = parser.parse_args()
    common = {"n_tokens": chosen.n_tokens, "max_corpus_tokens": 300_000, "out": "runs/never-written"}
    common["engine"] = "closed-form"
    if chosen.model is not None:
        config = rn.StudyConfig(model=chosen.model, data=chosen.data, counts=chosen.counts, **common)
        print(json.dumps({"model": chosen.model} | compared(config)))
        return
    print(json.dumps({"model": "embedded"} | compared(rn.StudyConfig(steps=(4096,), **common))), flush=True)
    with TemporaryDirectory() as name:
        model, data, counts = write_pythia(Path(name))
        config = rn.StudyConfig(model=model, data=data, counts=counts, rarity="occurrences", percentile=20, **common)
        print(json.dumps({"model": "pythia-70m"} | compared(config)))


if __name__ == "__main__":
    main()
