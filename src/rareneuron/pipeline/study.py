"""A study: the same tokens at every checkpoint, every neuron's effect, groups; stage by stage into a run folder.

Stages: `tokens` (texts → contexts → analysed tokens, once), then per checkpoint `effects` and `groups`. A finished
checkpoint is never computed again, so the same call continues a study that was interrupted.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rareneuron.errors import InvalidConfig, TooFewNeurons
from rareneuron.maths.groups import neuron_groups
from rareneuron.models.adapter import Adapter, load_model
from rareneuron.models.checkpoints import UNKNOWN_STEP, Checkpoint
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.effects import LayerEffects, layer_effects
from rareneuron.pipeline.plan import Plan, plan_study, step_name
from rareneuron.pipeline.provenance import environment
from rareneuron.pipeline.run import Run
from rareneuron.pipeline.store import (
    RunStore,
    read_json,
    replacing,
    write_json,
    write_table,
    write_tensors,
)
from rareneuron.pipeline.tokens import TokenStage, choose_tokens, load_tokens, save_tokens, study_corpus

FORMAT = 1  # of the run folder


def run_study(config: StudyConfig, *, progress: bool = True) -> Run:
    """Run or continue a study; returns the run, whose folder holds every result.

    Progress bars go to stderr where that is a terminal. Interrupted, it leaves finished checkpoints, and the same
    call continues.
    """
    started = time.perf_counter()
    plan = plan_study(config)
    store = RunStore(plan.out)
    missing = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    with store.locked():
        try:
            tokens, first = tokens_stage(store, config, plan)
            for checkpoint in plan.open:
                is_first = first is not None and checkpoint == plan.checkpoints[-1]
                adapter = first if is_first and first is not None else load_checkpoint(config, checkpoint)
                first = None
                step_stage(store, config, checkpoint, adapter, tokens, progress)
                del adapter
        except BaseException:
            if missing and not store.finished_steps():
                remove_new(missing)  # nothing finished, so nothing is lost and nothing half-written stays
            raise
        finish(store, tokens, time.perf_counter() - started)
    return Run(store.root)


def remove_new(folders: list[Path]) -> None:
    """Remove a run folder that was made here, and those above it that were made for it and hold nothing else."""
    shutil.rmtree(folders[0])
    for folder in folders[1:]:
        if any(folder.iterdir()):  # another study's
            break
        folder.rmdir()


def load_checkpoint(config: StudyConfig, checkpoint: Checkpoint) -> Adapter:
    """Load one checkpoint, and refuse what the chosen engine cannot do before any work is done."""
    adapter = load_model(checkpoint.source, checkpoint.revision, dtype=config.dtype, device=config.device)
    if not -adapter.n_layers <= config.layer < adapter.n_layers:
        raise InvalidConfig(
            f"layer = {config.layer}, and {checkpoint.source} has {adapter.n_layers} layers: use 0 to "
            f"{adapter.n_layers - 1}, or -1 for the last."
        )
    if config.engine == "closed-form":
        adapter.readout(config.layer)  # refuses with the reason
    if 3 * config.group_size > adapter.d_mlp:
        raise TooFewNeurons(
            f"Three groups of {config.group_size} (boosting, suppressing, random) need {3 * config.group_size} "
            f"neurons, and the layer has {adapter.d_mlp}. Use --group-size {max(2, adapter.d_mlp // 20)} or so."
        )
    return adapter


def tokens_stage(store: RunStore, config: StudyConfig, plan: Plan) -> tuple[TokenStage, Adapter | None]:
    """The analysed tokens, chosen once, then read back; and the last checkpoint, where it was loaded for that."""
    if store.manifest.is_file():
        return load_tokens(store), None
    corpus = study_corpus(config)  # a wrong path is said before a large model is loaded
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    tokens = choose_tokens(config, corpus, adapter)
    save_tokens(store, tokens)
    write_json(
        store.manifest,
        {
            "format": FORMAT,
            "config": config.identity(),
            "environment": environment(),
            "data": tokens.record,
            "layer": config.layer % adapter.n_layers,
            "checkpoints": {},
        },
    )
    return tokens, adapter


@contextmanager
def bar(label: str, total: int, unit: str, show: bool) -> Iterator[Any]:
    """A progress bar on stderr, silent where that is no terminal."""
    with tqdm(total=total, desc=label, unit=unit, unit_scale=True, disable=None if show else True, leave=False) as t:
        yield t.update


def step_stage(
    store: RunStore,
    config: StudyConfig,
    checkpoint: Checkpoint,
    adapter: Adapter,
    tokens: TokenStage,
    progress: bool,
) -> None:
    """Effects and groups of one checkpoint, written as one folder that exists only when complete."""
    name = step_name(checkpoint)
    selection = tokens.selection
    with (
        bar(f"step {name} capture", selection.windows.size, "tok", progress) as capture_progress,
        bar(f"step {name} effects", len(selection.context), "tok", progress) as effects_progress,
    ):
        effects = layer_effects(
            adapter,
            selection,
            engine=config.engine,
            layer=config.layer,
            reference=config.reference,
            memory=int(config.memory * 2**30),
            seed=config.seed,
            capture_progress=capture_progress,
            effects_progress=effects_progress,
        )
    groups, role = groups_stage(config, effects)
    rare = selection.rare
    record = {
        "step": None if checkpoint.step == UNKNOWN_STEP else checkpoint.step,
        "model": adapter.provenance | ({"source": f"embedded series, step {name}"} if config.is_embedded_model else {}),
        "closed_form": asdict(adapter.closed_form),
        "engine": config.engine,
        "loss_rare": float(effects.token_loss[rare].mean()),
        "loss_common": float(effects.token_loss[~rare].mean()) if (~rare).any() else None,
        "audit": None if effects.audit is None else asdict(effects.audit),
        "timings": effects.timings,
        "rates": effects.rates,
    }
    with replacing(store.step(name)) as folder:
        folder.mkdir()
        write_table(folder / "effects.parquet", effects.table.assign(role=role))
        write_tensors(folder / "context_sums.safetensors", effects.context_sums)
        write_tensors(folder / "token_loss.safetensors", {"loss": effects.token_loss})
        write_json(folder / "groups.json", groups)
        write_json(folder / "step.json", record)


def groups_stage(config: StudyConfig, effects: LayerEffects) -> tuple[dict[str, Any], np.ndarray]:
    """Groups as stored, and each neuron's role. Too few neurons of a sign is recorded, with the reason, not skipped."""
    table = effects.table
    role = np.full(len(table), "other", dtype=object)
    try:
        groups = neuron_groups(
            table["delta_loss"].to_numpy(),
            table["abs_delta_loss"].to_numpy(),
            size=config.group_size,
            n_draws=config.n_random,
            covariate=table["mean_abs_act"].to_numpy(),
            matched_on="mean_abs_act",
            rng=np.random.default_rng([config.seed, 2]),
        )
    except TooFewNeurons as error:
        return {"unavailable": str(error)}, role
    role[groups.boosting], role[groups.suppressing] = "boosting", "suppressing"
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(groups).items()}, role


def finish(store: RunStore, tokens: TokenStage, seconds: float) -> None:
    """Gather the checkpoints' records in `run.json`, and put the last checkpoint's losses beside the tokens."""
    manifest = read_json(store.manifest)
    run = Run(store.root)
    names = store.finished_steps()
    manifest["checkpoints"] = {name: read_json(store.step(name) / "step.json") for name in names}
    manifest.setdefault("timings", []).append({"seconds": seconds, "checkpoints": len(names)})
    manifest["warnings"] = identical_neighbours(manifest["checkpoints"])
    loss = run.token_loss()
    write_table(store.root / "tokens.parquet", run.tokens().assign(loss=loss))
    write_json(store.manifest, manifest)


def identical_neighbours(checkpoints: dict[str, Any]) -> list[str]:
    """Public series carry the same weights under two steps more often than one would think (Pythia's step 0 and 1)."""
    hashes = {name: record["model"].get("weights_sha256") for name, record in checkpoints.items()}
    names = list(hashes)
    return [
        f"Steps {a} and {b} have identical weights: one of them is not what its name says."
        for a, b in pairwise(names)
        if hashes[a] is not None and hashes[a] == hashes[b]
    ]
