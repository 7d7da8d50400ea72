"""A study: the same tokens at every checkpoint, every neuron's effect, groups and phases, into a run folder.

Stages: `tokens` (texts → contexts → analysed tokens, once), then every checkpoint (`measure.checkpoint`: effects,
groups with their geometry and weight spectrum, phases) by whichever executor, and at the end the trajectory over
checkpoints and the claims. What is finished is never computed again, so the same call continues a study that was
interrupted. Everything that depends on what is in the folder, the plan too, is done under its lock.
"""

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rareneuron.conclude.evidence import write_claims
from rareneuron.conclude.trajectory import trajectory
from rareneuron.errors import RunFolderError
from rareneuron.measure.checkpoint import load_checkpoint
from rareneuron.measure.identity import resolved, step_name
from rareneuron.models.adapter import Adapter
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import explained, write_table
from rareneuron.runs.layout import FORMAT, TRAJECTORY, UNIGRAMS, UNITS
from rareneuron.runs.rankings import fit_rankings, phases_are_whole, write_phases
from rareneuron.runs.records import Manifest, StudyTiming
from rareneuron.runs.run import Run
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage, load_tokens, save_tokens, selection_digest
from rareneuron.study.environment import environment
from rareneuron.study.plan import Plan, is_begun, plan_study
from rareneuron.study.suspicions import study_warnings
from rareneuron.study.tokens import choose_tokens, study_corpus
from rareneuron.study.workers.dispatch import compute_open


def run_study(config: StudyConfig, *, progress: bool = True) -> Run:
    """Run or continue a study; returns the run, whose folder holds every result.

    Progress bars go to stderr where that is a terminal. Interrupted, it leaves finished checkpoints, and the same
    call continues. Of a shard there are its checkpoints only, until `study.merge` ends the study.
    """
    started = time.perf_counter()
    store = RunStore(config.run_folder)
    with explained(store.root, "opening"):
        is_begun(store)  # refuses what is no run, before anything is written there
        missing = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    is_whole = config.shard is None
    try:
        with store.locked(wait=not is_whole):
            plan = plan_study(config)
            for found in plan.damaged:
                tqdm.write(f"rareneuron: {found}", file=sys.stderr)
            tokens, first = tokens_stage(store, config, plan, progress)
            record_plan(store, plan)
            if is_whole:
                compute_open(store, config, plan, tokens, first, progress)
                finish(store, plan.config, len(plan.open), time.perf_counter() - started)
        if not is_whole:  # the other shards need the lock to begin
            compute_open(store, config, plan, tokens, first, progress)
    except BaseException:
        if missing and is_whole:
            remove_unfinished(store, missing)
        raise
    return Run(store.root)


def remove_unfinished(store: RunStore, made: list[Path]) -> None:
    """Remove a run folder that was made here and holds no step or shard, and the folders made for it alone.

    Nothing is lost by that, and nothing half-written stays. Unless another process has the folder now.
    """
    with suppress(RunFolderError), store.locked():
        if store.finished_steps() or any(store.root.glob(f"{UNITS}/*/*.safetensors")):
            return
        shutil.rmtree(made[0])
        for folder in made[1:]:
            try:
                folder.rmdir()
            except OSError:  # not empty: another study's
                break


def tokens_stage(store: RunStore, config: StudyConfig, plan: Plan, show: bool) -> tuple[TokenStage, Adapter | None]:
    """The analysed tokens, chosen once, then read back; and the last checkpoint, where it was loaded for that."""
    if store.manifest.is_file():
        return continued_tokens(store, config, plan, show)
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    tokens = choose_tokens(config, study_corpus(config), adapter, store.root / UNIGRAMS, show=show)
    save_tokens(store, tokens)
    store.write_manifest(
        Manifest(
            format=FORMAT,
            config=config,
            resolved=resolved(config),
            environment=environment(),
            data=tokens.record,
            layer=config.layer % adapter.n_layers,
            n_layers=adapter.n_layers,
        )
    )
    return tokens, adapter


def continued_tokens(store: RunStore, config: StudyConfig, plan: Plan, show: bool) -> tuple[TokenStage, Adapter | None]:
    """The tokens of a study begun before. Where their files are lost they are chosen again, if they come out the same.

    Text, filter and seed decide them, so every checkpoint still sees the same tokens; others are refused.
    """
    recorded = store.read_manifest().data
    try:
        tokens = load_tokens(store)
        if selection_digest(tokens.selection) == recorded.sha256:
            return tokens, None
    except RunFolderError:
        pass  # missing or damaged: chosen again below
    corpus = study_corpus(config)
    adapter = load_checkpoint(config, plan.checkpoints[-1])
    tokens = choose_tokens(config, corpus, adapter, store.root / UNIGRAMS, show=show)
    if selection_digest(tokens.selection) != recorded.sha256:
        cause = (
            f"the text has changed since (fingerprint {recorded.fingerprint} then, {tokens.record.fingerprint} now)"
            if tokens.record.fingerprint != recorded.fingerprint
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
    further = tuple(name for name in asked if name not in manifest.planned)
    if further:
        store.write_manifest(replace(manifest, planned=manifest.planned + further))


def add_missing_phases(store: RunStore, config: StudyConfig) -> None:
    """Phases of finished checkpoints that lack them, or whose files are damaged, from the effects that are there."""
    run = Run(store.root)
    for name, step in zip(store.finished_steps(), run.steps, strict=True):
        folder, effects = store.step(name), run.effects(step)
        if not phases_are_whole(folder, effects, config.definitions):
            is_last = step == run.steps[-1]
            phases = fit_rankings(effects, run.context_sums(step), config.seed, config.definitions, is_last=is_last)
            write_phases(folder, phases, config.definitions)


def finish(store: RunStore, config: StudyConfig, n_computed: int = 0, seconds: float = 0.0) -> None:
    """What is known once all checkpoints are: gather them in `run.json`, follow them over training, judge the claims.

    What is so already is not written again, and a study with nothing to do leaves the folder as it was.
    """
    add_missing_phases(store, config)
    manifest, run = store.read_manifest(), Run(store.root)
    records = {name: store.read_step(name) for name in store.finished_steps()}
    timings = manifest.timings
    if n_computed:
        timings = (*timings, StudyTiming(seconds=seconds, checkpoints=len(records)))
    gathered = replace(manifest, checkpoints=records, warnings=tuple(study_warnings(store)), timings=timings)
    tokens, loss = run.tokens(), run.token_loss()
    if "loss" not in tokens or not np.array_equal(tokens["loss"], loss):
        write_table(store.root / "tokens.parquet", tokens.assign(loss=loss))
    if gathered != manifest:
        store.write_manifest(gathered)
    over_steps = trajectory(run)
    try:
        known = over_steps.equals(run.trajectory())
    except RunFolderError:  # missing or damaged
        known = False
    if not known:
        write_table(store.root / TRAJECTORY, over_steps)
    write_claims(run)
