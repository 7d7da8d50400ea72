"""A study: the same tokens at every checkpoint, every neuron's effect, groups and phases, into a run folder.

Stages: `tokens` (texts → contexts → analysed tokens, once), per checkpoint `effects`, `groups` (with their geometry
and weight spectrum) and `phases`, and at the end the trajectory over checkpoints. A finished checkpoint is never
computed again, so the same call continues a study that was interrupted.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from rareneuron.data.selection import Selection
from rareneuron.errors import RunFolderError
from rareneuron.maths.rank_curve import RankCurve, rank_curve
from rareneuron.models.adapter import Adapter, load_model
from rareneuron.models.checkpoints import UNKNOWN_STEP, Checkpoint
from rareneuron.pipeline.capture import HELD, TokenSource
from rareneuron.pipeline.config import StudyConfig
from rareneuron.pipeline.dynamics import trajectory
from rareneuron.pipeline.effects import layer_effects
from rareneuron.pipeline.experiments import experiments, write_experiments
from rareneuron.pipeline.explorer import Observer, explorer_stage
from rareneuron.pipeline.groups import compare_groups, write_groups
from rareneuron.pipeline.plan import Plan, plan_study, resolved, step_name
from rareneuron.pipeline.provenance import environment, sha256_of_file, weight_stamps
from rareneuron.pipeline.rankings import fit_rankings, phases_are_whole, write_phases
from rareneuron.pipeline.run import Run
from rareneuron.pipeline.store import (
    FORMAT,
    TRAJECTORY,
    RunStore,
    digest,
    read_json,
    replacing,
    write_json,
    write_table,
    write_tensors,
)
from rareneuron.pipeline.tokens import TokenStage, choose_tokens, load_tokens, save_tokens, study_corpus
from rareneuron.pipeline.verdicts import write_claims


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
            record_plan(store, plan)
            for checkpoint in plan.open:
                is_first = first is not None and checkpoint == plan.checkpoints[-1]
                adapter = first if is_first and first is not None else load_checkpoint(config, checkpoint)
                first = None
                step_stage(store, config, checkpoint, adapter, tokens, progress, checkpoint == plan.checkpoints[-1])
                del adapter
            add_missing_phases(store, config)
        except BaseException:
            if missing and not store.finished_steps():
                remove_new(missing)  # nothing finished, so nothing is lost and nothing half-written stays
            raise
        finish(store, plan, time.perf_counter() - started)
    return Run(store.root)


def remove_new(folders: list[Path]) -> None:
    """Remove a run folder that was made here, and those above it that were made for it and hold nothing else."""
    shutil.rmtree(folders[0])
    for folder in folders[1:]:
        try:
            folder.rmdir()
        except OSError:  # not empty: another study's
            break


def load_checkpoint(config: StudyConfig, checkpoint: Checkpoint) -> Adapter:
    """Load one checkpoint, and refuse what the chosen engine cannot do before any work is done."""
    stamps = weight_stamps(checkpoint)  # before loading: weights that change meanwhile then count as changed
    adapter = load_model(checkpoint.source, checkpoint.revision, dtype=config.dtype, device=config.device)
    adapter.provenance["weight_stamps"] = stamps
    if config.engine == "closed-form":
        adapter.readout(config.layer)  # refuses with the reason
    return adapter


def tokens_stage(store: RunStore, config: StudyConfig, plan: Plan) -> tuple[TokenStage, Adapter | None]:
    """The analysed tokens, chosen once, then read back; and the last checkpoint, where it was loaded for that."""
    if store.manifest.is_file():
        return continued_tokens(store, config, plan)
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    tokens = choose_tokens(config, study_corpus(config), adapter)
    save_tokens(store, tokens)
    counts = {"sha256": None if config.counts is None else sha256_of_file(Path(config.counts))}
    write_json(
        store.manifest,
        {
            "format": FORMAT,
            "config": config.identity(),
            "resolved": resolved(config),
            "environment": environment(),
            "data": tokens.record
            | {"counts": tokens.record["counts"] | counts, "sha256": selection_digest(tokens.selection)},
            "layer": config.layer % adapter.n_layers,
            "n_layers": adapter.n_layers,
            "planned": [],
            "checkpoints": {},
        },
    )
    return tokens, adapter


def continued_tokens(store: RunStore, config: StudyConfig, plan: Plan) -> tuple[TokenStage, Adapter | None]:
    """The tokens of a study begun before. Where their files are lost they are chosen again, if they come out the same.

    Text, filter and seed decide them, so every checkpoint still sees the same tokens; others are refused.
    """
    recorded = store.read_manifest()["data"]
    try:
        tokens = load_tokens(store)
        if selection_digest(tokens.selection) == recorded["sha256"]:
            return tokens, None
    except RunFolderError:
        pass  # missing or damaged: chosen again below
    corpus = study_corpus(config)
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    tokens = choose_tokens(config, corpus, adapter)
    if selection_digest(tokens.selection) != recorded["sha256"]:
        cause = (
            f"the text has changed since (fingerprint {recorded['fingerprint']} then, {tokens.record['fingerprint']} "
            "now)"
            if tokens.record["fingerprint"] != recorded["fingerprint"]
            else "the same text gives others now, as it may with other counts or versions of the libraries"
        )
        raise RunFolderError(
            f"The tokens of {store.root} (tokens.parquet, contexts.safetensors) are lost or damaged, and choosing them "
            f"again from {corpus.name} gives others: {cause}. Finished checkpoints could not be compared with further "
            "ones. Restore those two files or what the text was, or start over in another folder with --out."
        )
    save_tokens(store, tokens)
    return tokens, adapter


def record_plan(store: RunStore, plan: Plan) -> None:
    """The checkpoints that this and earlier commands asked for, so that a reader sees what is still to come."""
    manifest = store.read_manifest()
    asked = [step_name(checkpoint) for checkpoint in plan.checkpoints]
    further = [name for name in asked if name not in manifest["planned"]]
    if further:
        write_json(store.manifest, manifest | {"planned": manifest["planned"] + further})


def selection_digest(selection: Selection) -> str:
    """SHA-256 of which tokens are analysed."""
    names = ("windows", "context_index", "context", "position", "target", "rare")
    return digest({name: getattr(selection, name) for name in names})


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
    is_last: bool,
) -> None:
    """Effects, groups and phases of one checkpoint, written as one folder that exists only when complete.

    The last planned one also gets what the report's neuron explorer shows, and the experiments that claims rest on.
    """
    name = step_name(checkpoint)
    selection = tokens.selection
    with (
        bar(f"step {name} capture", selection.windows.size, "tok", progress) as capture_progress,
        bar(f"step {name} effects", len(selection.context), "tok", progress) as effects_progress,
    ):
        memory = int(config.memory * 2**30)
        held = int(HELD * memory)
        source = TokenSource(adapter, selection, config.layer, held)
        seen = Observer(selection, adapter.d_mlp) if is_last else None
        effects = layer_effects(
            source,
            engine=config.engine,
            reference=config.reference,
            memory=memory - held,
            seed=config.seed,
            capture_progress=capture_progress,
            effects_progress=effects_progress,
            observe=seen,
        )
    started = time.perf_counter()
    compared = compare_groups(config, source, effects.table)
    compared_at = time.perf_counter()
    phases = fit_rankings(effects.table, effects.context_sums, config.seed, config.definitions)
    further = {"groups": compared_at - started, "phases": time.perf_counter() - compared_at}
    tried = None
    if is_last:
        started = time.perf_counter()
        tried = experiments(source, effects.table, compared.groups, config.engine, memory - held, config.seed)
        further["experiments"] = time.perf_counter() - started
    role = np.full(len(effects.table), "other", dtype=object)
    for name_of_role, neurons in compared.role.items():
        role[neurons] = name_of_role
    rare = selection.rare
    record = {
        "step": None if checkpoint.step == UNKNOWN_STEP else checkpoint.step,
        "model": adapter.provenance | ({"source": f"embedded series, step {name}"} if config.is_embedded_model else {}),
        "closed_form": asdict(adapter.closed_form),
        "engine": config.engine,
        "loss_rare": float(effects.token_loss[rare].mean()),
        "loss_common": float(effects.token_loss[~rare].mean()) if (~rare).any() else None,
        "audit": None if effects.audit is None else asdict(effects.audit),
        "timings": effects.timings | further,
        "rates": effects.rates,
    }
    with replacing(store.step(name)) as folder:
        folder.mkdir()
        write_table(folder / "effects.parquet", effects.table.assign(role=role))
        curve = rank_curve(effects.table["abs_delta_loss"].to_numpy())
        write_table(folder / "rank_curve.parquet", curve_table(curve, effects.table["neuron"].to_numpy()))
        write_tensors(folder / "context_sums.safetensors", effects.context_sums)
        write_tensors(folder / "token_loss.safetensors", {"loss": effects.token_loss})
        write_groups(folder, compared)
        if seen is not None:
            explorer_stage(folder, source, seen, effects.table, config.engine)
        if tried is not None:
            write_experiments(folder, tried)
        write_phases(folder, phases, config.definitions)
        write_json(folder / "step.json", record)


def add_missing_phases(store: RunStore, config: StudyConfig) -> None:
    """Phases of finished checkpoints that lack them, or whose files are damaged, from the effects that are there."""
    run = Run(store.root)
    for name, step in zip(store.finished_steps(), run.steps, strict=True):
        folder, effects = store.step(name), run.effects(step)
        if not phases_are_whole(folder, effects, config.definitions):
            phases = fit_rankings(effects, run.context_sums(step), config.seed, config.definitions)
            write_phases(folder, phases, config.definitions)


def curve_table(curve: RankCurve, name: np.ndarray) -> pd.DataFrame:
    """The rank curve with everything that it holds per rank; columns are named as in the table of effects."""
    columns = {"rank": curve.rank, "neuron": name[curve.neuron]}
    columns |= {f.name: getattr(curve, f.name) for f in fields(curve) if f.name != "neuron"}
    table = pd.DataFrame({k: v for k, v in columns.items() if np.shape(v) == np.shape(curve.value)})
    return table.assign(index=curve.neuron).rename(columns={"value": "abs_delta_loss"})


def finish(store: RunStore, plan: Plan, seconds: float) -> None:
    """Gather the checkpoints in `run.json` and the trajectory, and put the last one's losses beside the tokens.

    What is so already is not written again, and a study with nothing to do leaves the folder as it was.
    """
    manifest, run = store.read_manifest(), Run(store.root)
    records = {name: read_json(store.step(name) / "step.json") for name in store.finished_steps()}
    gathered = manifest | {"checkpoints": records, "warnings": identical_neighbours(records)}
    if plan.open:
        gathered["timings"] = [*manifest.get("timings", []), {"seconds": seconds, "checkpoints": len(records)}]
    tokens, loss = run.tokens(), run.token_loss()
    if "loss" not in tokens or not np.array_equal(tokens["loss"], loss):
        write_table(store.root / "tokens.parquet", tokens.assign(loss=loss))
    if gathered != manifest:
        write_json(store.manifest, gathered)
    over_steps = trajectory(run)
    try:
        known = over_steps.equals(run.trajectory())
    except RunFolderError:  # missing or damaged
        known = False
    if not known:
        write_table(store.root / TRAJECTORY, over_steps)
    write_claims(run)


def identical_neighbours(checkpoints: dict[str, Any]) -> list[str]:
    """Public series carry the same weights under two steps more often than one would think (Pythia's step 0 and 1)."""
    hashes = {name: record["model"].get("weights_sha256") for name, record in checkpoints.items()}
    names = list(hashes)
    return [
        f"Steps {a} and {b} have identical weights: one of them is not what its name says."
        for a, b in pairwise(names)
        if hashes[a] is not None and hashes[a] == hashes[b]
    ]
