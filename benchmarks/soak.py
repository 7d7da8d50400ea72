"""Hours of work in minutes: does a process that computes again and again keep its memory and its file handles?

`python benchmarks/soak.py [--minutes 20]` repeats a study of the embedded series in one process and prints a JSON line
a round; it fails where memory or handles grow. `--capture` sends a million tokens through capture at the shape of
Pythia-70M, and fails where that takes more than `--memory` beside what the model and the libraries hold.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rareneuron.data.selection import Selection
from rareneuron.measure.capture import HELD
from rareneuron.measure.pieces import CapturedPieces
from rareneuron.models.adapter import adapt
from rareneuron.runs.config import StudyConfig
from rareneuron.study.study import run_study

WARM_UP = 3  # rounds in which pools, caches and compiled kernels fill
GROWTH = 48.0  # MB that the rest may grow by: the allocator's pools
SMALL = {"steps": (0, 4096), "n_tokens": 200, "group_size": 20, "n_random": 200}


def state():
    """Resident memory in MB, open files, threads."""
    gc.collect()
    me = psutil.Process()
    return {"mb": me.memory_info().rss / 2**20, "handles": me.num_fds(), "threads": me.num_threads()}


def repeat(minutes):
    """A study from nothing, again and again."""
    rounds, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        while time.perf_counter() - start < 60 * minutes or len(rounds) < 2 * WARM_UP:
            run_study(StudyConfig(**SMALL, out=str(out)), progress=False)
            shutil.rmtree(out)
            rounds.append({"round": len(rounds), "seconds": time.perf_counter() - start} | state())
            print(json.dumps(rounds[-1]), flush=True)
    warm = rounds[WARM_UP:]
    half = len(warm) // 2
    before, after = (np.mean([r["mb"] for r in part]) for part in (warm[:half], warm[half:]))
    handles = warm[-1]["handles"] - warm[0]["handles"]
    print(json.dumps({"grown_mb": after - before, "grown_handles": handles, "rounds": len(rounds)}))
    return after - before <= GROWTH and handles <= 0


def capture_a_million(memory, n_tokens):
    """Two passes over contexts whose every other token is analysed, at the width and depth of Pythia-70M."""
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, intermediate_size=2_048, num_hidden_layers=6, num_attention_heads=8
    )
    adapter = adapt(GPTNeoXForCausalLM(config).eval())
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 50_000, (n_tokens // 256, 256))
    position = np.arange(1, 255, 8)
    context = np.repeat(np.arange(len(windows)), len(position))
    position = np.tile(position, len(windows))
    selection = Selection(
        windows=windows,
        context_index=np.arange(len(windows)),
        context=context,
        position=position,
        target=windows[context, position + 1],
        rare=np.arange(len(context)) % 2 == 0,
        stages=(),
        n_requested=len(context),
        n_available=len(context),
        n_contexts_read=len(windows),
    )
    before, peak, start = state()["mb"], 0.0, time.perf_counter()
    source = CapturedPieces(adapter, selection, -1, memory=int(HELD * memory * 2**30))
    total = torch.zeros(adapter.d_mlp, dtype=torch.float64)
    for batches in (source.first_pass(lambda _: None), source.again()):
        for batch in batches:
            total += batch.act.double().sum(0)
            peak = max(peak, psutil.Process().memory_info().rss / 2**20)
    found = {
        "tokens": windows.size,
        "analysed": len(context),
        "held": source.fits,
        "seconds": time.perf_counter() - start,
        "before_mb": before,
        "peak_mb": peak,
        "taken_gib": (peak - before) / 1024,
        "memory_gib": memory,
    }
    print(json.dumps(found))
    return found["taken_gib"] <= memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--capture", action="store_true")
    parser.add_argument("--memory", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sound = capture_a_million(given.memory, given.tokens) if given.capture else repeat(given.minutes)
    sys.exit(0 if sound else "grown beyond the bound")


if __name__ == "__main__":
    main()
