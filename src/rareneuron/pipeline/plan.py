"""What a study will do, what it will take, and whether it can be done, before it does it. No weights are read."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rareneuron.data.rarity import load_counts
from rareneuron.embedded import SERIES
from rareneuron.errors import RunFolderError, TooFewNeurons, UnsupportedModel
from rareneuron.maths.ablation import engine_memory, neurons_that_fit
from rareneuron.maths.groups import remedy
from rareneuron.models.adapter import PATCHING, device_named
from rareneuron.models.anatomy import family_of, layer_index
from rareneuron.models.checkpoints import UNKNOWN_STEP, Checkpoint, label, list_checkpoints
from rareneuron.models.hub import split_revision
from rareneuron.models.loading import load_tokenizer, read_config
from rareneuron.models.shape import ModelShape, model_shape
from rareneuron.pipeline.capture import HELD
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.provenance import changed_weights, described, sha256_of_file
from rareneuron.pipeline.store import PARTIAL, UNKNOWN_STEP_NAME, RunStore, damage, explained, read_json
from rareneuron.pipeline.tokens import study_corpus

RARE_PER_CONTEXT = 6  # at 256 tokens: 7.5 in C4 with Pythia's counts, 4.5 in the embedded corpus
LIBRARIES = 450 * 2**20  # bytes that torch, transformers and pandas take by being there
PHASES_SECONDS = (1.4, 6e-4)  # a checkpoint, and per neuron: 2.0 s at 1,024, 3.9 s at 4,096, one core of an EPYC
GROUPS_SECONDS = 4e-3  # a checkpoint, per draw: geometry and spectrum of groups of 50, two cores of an EPYC
LAST_SECONDS = 15.0  # experiments with whole groups and the explorer's details, at the last checkpoint
OVERHEAD = 2.0  # of whole forward passes and effects over their matrix products
EARLIER = {"definitions": "paper"}  # what runs of before there was a choice did
BEFORE_MANIFEST = {".lock", "tokens.parquet", "contexts.safetensors"}  # a study killed in its first stage left these


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The checkpoints of a study, and those that are finished."""

    config: StudyConfig
    checkpoints: tuple[Checkpoint, ...]
    finished: tuple[str, ...]  # names of checkpoints that need no work
    damaged: tuple[str, ...]  # what was found wrong with others
    out: Path

    @property
    def open(self) -> list[Checkpoint]:
        """Checkpoints to compute, the last one first: it is the one most people came for. Of a shard, only its own."""
        return [c for c in of_shard(self.config, self.checkpoints) if step_name(c) not in self.finished]

    @property
    def n_workers(self) -> int:
        """How many checkpoints are computed at a time: no more than are open. On one machine they share its memory."""
        return max(1, min(self.config.workers, len(self.open)))

    @cached_property
    def shape(self) -> ModelShape:
        """Of the last checkpoint, from its config."""
        return model_shape(self.checkpoints[-1])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the open part of a plan takes: orders of magnitude, from shapes and a matrix product timed here."""

    shape: ModelShape
    n_open: int
    gflops: float  # measured, float32
    capture_seconds: float  # per checkpoint
    effects_seconds: float  # per checkpoint
    phases_seconds: float  # per checkpoint
    groups_seconds: float  # per checkpoint
    last_seconds: float  # at the last checkpoint, where it is open
    memory_gib: float
    disk_mib: float

    @property
    def seconds(self) -> float:
        """For all open checkpoints."""
        each = self.capture_seconds + self.effects_seconds + self.phases_seconds + self.groups_seconds
        return self.n_open * each + self.last_seconds


def of_shard(config: StudyConfig, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Every n-th checkpoint from the last one back; all of them where there is one shard."""
    i, n = config.part
    return list(reversed(checkpoints))[i - 1 :: n]


