"""Speed, accuracy and memory of the effect engine, as ratios within one run.

One JSON line per shape and effect size; `--table FILE` writes them as a Markdown table between two markers of FILE.
Compared with *batched recomputation*, the usual way at its best: for 20 neurons at a time add the shifted row of W_out,
norm, unembed, log-softmax, subtract two float32 losses; and, where the shape is a model's, with a *hooked forward pass*
per neuron through a random model of that shape. Every case runs in its own process, which tells its peak memory.

    python benchmarks/bench_effects.py                      all of them, about ten minutes on 2 idle cores
    python benchmarks/bench_effects.py --shapes pythia-70m embedded --tokens 128
"""

import argparse
import gc
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rareneuron.maths.ablation import AblationEngine
from rareneuron.maths.readout import Readout

CHUNK = 20  # neurons per batch of the recomputation
MEDIAN = {"realistic": 2e-4, "heavy": 1e-2}  # of mean |Δ| over neurons, nats
RARE_PER_CONTEXT = 7.5  # of 256 tokens, C4 with Pythia's counts: what a forward pass per context is divided by
MARKERS = "<!-- bench: make bench -->", "<!-- /bench -->"


@dataclass(frozen=True)
class Shape:
    vocab: int
    d_model: int
    neurons: int
    layers: int = 0  # of the model that a hook is put into; 0: none
    norm: str = "layer"
    sizes: tuple[str, ...] = ("realistic", "heavy")


