"""Estimates time, memory and disk of a plan's open checkpoints, from shapes and a matrix product timed here."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rareneuron.data.selection import CONTEXTS_WANTED, PER_CONTEXT
from rareneuron.measure.capture import HELD
from rareneuron.measure.engines import engine_kind
from rareneuron.measure.engines.base import Workload
from rareneuron.measure.engines.gradient import PASSES
from rareneuron.measure.layers import layers_asked
from rareneuron.models.anatomy import layer_index
from rareneuron.models.checkpoints import label
from rareneuron.models.shape import ModelShape
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layout import step_folder
from rareneuron.study.counts import MOST_POSITIONS
from rareneuron.study.plan import MODEL, Plan
from rareneuron.study.power import Needed, as_values, needed_for, power_lines

RARE_PER_CONTEXT = 7  # at 256 tokens: 7.5 in C4 with Pythia's counts, 5 in the embedded corpus
LIBRARIES = 450 * 2**20  # bytes that torch, transformers and pandas take once imported
PHASES_SECONDS = (1.4, 6e-4)  # a checkpoint, and per neuron: 2.0 s at 1,024, 3.9 s at 4,096, one core of an EPYC
GROUPS_SECONDS = 4e-3  # a checkpoint, per draw: geometry and spectrum of groups of 50, two cores of an EPYC
SOFTMAX_SECONDS = 5e-9  # an entry of the vocabulary: softmax, and its sum over positions
LAST_SECONDS = 15.0  # experiments with whole groups and the explorer's details, at the last checkpoint
ELEMENT_SECONDS = (
    4e-9  # of a forward pass, for each number of a block's residual stream (8 times) and of its neurons (2)
)
PATCHED_CELLS = 4_000  # that decide who is among the largest, where the budget allows
DOUBTFUL = 1e-3  # of the units: move so far that they are patched in every context (44 of SmolLM2's 46,000)
CELL_PASSES = 0.7  # forward passes that a cell takes, on average over layers
LONG_SECONDS = 3600.0  # beyond, fewer tokens are offered
OVERHEAD = 2.0  # of the model's own unigrams over their matrix products


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time, memory and disk of a plan's open checkpoints: orders of magnitude."""

    shape: ModelShape
    n_open: int
    gflops: float  # measured, float32
    n_contexts: int  # of all analysed tokens
    counts_seconds: float  # at most, where the model itself says which tokens are rare
    capture_seconds: float  # per checkpoint
    effects_seconds: float  # per checkpoint
    phases_seconds: float  # per checkpoint
    groups_seconds: float  # per checkpoint
    layers_seconds: float  # per checkpoint, of the units of all layers that are asked for
    last_seconds: float  # at the last checkpoint, where it is open
    memory_gib: float
    disk_mib: float

    @property
    def seconds(self) -> float:
        """Seconds for all open checkpoints."""
        each = self.capture_seconds + self.effects_seconds + self.phases_seconds + self.groups_seconds
        each += self.layers_seconds
        return self.counts_seconds + self.n_open * each + self.last_seconds