def step_name(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint's folder in the run."""
    return UNKNOWN_STEP_NAME if checkpoint.step == UNKNOWN_STEP else str(checkpoint.step)


def plan_study(config: StudyConfig) -> Plan:
    """Resolve the checkpoints, see what is already there, and refuse what can't be done; writes nothing."""
    source = str(SERIES) if config.model is None else config.model
    device_named(config.device)
    checkpoints = list_checkpoints(source, config.revision, config.steps)
    series = checkpoints if config.steps is None else list_checkpoints(source, config.revision, "all")
    store = RunStore(config.run_folder)
    with explained(store.root, "opening"):
        begun = is_begun(store)
        if begun:
            check_same_settings(store, config)
        mine = {step_name(c) for c in of_shard(config, checkpoints)}  # the other shards look after theirs
        found = {name: damage(store.step(name)) for name in store.finished_steps() if name in mine} if begun else {}
        finished = tuple(name for name, wrong in found.items() if wrong is None)
        if begun:
            whole = set(store.finished_steps()) - (found.keys() - set(finished))
            check_same_weights(store, [c for c in series if step_name(c) in whole])
    wrong = tuple(str(error) for error in found.values() if error is not None)
    plan = Plan(config=config, checkpoints=tuple(checkpoints), finished=finished, damaged=wrong, out=store.root)
    if plan.open:
        check_model(plan)
    if not begun:
        check_data(plan)
    return plan


def is_begun(store: RunStore) -> bool:
    """Whether a run folder is there to be continued; a place that holds something else is refused."""
    if store.manifest.is_file():
        return True
    if store.root.is_file():
        raise RunFolderError(f"{store.root} is a file, and a run is a folder. Choose another place with --out.")
    there = {p.name for p in store.root.iterdir()} if store.root.is_dir() else set()
    if any(name not in BEFORE_MANIFEST and not name.endswith(PARTIAL) for name in there):
        raise RunFolderError(
            f"{store.root} is not empty and holds no run (no run.json), so writing there could overwrite "
            "something. Choose a new folder with --out."
        )
    return False


def resolved(config: StudyConfig) -> dict[str, str | None]:
    """Model, data and counts under one name each: `./m` here and `/home/me/m` from elsewhere are the same."""
    model, revision = config.model, config.revision
    if model is not None:
        model, revision = split_revision(model, revision)
    paths = {"model": model, "data": config.data, "counts": config.counts}
    there = {name: absolute(path) for name, path in paths.items() if path is not None and Path(path).exists()}
    return paths | there | {"revision": revision}


def absolute(path: str) -> str:
    """A path in full, without links."""
    return str(Path(path).resolve())


def check_same_settings(store: RunStore, config: StudyConfig) -> None:
    """A run folder made with other settings is refused: its finished checkpoints would not be comparable."""
    manifest = store.read_manifest()
    before, now = EARLIER | manifest["config"] | manifest["resolved"], config.identity() | resolved(config)
    differing = [
        f"{k}: {before.get(k)!r} there, {v!r} now"
        for k, v in now.items()
        # Data that were removed since are known by where they were.
        if before.get(k) != v and not (isinstance(v, str) and before.get(k) == absolute(v))
    ]
    if differing:
        raise RunFolderError(
            f"{store.root} was made with other settings ({'; '.join(differing)}), and results of both would be mixed. "
            "Use the same settings to continue it, or another folder with --out."
        )
    counts = config.counts
    if counts is not None and Path(counts).is_file():
        then, content = manifest["data"]["counts"]["sha256"], sha256_of_file(Path(counts))
        if then != content:
            raise RunFolderError(
                f"{counts} has changed since {store.root} was begun (SHA-256 {then} then, {content} now), and what is "
                "rare was decided by it. Restore it to continue the run, or choose another folder with --out."
            )


def check_same_weights(store: RunStore, finished: Iterable[Checkpoint]) -> None:
    """Finished steps of other weights are refused: what is computed now would be followed from another model's."""
    for checkpoint in finished:
        name = step_name(checkpoint)
        how = changed_weights(checkpoint, read_json(store.step(name) / "step.json")["model"])
        if how is not None:
            raise RunFolderError(
                f"Step {name} of {store.root} was computed from other weights: {how}, and results of both would be "
                f"mixed. Restore the checkpoint, or remove {store.step(name)} to compute it again (and the other steps "
                "if they changed too), or choose another folder with --out."
            )


def check_model(plan: Plan) -> None:
    """Whether this layer, this engine and these groups are possible at all."""
    config, shape = plan.config, plan.shape
    layer_index(config.layer, shape.n_layers)
    if 3 * config.group_size > shape.d_mlp:
        raise TooFewNeurons(
            f"Three groups of {config.group_size} (boosting, suppressing, random) need {3 * config.group_size} "
            f"neurons, and the layer has {shape.d_mlp}. {remedy(shape.d_mlp // 3)} "
            "The option is --group-size."
        )
    if config.engine == "closed-form":
        check_closed_form(plan)


def check_closed_form(plan: Plan) -> None:
    """What rules the closed form out before weights are loaded; loading puts it to the test."""
    after = plan.shape.n_layers - 1 - layer_index(plan.config.layer, plan.shape.n_layers)
    if after:
        raise UnsupportedModel(
            f"After layer {plan.config.layer} come {after} more blocks, so the closed form doesn't hold there; it does "
            f"for the last layer. {PATCHING}"
        )
    family = family_of(read_config(described(plan.checkpoints[-1]).folder))
    if family.patching_only is not None:
        raise UnsupportedModel(
            f"{family.model_type}: {family.patching_only}, so the closed form of Eq. 3-4 doesn't hold. {PATCHING}"
        )
    shape = plan.shape
    sharing = plan.n_workers if plan.config.executor == "local" else 1
    memory = int((1 - HELD) * plan.config.memory / sharing * 2**30)
    neurons_that_fit(memory, shape.vocab, shape.d_model, shape.d_mlp, share=1 - HELD)


def check_data(plan: Plan) -> None:
    """Text that isn't there, or counts of another vocabulary, are said before anything is computed."""
    study_corpus(plan.config)
    if plan.config.counts is not None:
        tokenizer = load_tokenizer(described(plan.checkpoints[-1]).folder, None)
        size = None if tokenizer is None else len(tokenizer)
        load_counts(Path(plan.config.counts), plan.shape.vocab, size)


def estimate(plan: Plan) -> Estimate:
    """Time, memory and disk of what is open. Reads configs, not weights; the corpus stays unread."""
    shape = plan.shape
    rate = float32_rate()
    n_rare = plan.config.tokens_wanted
    n_contexts = n_rare * 256 / (RARE_PER_CONTEXT * plan.config.context_length)
    n_tokens = 2 * n_rare  # as many common ones
    forward = 2 * shape.n_backbone_params * n_contexts * plan.config.context_length
    if plan.config.engine == "patching":
        effects = forward * shape.d_mlp + 2 * n_tokens * shape.d_mlp * shape.vocab * shape.d_model
    else:
        effects = 2 * n_tokens * shape.vocab * (4 * shape.d_model + shape.d_mlp)
    memory = plan.config.memory * 2**30
    fixed, per_neuron = engine_memory(shape.vocab, shape.d_model)
    tables = min(fixed + shape.d_mlp * per_neuron, (1 - HELD) * memory)
    captured = min(4 * n_tokens * (shape.d_mlp + shape.d_model), HELD * memory)
    n_open = len(plan.open)
    return Estimate(
        shape=shape,
        n_open=n_open,
        gflops=rate / 1e9,
        capture_seconds=OVERHEAD * forward / rate,
        effects_seconds=OVERHEAD * effects / rate,
        phases_seconds=phases_seconds(plan.config.definitions, shape.d_mlp),
        groups_seconds=GROUPS_SECONDS * plan.config.n_random,
        last_seconds=LAST_SECONDS if plan.checkpoints[-1] in plan.open else 0.0,
        memory_gib=(4 * shape.n_params + tables + captured + LIBRARIES) / 2**30,
        disk_mib=n_open * (16 * min(n_contexts, 4096) * shape.d_mlp + 400 * shape.d_mlp) / 2**20,
    )


def phases_seconds(definitions: str, n_neurons: int) -> float:
    """Of the four rankings with their nulls and bootstrap; nothing to speak of where nothing is tested."""
    fixed, per_neuron = PHASES_SECONDS
    return fixed + per_neuron * n_neurons if definitions == "paper" else 0.0


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
        "damaged": list(plan.damaged),
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
            f"Time         about {duration(p['seconds'])} ({duration(p['capture_seconds'])} capture, "
            f"{duration(p['effects_seconds'])} effects, {duration(p['groups_seconds'])} groups and "
            f"{duration(p['phases_seconds'])} phases per checkpoint, at {p['gflops']:.0f} GFLOP/s measured now)",
            f"Memory       about {p['memory_gib']:.1f} GiB",
            f"Disk         about {p['disk_mib']:,.0f} MiB",
        ]
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
