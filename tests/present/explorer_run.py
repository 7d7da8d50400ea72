"""Adds what the neuron explorer shows to a made-up run, with token texts that would harm a careless page."""

from dataclasses import replace

import numpy as np

from rareneuron.runs.files import write_table, write_tensors
from rareneuron.runs.neurons import (
    AFTER,
    BEFORE,
    N_BINS,
    N_CONTEXTS,
    N_NEIGHBOURS,
    N_TOKENS,
    NONE,
    QUANTILES,
    Explorer,
    write_explorer,
)
from rareneuron.runs.run import Run

HOSTILE = (
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "<!-- <script>",
    "]]>",
    "\"'`${window.harmed = 1}`",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "\u202egnp",
    "\u2066\u200f",
    "\u2028\u2029",
    "\x00\x1b\x07",
    "\n\n\t",
    "\ud800",
    "\u0301",
    "⟨E2 80⟩",
    "<0xE2>",
    "👩\u200d💻",
    "🦊",
    "שלום",
    " مرحبا",
    "  ",
    " plain",
    "word",
)
CONTEXT_LENGTH = 80
WHOLE = 5  # neurons with Δ at every token of their texts


def add_details(
    run: Run, *, most: int | None = None, readout: bool = True, gated: bool = False, older: bool = False, seed: int = 0
) -> Run:
    """Details of the neurons of the last checkpoint, of the `most` first ranks where that is given.

    An `older` version kept no examples by quantile and no effects outside analysed tokens.
    """
    rng = np.random.default_rng(seed)
    effects, tokens = run.effects(), run.tokens()
    n_contexts = int(tokens["context"].max()) + 1
    tokens = tokens.assign(position=rng.permutation(CONTEXT_LENGTH - 1)[: len(tokens)])
    write_table(run.path / "tokens.parquet", tokens)
    windows = rng.integers(len(HOSTILE), size=(n_contexts, CONTEXT_LENGTH)).astype(np.int32)
    contexts = {"windows": windows, "context_index": np.arange(n_contexts)}
    write_tensors(run.path / "contexts.safetensors", contexts)
    shown = effects.sort_values("rank")["index"].to_numpy()[:most]
    n, n_neurons = len(shown), len(effects)
    rare = np.flatnonzero(tokens["rare"])
    top = np.stack([rng.choice(rare, N_CONTEXTS, replace=False) for _ in range(n)])
    near = np.full((n, N_CONTEXTS, 3), NONE)
    near[:, :, 0] = top
    delta = np.where(near == NONE, np.nan, rng.normal(size=near.shape))
    explorer = Explorer(
        shown=shown,
        top_token=top,
        near_token=near,
        near_delta=delta,
        act_low=np.full(n, -0.2),
        act_high=np.full(n, 3.0),
        histogram=rng.integers(20, size=(n, N_BINS)),
        neighbour=np.stack([rng.choice(n_neurons, N_NEIGHBOURS, replace=False) for _ in range(n)]),
        correlation=rng.uniform(-1, 1, (n, N_NEIGHBOURS)),
        W_in_norm=rng.uniform(1, 2, n_neurons),
        W_gate_norm=rng.uniform(1, 2, n_neurons) if gated else None,
        written=rng.integers(len(HOSTILE), size=(n, 2 * N_TOKENS)) if readout else None,
        written_logit=rng.normal(size=(n, 2 * N_TOKENS)) if readout else None,
        no_readout=None if readout else "There is no readout here, so there is no such list.",
        texts=dict(enumerate(HOSTILE)),
    )
    if not older:
        example = rng.choice(rare, (n, 2, len(QUANTILES)))
        values = np.sort(rng.normal(size=(2, *example.shape)), axis=-1)
        text = rng.normal(size=(min(n, WHOLE), N_CONTEXTS, BEFORE + 1 + AFTER))
        explorer = replace(
            explorer, example_token=example, example_delta=values[0], example_act=values[1], text_delta=text
        )
    write_explorer(run.path / "steps" / str(run.steps[-1] if run.steps[-1] is not None else "final"), explorer)
    return run