def estimate(plan: Plan, rate: float | None = None) -> Estimate:
    """Return the time, memory and disk of the open checkpoints. Reads configs, but neither weights nor the corpus.

    `rate`: floating-point operations per second; None to measure them now.
    """
    shape = plan.shape
    rate = float32_rate() if rate is None else rate
    positions, work = expected_work(plan)
    elements = positions * shape.n_layers * (8 * shape.d_model + 2 * shape.d_mlp)
    kind = plan.engines[0] if plan.engines else engine_kind(plan.config.engine)
    memory = plan.config.memory * 2**30
    tables = min(kind.table_bytes(shape), (1 - HELD) * memory)
    captured = min(4 * work.n_tokens * (shape.d_mlp + shape.d_model), HELD * memory)
    n_open = len(plan.open)
    capture = work.forward / rate + ELEMENT_SECONDS * elements
    return Estimate(
        shape=shape,
        n_open=n_open,
        gflops=rate / 1e9,
        n_contexts=work.n_contexts,
        counts_seconds=counts_seconds(plan, rate),
        capture_seconds=capture,
        effects_seconds=kind.operations(work) / rate,
        phases_seconds=phases_seconds(plan.config.definitions, shape.d_mlp),
        groups_seconds=GROUPS_SECONDS * plan.config.n_random,
        layers_seconds=layers_passes(plan.config, shape, work) * capture / work.n_contexts,
        last_seconds=LAST_SECONDS if plan.checkpoints[-1] in plan.open else 0.0,
        memory_gib=(4 * shape.n_params + tables + captured + LIBRARIES) / 2**30,
        disk_mib=n_open * (16 * min(work.n_contexts, 4096) * shape.d_mlp + 400 * shape.d_mlp) / 2**20,
    )


def expected_work(plan: Plan) -> tuple[float, Workload]:
    """Return how many positions a checkpoint's contexts are expected to be computed at, and what effects there take."""
    config, shape = plan.config, plan.shape
    per_context = rare_per_context(config)
    n_contexts = max(1, round(config.tokens_wanted / per_context))
    share = 1.0 if config.reference == "all" else computed_share(2 * per_context)
    positions = n_contexts * share * config.context_length
    work = Workload(
        forward=2 * shape.n_backbone_params * positions,
        resumed=1 - layer_index(config.layer, shape.n_layers) / shape.n_layers,
        n_contexts=n_contexts,
        n_tokens=2 * config.tokens_wanted,  # as many common ones
        n_neurons=shape.d_mlp,
        d_model=shape.d_model,
        vocab=shape.vocab,
        output_norm=shape.output_norm,
        capped=shape.capped,
    )
    return positions, work


def layers_passes(config: StudyConfig, shape: ModelShape, work: Workload) -> float:
    """Return the forward passes of a context that estimating and verifying several layers take; 0 where none are asked.

    Patching ends when nothing that matters is undecided, so a number of cells is assumed that studies have needed.
    """
    if config.layers is None:
        return 0.0
    n_layers = len(layers_asked(config, shape.n_layers))
    n_cells = n_layers * shape.d_mlp * work.n_contexts
    cells = min(config.verify * n_cells, PATCHED_CELLS) + (DOUBTFUL * n_cells if config.verify else 0)
    return PASSES * work.n_tokens + CELL_PASSES * cells


def fewer_tokens(plan: Plan, e: Estimate) -> str | None:
    """Say with how many tokens the units of all layers take an hour, where they take far longer."""
    if e.layers_seconds < LONG_SECONDS:
        return None
    n = max(100, round(plan.config.tokens_wanted * LONG_SECONDS / e.layers_seconds, -2))
    return f"with --n-tokens {n:,.0f} the layers take about {duration(LONG_SECONDS)} per checkpoint"


