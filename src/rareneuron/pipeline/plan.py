"""What a study will do, and what it will take, before it does it."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rareneuron.embedded import SERIES
from rareneuron.errors import RunFolderError
from rareneuron.maths.ablation import TOKENS_PER_BLOCK
from rareneuron.models.checkpoints import UNKNOWN_STEP, Checkpoint, label, list_checkpoints
from rareneuron.models.shape import ModelShape, model_shape
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.store import PARTIAL, UNKNOWN_STEP_NAME, RunStore, read_json

RARE_PER_CONTEXT = 6  # at 256 tokens: 7.5 in C4 with Pythia's counts, 4.5 in the embedded corpus
LIBRARIES = 450 * 2**20  # bytes that torch, transformers and pandas take by being there
OVERHEAD = 2.0  # of whole forward passes and effects over their matrix products
BEFORE_MANIFEST = {".lock", "tokens.parquet", "contexts.safetensors"}  # a study killed in its first stage left these


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The checkpoints of a study, and those that are finished."""

    config: StudyConfig
    checkpoints: tuple[Checkpoint, ...]
    finished: tuple[str, ...]  # names of checkpoints that need no work
    out: Path

    @property
    def open(self) -> list[Checkpoint]:
        """Checkpoints to compute, the last one first: it is the one most people came for."""
        return [c for c in reversed(self.checkpoints) if step_name(c) not in self.finished]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the open part of a plan takes: orders of magnitude, from shapes and a matrix product timed here."""

    shape: ModelShape
    n_open: int
    gflops: float  # measured, float32
    capture_seconds: float  # per checkpoint
    effects_seconds: float  # per checkpoint
    memory_gib: float
    disk_mib: float

    @property
    def seconds(self) -> float:
        """For all open checkpoints."""
        return self.n_open * (self.capture_seconds + self.effects_seconds)


def step_name(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint's folder in the run."""
    return UNKNOWN_STEP_NAME if checkpoint.step == UNKNOWN_STEP else str(checkpoint.step)


def plan_study(config: StudyConfig) -> Plan:
    """Resolve the checkpoints, see what is already there, and refuse a folder of other settings; writes nothing."""
    source = str(SERIES) if config.model is None else config.model
    checkpoints = list_checkpoints(source, config.revision, config.steps)
    store = RunStore(config.run_folder)
    check_same_settings(store, config)
    return Plan(config=config, checkpoints=tuple(checkpoints), finished=tuple(store.finished_steps()), out=store.root)


def check_same_settings(store: RunStore, config: StudyConfig) -> None:
    """A run folder made with other settings is refused: its finished checkpoints would not be comparable."""
    if not store.manifest.is_file():
        if store.root.is_file():
            raise RunFolderError(f"{store.root} is a file, and a run is a folder. Choose another place with --out.")
        there = {p.name for p in store.root.iterdir()} if store.root.is_dir() else set()
        if any(name not in BEFORE_MANIFEST and not name.endswith(PARTIAL) for name in there):
            raise RunFolderError(
                f"{store.root} is not empty and holds no run (no run.json), so writing there could overwrite "
                "something. Choose a new folder with --out."
            )
        return
    before, now = read_json(store.manifest).get("config", {}), config.identity()
    differing = [f"{k}: {before.get(k)!r} there, {now[k]!r} now" for k in now if before.get(k) != now[k]]
    if differing:
        raise RunFolderError(
            f"{store.root} was made with other settings ({'; '.join(differing)}), and results of both would be mixed. "
            "Use the same settings to continue it, or another folder with --out."
        )


def estimate(plan: Plan) -> Estimate:
    """Time, memory and disk of what is open. Reads configs, not weights; the corpus stays unread."""
    shape = model_shape(plan.checkpoints[-1])
    rate = float32_rate()
    n_rare = plan.config.tokens_wanted
    n_contexts = n_rare * 256 / (RARE_PER_CONTEXT * plan.config.context_length)
    n_tokens = 2 * n_rare  # as many common ones
    forward = 2 * shape.n_backbone_params * n_contexts * plan.config.context_length
    if plan.config.engine == "patching":
        effects = forward * shape.d_mlp + 2 * n_tokens * shape.d_mlp * shape.vocab * shape.d_model
    else:
        effects = 2 * n_tokens * shape.vocab * (4 * shape.d_model + shape.d_mlp)
    # A in float32 twice while it is centred; B in float32, its square and cube in bfloat16; a block's distributions.
    tables = shape.vocab * (8 * shape.d_model + 8 * shape.d_mlp + 6 * 4 * TOKENS_PER_BLOCK)
    captured = min(4 * n_tokens * (shape.d_mlp + shape.d_model), plan.config.memory * 2**28)
    n_open = len(plan.open)
    return Estimate(
        shape=shape,
        n_open=n_open,
        gflops=rate / 1e9,
        capture_seconds=OVERHEAD * forward / rate,
        effects_seconds=OVERHEAD * effects / rate,
        memory_gib=(4 * shape.n_params + tables + captured + LIBRARIES) / 2**30,
        disk_mib=n_open * (16 * min(n_contexts, 4096) * shape.d_mlp + 400 * shape.d_mlp) / 2**20,
    )


def float32_rate(n: int = 1024, repeats: int = 3) -> float:
    """Floating-point operations per second of a float32 matrix product on this machine."""
    a = torch.ones(n, n)
    a @ a  # warm up
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    return 2 * n**3 * repeats / (time.perf_counter() - start)


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The plan and its estimate, for JSON."""
    e = estimate(plan)
    return {
        "out": str(plan.out),
        "checkpoints": [label(c) for c in plan.checkpoints],
        "finished": list(plan.finished),
        "open": [step_name(c) for c in plan.open],
        "rare_tokens": plan.config.tokens_wanted,
        "pairs": 2 * plan.config.tokens_wanted * e.shape.d_mlp * e.n_open,
        **{k: v for k, v in asdict(e).items() if k != "n_open"},
        "seconds": e.seconds,
    }


def plan_as_text(plan: Plan) -> str:
    """The plan and its estimate, to read."""
    p = plan_as_dict(plan)
    shape = p["shape"]
    return "\n".join(
        [
            f"Run folder   {p['out']}",
            f"Checkpoints  {len(p['checkpoints'])}, to compute {len(p['open'])}: {', '.join(p['open']) or 'none'}",
            f"Model        {shape['n_params'] / 1e6:,.1f} M parameters, {shape['n_layers']} layers, vocabulary "
            f"{shape['vocab']:,}, {shape['d_mlp']:,} neurons in the last layer",
            f"Work         {p['rare_tokens']:,} rare and as many common tokens, {p['pairs']:,} (token, neuron) pairs",
            f"Time         about {duration(p['seconds'])} ({duration(p['capture_seconds'])} capture and "
            f"{duration(p['effects_seconds'])} effects per checkpoint, at {p['gflops']:.0f} GFLOP/s measured now)",
            f"Memory       about {p['memory_gib']:.1f} GiB",
            f"Disk         about {p['disk_mib']:,.0f} MiB",
        ]
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
