"""Speed and accuracy of the effect engines, as ratios within one run.

Prints one JSON line per shape and effect size and, with `--table FILE`, a Markdown table. Compared with *batched
recomputation*, the usual way at its best: for 20 neurons at a time add the shifted row of W_out, norm, unembed,
log-softmax, subtract two float32 losses.

    python benchmarks/bench_effects.py                      every shape that fits in memory
    python benchmarks/bench_effects.py --shapes pythia-70m embedded --tokens 128
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.readout import Readout

CHUNK = 20  # neurons per batch of the recomputation
MEDIAN = {"realistic": 2e-4, "heavy": 1e-2}  # of mean |Δ| over neurons, nats


@dataclass(frozen=True)
class Shape:
    vocab: int
    d_model: int
    neurons: int
    norm: str = "layer"


SHAPES = {
    "pythia-70m": Shape(50_304, 512, 2_048),
    "gpt2-small": Shape(50_257, 768, 3_072),
    "pythia-410m": Shape(50_304, 1_024, 4_096),
    "llama-128k": Shape(128_256, 1_024, 2_048, "rms"),
}


@dataclass(frozen=True)
class Case:
    readout: Readout
    resid: Tensor
    shift: Tensor
    target: Tensor
    W_out: Tensor


def synthetic(shape: Shape, n_tokens: int, median: float, seed: int = 0) -> Case:
    """Zipf-distributed logits, heavy-tailed sparse shifts, neurons whose sizes spread over three decades."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    W_U = normal(shape.vocab, shape.d_model) * 2.5 / shape.d_model**0.5
    zipf = -torch.arange(1, shape.vocab + 1).float().log()
    bias = torch.zeros(shape.d_model) if shape.norm == "layer" else None
    readout = Readout(norm=shape.norm, weight=torch.ones(shape.d_model), bias=bias, eps=1e-5, W_U=W_U, b_U=zipf)
    W_out = normal(shape.neurons, shape.d_model) / shape.d_model**0.5
    active = torch.rand(n_tokens, shape.neurons, generator=generator) < 0.3
    shift = normal(n_tokens, shape.neurons) * torch.where(active, 1.0, 0.05) * normal(n_tokens, shape.neurons).abs()
    shift *= (1.2 * normal(shape.neurons)).exp()
    resid = normal(n_tokens, shape.d_model)
    target = torch.multinomial(readout(resid).softmax(-1), 1, generator=generator)[:, 0]
    engine = AblationEngine(readout, W_out)
    for _ in range(3):  # scale to the median wanted; effects are nearly proportional to shifts
        shift *= median / engine.effects(resid, shift, target).delta_loss.abs().mean(0).median()
    return Case(readout, resid, shift, target, W_out)


def embedded(n_tokens: int) -> Case:
    """The shipped series' last checkpoint at rare tokens of the embedded corpus."""
    from rareneuron.models.adapter import load_model
    from rareneuron.pipeline.capture import capture
    from rareneuron.pipeline.config import StudyConfig
    from rareneuron.pipeline.plan import plan_study
    from rareneuron.pipeline.tokens import choose_tokens, study_corpus

    config = StudyConfig(n_tokens=n_tokens)
    adapter = load_model(plan_study(config).checkpoints[-1].source)
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    batches = list(capture(adapter, selection))
    resid, act, target = (torch.cat([getattr(b, name) for b in batches]) for name in ("resid", "act", "target"))
    rare = torch.cat([torch.from_numpy(b.rare) for b in batches])
    shift = act[rare].mean(0) - act
    return Case(adapter.readout(), resid[:n_tokens], shift[:n_tokens], target[:n_tokens], adapter.W_out)


def recomputed(case: Case, tokens: slice, neurons: Tensor) -> Tensor:
    """Batched recomputation in float32: two losses, subtracted."""
    resid, target = case.resid[tokens], case.target[tokens]
    clean = torch.nn.functional.cross_entropy(case.readout(resid), target, reduction="none")
    out = []
    for chunk in neurons.split(CHUNK):
        moved = resid[:, None] + case.shift[tokens][:, chunk, None] * case.W_out[chunk]
        logits = case.readout(moved.flatten(0, 1))
        loss = torch.nn.functional.cross_entropy(logits, target.repeat_interleave(len(chunk)), reduction="none")
        out.append(loss.view(len(resid), -1) - clean[:, None])
    return torch.cat(out, 1)


def seconds(call, repeats: int = 2) -> float:
    """The fastest of a few calls, after one that warms up."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def measure(name: str, size: str, case: Case) -> dict:
    """One line: microseconds per pair, ratio, and both errors against float64 on the same random pairs."""
    n_tokens, n_neurons = case.shift.shape
    start = time.perf_counter()
    engine = AblationEngine(case.readout, case.W_out)
    prepared = time.perf_counter() - start
    found = engine.effects(case.resid, case.shift, case.target)
    fast = seconds(lambda: engine.effects(case.resid, case.shift, case.target)) / case.shift.numel()
    neurons = torch.randperm(n_neurons, generator=torch.Generator().manual_seed(1))[: 2 * CHUNK]
    few = slice(0, min(8, n_tokens))
    slow = seconds(lambda: recomputed(case, few, neurons)) / (few.stop * len(neurons))
    audit = slice(0, min(24, n_tokens))
    truth = (
        AblationEngine(case.readout, case.W_out[neurons], precision="reference")
        .effects(case.resid[audit], case.shift[audit][:, neurons], case.target[audit])
        .delta_loss
    )
    ours = found.delta_loss[audit][:, neurons].double() - truth
    theirs = recomputed(case, audit, neurons).double() - truth
    return {
        "shape": name,
        "effects": size,
        "tokens": n_tokens,
        "neurons": n_neurons,
        "median_abs_delta_loss": found.delta_loss.abs().mean(0).median().item(),
        "prepare_s": round(prepared, 2),
        "fast_us_per_pair": round(1e6 * fast, 3),
        "recomputed_us_per_pair": round(1e6 * slow, 1),
        "ratio": round(slow / fast),
        "full_sum_share": found.full_share,
        "fast_rms": rms(ours),
        "fast_max": ours.abs().max().item(),
        "recomputed_rms": rms(theirs),
        "recomputed_max": theirs.abs().max().item(),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
    }


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def table(rows: list[dict]) -> str:
    """Markdown, one row a line."""
    names = ("shape", "effects", "µs per pair", "recomputed", "ratio", "full sums", "rms error", "recomputed")
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    return head + "".join(
        f"| {r['shape']} | {r['effects']} | {r['fast_us_per_pair']} | {r['recomputed_us_per_pair']} | {r['ratio']}× | "
        f"{100 * r['full_sum_share']:.1f} % | {r['fast_rms']:.1e} | {r['recomputed_rms']:.1e} |\n"
        for r in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["embedded", *SHAPES], choices=["embedded", *SHAPES])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.shapes:
        sizes = {"as they are": None} if name == "embedded" else MEDIAN
        for size, median in sizes.items():
            case = embedded(arguments.tokens) if median is None else synthetic(SHAPES[name], arguments.tokens, median)
            rows.append(measure(name, size, case))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.table:
        arguments.table.write_text(table(rows), encoding="utf-8")
    print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