def rare_per_context(config: StudyConfig) -> float:
    """Return how many rare tokens a context is expected to give: what it holds, if that is no more than it may give."""
    held = RARE_PER_CONTEXT * config.context_length / 256
    most = PER_CONTEXT if config.per_context is None else config.per_context
    if config.per_context is None:
        most = min(most, max(1, config.tokens_wanted // CONTEXTS_WANTED))
    return float(min(held, most))


def computed_share(n_analysed: float) -> float:
    """Return how far into a context the last of some random positions lies, as a share of the context."""
    return n_analysed / (n_analysed + 1)


def counts_seconds(plan: Plan, rate: float) -> float:
    """Of the model's own unigrams, if all positions are needed that may be; 0 where tokens are chosen by other counts.

    The cache isn't looked into: its files are named by hashes of the weights, which a plan doesn't read.
    """
    if plan.whose_counts != MODEL or plan.begun:
        return 0.0
    shape = plan.shape
    operations = 2 * (shape.n_backbone_params + shape.vocab * shape.d_model)
    positions = min(MOST_POSITIONS, plan.config.max_corpus_tokens)
    return positions * (OVERHEAD * operations / rate + SOFTMAX_SECONDS * shape.vocab)


def phases_seconds(definitions: str, n_neurons: int) -> float:
    """Return the seconds of the four rankings with nulls and bootstrap; 0 where definitions test nothing."""
    fixed, per_neuron = PHASES_SECONDS
    return fixed + per_neuron * n_neurons if definitions == "paper" else 0.0


def float32_rate(n: int = 1024, repeats: int = 3) -> float:
    """Return the floating-point operations per second of a float32 matrix product on this machine."""
    a = torch.ones(n, n)
    a @ a  # warm up
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    return 2 * n**3 * repeats / (time.perf_counter() - start)


def plan_as_dict(plan: Plan, e: Estimate | None = None) -> dict[str, Any]:
    """Return the plan and its estimate as plain values for JSON."""
    e = e or estimate(plan)
    return {
        "out": str(plan.out),
        "checkpoints": [label(c) for c in plan.checkpoints],
        "finished": list(plan.finished),
        "damaged": list(plan.damaged),
        "open": [step_folder(c.step) for c in plan.open],
        "counts": plan.whose_counts,
        "rare_tokens": plan.config.tokens_wanted,
        "pairs": 2 * plan.config.tokens_wanted * e.shape.d_mlp * e.n_open,
        "power": as_values(needed_of(plan, e)),
        **{k: v for k, v in asdict(e).items() if k != "n_open"},
        "seconds": e.seconds,
    }


def plan_as_text(plan: Plan) -> str:
    """Return the plan and its estimate as text for a terminal."""
    e = estimate(plan)
    p = plan_as_dict(plan, e)
    shape = p["shape"]
    return "\n".join(
        [
            f"Run folder   {p['out']}",
            f"Checkpoints  {len(p['checkpoints'])}, to compute {len(p['open'])}: {', '.join(p['open']) or 'none'}",
            f"Model        {shape['n_params'] / 1e6:,.1f} M parameters, {shape['n_layers']} layers, vocabulary "
            f"{shape['vocab']:,}, {shape['d_mlp']:,} neurons in the last layer",
            f"Counts       {p['counts']}"
            + (f", at most {duration(p['counts_seconds'])}" if p["counts_seconds"] else ""),
            f"Work         {p['rare_tokens']:,} rare and as many common tokens of about {p['n_contexts']:,} "
            f"contexts, {p['pairs']:,} (token, neuron) pairs",
            f"Time         about {duration(p['seconds'])} ({duration(p['capture_seconds'])} capture, "
            f"{duration(p['effects_seconds'])} effects, {duration(p['groups_seconds'])} groups and "
            f"{duration(p['phases_seconds'])} phases per checkpoint, at {p['gflops']:.0f} GFLOP/s measured now)",
            *layers_lines(plan, e),
            f"Memory       about {p['memory_gib']:.1f} GiB",
            f"Disk         about {p['disk_mib']:,.0f} MiB",
            *power_lines(needed_of(plan, e)),
        ]
    )


def needed_of(plan: Plan, e: Estimate) -> list[Needed]:
    """Return what claims over contexts would take, and what this plan has."""
    return needed_for(plan.config, e.n_contexts, rare_per_context(plan.config))


def layers_lines(plan: Plan, e: Estimate) -> list[str]:
    """Return a line about the units of other layers, where they are asked for."""
    if plan.config.layers is None:
        return []
    fewer = fewer_tokens(plan, e)
    told = f"Layers       about {duration(e.layers_seconds)} of it per checkpoint, estimates and patching that verifies"
    return [told + (f"; {fewer}" if fewer else "")]


def duration(seconds: float) -> str:
    """Return seconds as text with a suitable unit: s, min or h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