SHAPES = {
    "pythia-70m": Shape(50_304, 512, 2_048, layers=6),
    "gpt2-small": Shape(50_257, 768, 3_072),
    "pythia-410m": Shape(50_304, 1_024, 4_096, layers=24),
    "gpt2-xl": Shape(50_257, 1_600, 6_400, sizes=("realistic",)),
    "llama-128k": Shape(128_256, 2_048, 2_048, norm="rms"),
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
    engine = AblationEngine(readout, W_out[:256])
    for _ in range(3):  # scale to the median wanted; effects are nearly proportional to shifts
        shift *= median / engine.effects(resid, shift[:, :256], target).delta_loss.abs().mean(0).median()
    return Case(readout, resid, shift, target, W_out)


def embedded(n_tokens: int) -> Case:
    """The shipped series' last checkpoint at rare tokens of the embedded corpus."""
    from rareneuron.measure.capture import capture
    from rareneuron.models.adapter import load_model
    from rareneuron.runs.config import StudyConfig
    from rareneuron.study.plan import plan_study
    from rareneuron.study.tokens import choose_tokens, study_corpus

    config = StudyConfig(n_tokens=n_tokens, out=f"runs/bench-embedded-{n_tokens}")  # never a study's own folder
    adapter = load_model(plan_study(config).checkpoints[-1].source)
    selection = choose_tokens(config, study_corpus(config), adapter).selection
    batches = list(capture(adapter, selection))
    resid, act, target = (torch.cat([getattr(b, name) for b in batches]) for name in ("resid", "act", "target"))
    rare = torch.cat([torch.from_numpy(b.rare) for b in batches])
    shift = (act[rare].mean(0) - act)[rare]
    return Case(adapter.readout(), resid[rare], shift, target[rare], adapter.W_out)


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


def hooked_seconds(shape: Shape) -> float:
    """Seconds a pair, by a forward pass over whole contexts with one neuron replaced through a hook."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.d_model // 64,
    )
    model = GPTNeoXForCausalLM(config).eval()

    def replace_one(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = args[0].clone()
        act[..., 0] = 0.1
        return (act, *args[1:])

    model.gpt_neox.layers[-1].mlp.dense_4h_to_h.register_forward_pre_hook(replace_one)
    ids = torch.randint(shape.vocab, (2, 256), generator=torch.Generator().manual_seed(0))

    def call() -> None:
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")

    return seconds(call)[0] / (len(ids) * RARE_PER_CONTEXT)


def seconds(*calls: Callable[[], object], rounds: int = 4) -> list[float]:
    """The fastest of a few calls of each, by turns, so that a slow minute of the machine strikes all alike.

    The first round warms up.
    """
    best = [float("inf")] * len(calls)
    for n in range(rounds):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if n:
                best[k] = min(best[k], time.perf_counter() - start)
    return best


def measure(name: str, size: str, case: Case, shape: Shape | None, memory_gib: float) -> dict:
    """One line: microseconds per pair, ratios, and both errors against float64 on the same random pairs."""
    n_tokens, n_neurons = case.shift.shape
    before = memory("VmRSS")
    forget_peak()
    start = time.perf_counter()
    engine = AblationEngine(case.readout, case.W_out, memory=int(memory_gib * 2**30))
    found = engine.effects(case.resid, case.shift, case.target)
    first = time.perf_counter() - start
    peak = memory("VmHWM") - before - 4 * 3 * found.delta_loss.numel()
    neurons = torch.randperm(n_neurons, generator=torch.Generator().manual_seed(1))[: 2 * CHUNK]
    few = slice(0, min(4, n_tokens))
    fast, alone, slow = seconds(
        lambda: engine.effects(case.resid, case.shift, case.target),
        lambda: engine.effects(case.resid, case.shift, case.target, direct=False),
        lambda: recomputed(case, few, neurons),
    )
    fast, alone, slow = fast / case.shift.numel(), alone / case.shift.numel(), slow / (few.stop * len(neurons))
    audit = slice(0, min(32, n_tokens))
    reference = AblationEngine(case.readout, case.W_out[neurons], precision="reference", memory=2**62)
    truth = reference.effects(case.resid[audit], case.shift[audit][:, neurons], case.target[audit]).delta_loss
    ours = found.delta_loss[audit][:, neurons].double()
    theirs = recomputed(case, audit, neurons).double()
    mean = truth.abs().mean(0)
    row = {
        "shape": name,
        "effects": size,
        "tokens": n_tokens,
        "neurons": n_neurons,
        "vocab": len(case.readout.W_U),
        "median_abs_delta_loss": found.delta_loss.abs().mean(0).median().item(),
        "first_call_s": round(first, 2),
        "fast_us_per_pair": round(1e6 * fast, 3),
        "total_alone_us_per_pair": round(1e6 * alone, 3),
        "recomputed_us_per_pair": round(1e6 * slow, 1),
        "ratio": round(slow / fast),
        "all_over_total_alone": round(fast / alone, 2),
        "full_sum_share": found.full_share,
        "fast_rms": rms(ours - truth),
        "fast_max": (ours - truth).abs().max().item(),
        "recomputed_rms": rms(theirs - truth),
        "recomputed_max": (theirs - truth).abs().max().item(),
        "worst_relative_error_of_a_mean": ((ours.abs().mean(0) - mean).abs() / mean)[mean > 1e-8].max().item(),
        "engine_peak_gib": round(peak / 2**30, 2),
        "memory_gib": memory_gib,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if shape is not None and shape.layers:
        del engine
        row["hooked_us_per_pair"] = round(1e6 * hooked_seconds(shape))
        row["ratio_to_hooked"] = round(row["hooked_us_per_pair"] / row["fast_us_per_pair"])
    return row


def run(name: str, size: str, n_tokens: int, memory_gib: float) -> dict:
    """Make one case and measure it."""
    shape = SHAPES.get(name)
    case = embedded(n_tokens) if shape is None else synthetic(shape, n_tokens, MEDIAN[size])
    return measure(name, size, case, shape, memory_gib)


def memory(name: str) -> int:
    """Bytes of this process now (VmRSS) or at most since `forget_peak` (VmHWM); Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def forget_peak() -> None:
    """The peak is counted from here."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def table(rows: list[dict]) -> str:
    """Markdown, one row a line."""
    head = (
        "| shape | effects | µs per pair | recomputed | ratio | hooked | full sums | rms (max) error | recomputed | "
        "with direct, KL | engine's memory |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    lines += [
        f"| {r['shape']} | {r['effects']} | {r['fast_us_per_pair']:.2f} | {r['recomputed_us_per_pair']:.0f} | "
        f"{r['ratio']}× | {str(r['ratio_to_hooked']) + '×' if 'ratio_to_hooked' in r else ''} | "
        f"{100 * r['full_sum_share']:.1f} % | {r['fast_rms']:.1e} ({r['fast_max']:.0e}) | "
        f"{r['recomputed_rms']:.1e} ({r['recomputed_max']:.0e}) | {r['all_over_total_alone']:.2f}× | "
        f"{r['engine_peak_gib']} GiB |"
        for r in rows
    ]
    tail = f"{rows[0]['threads']} threads, torch {rows[0]['torch']}, {rows[0]['tokens']} tokens."
    return "\n".join([*lines, "", tail])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["embedded", *SHAPES], choices=["embedded", *SHAPES])
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB that the engine may take")
    parser.add_argument("--table", type=Path, help="Markdown file with the two markers")
    arguments = parser.parse_args()
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in arguments.shapes:
        for size in SHAPES[name].sizes if name in SHAPES else ("as they are",):
            with context.Pool(1) as pool:
                rows.append(pool.apply(run, (name, size, arguments.tokens, arguments.memory)))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.table:
        before, _, rest = arguments.table.read_text(encoding="utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        text = f"{before}{MARKERS[0]}\n\n{table(rows)}\n\n{MARKERS[1]}{after}"
        arguments.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
