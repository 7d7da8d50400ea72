"""Runs a study: the same tokens at every checkpoint, every neuron's effect, groups and phases, into a run folder.

Stages: `tokens` (texts → contexts → analysed tokens, once), then every checkpoint (`measure.checkpoint`: effects,
groups with their geometry and weight spectrum, phases) by any executor, and at the end the trajectory over checkpoints
and the claims. Finished checkpoints are never computed again, so the same call continues an interrupted study.
Everything that depends on the folder's content, the plan included, is done under its lock.
"""

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rareneuron.conclude.evidence import write_claims
from rareneuron.conclude.trajectory import trajectory
from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.measure.checkpoint import load_checkpoint, load_weights
from rareneuron.measure.engines import first_that_serves
from rareneuron.measure.identity import canonical_names
from rareneuron.models.adapter import Adapter
from rareneuron.models.memory import kept_copy
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import explaining, write_table
from rareneuron.runs.layout import CONTEXTS, FORMAT, TOKENS, TRAJECTORY, UNIGRAMS, UNITS, step_folder
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


def run_study(config: StudyConfig, *, model: Any = None, tokenizer: Any = None, progress: bool = True) -> Run:
    """Run or continue a study, and return the run, whose folder holds every result.

    An interrupted study keeps its finished checkpoints, and the same call continues it. A shard computes only its own
    checkpoints, until `study.merge` ends the study.

    Args:
        config: Model, text, layer and all other settings.
        model: A `transformers` model in memory, in whatever wraps it, in place of `config.model`. A plain copy of its
            weights is kept in the user's cache under a hash of weights, config and tokenizer, and that is studied.
        tokenizer: The tokenizer of `model`.
        progress: Show progress on stderr: bars on a terminal, in a log file a line each minute.

    Returns:
        The run, open for reading. Effects are in nats per token.

    Raises:
        InvalidConfig: A setting is out of its range, or the engine can't serve the model.
        RunFolderError: The folder holds another study, or can't be written.
        ModelNotFound: There is no such model, revision or step.
        UnsupportedModel: The architecture, or the layer with this engine, can't be analysed.
        NoRareTokens: Too few tokens pass the filter.
        WrongEffects: The audit in float64 doesn't confirm the effects.

    Source:
        Sec. 3 and App. 5.3; docs/science.md lists where this differs from the paper.

    Example:
        >>> import rareneuron as rn
        >>> config = rn.StudyConfig(
        ...     steps=(4096,), n_tokens=200, max_corpus_tokens=200_000, group_size=20, n_random=200, out="runs/small"
        ... )
        >>> run = rn.run_study(config, progress=False)
        >>> run.steps, len(run.effects()), run.manifest.data.n_rare
        ([4096], 1024, 200)
    """
    started = time.perf_counter()
    if model is not None or tokenizer is not None:
        config = with_model_in_memory(config, model, tokenizer)
    store = RunStore(config.run_folder)
    with explaining(store.root, "opening"):
        is_begun(store)  # refuses a folder that holds something else, before anything is written there
        missing = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    is_whole = config.shard is None
    try:
        with store.locked(wait=not is_whole):
            plan = plan_study(config)
            for found in plan.damaged:
                tqdm.write(f"rareneuron: {found}", file=sys.stderr)
            tokens, first, config = tokens_stage(store, plan, progress)
            record_plan(store, plan)
            if is_whole:
                compute_open(store, config, plan, tokens, first, progress)
                finish(store, config, len(plan.open), time.perf_counter() - started)
        if not is_whole:  # the other shards need the lock to begin
            compute_open(store, config, plan, tokens, first, progress)
    except BaseException:
        if missing and is_whole:
            remove_unfinished(store, missing)
        raise
    return Run(store.root)


def with_model_in_memory(config: StudyConfig, model: Any, tokenizer: Any) -> StudyConfig:
    """Return the settings with the kept copy of a model in memory as their model."""
    named = [name for name in ("model", "revision", "steps") if getattr(config, name) is not None]
    if named or model is None:
        found = f"the settings name {' and '.join(named)}" if named else "a tokenizer was given without its model"
        raise InvalidConfig(
            f"A study is of one model, and {found}. Give `model=...` and `tokenizer=...` with settings that name "
            "none, or settings alone."
        )
    return replace(config, model=str(kept_copy(model, tokenizer)))


def remove_unfinished(store: RunStore, made: list[Path]) -> None:
    """Remove a run folder that this call made, if it holds neither checkpoint nor piece, and the folders made for it.

    So no results are lost, and nothing half-written stays. A folder that another process holds now is left alone.
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


def tokens_stage(store: RunStore, plan: Plan, show: bool) -> tuple[TokenStage, Adapter | None, StudyConfig]:
    """Return the analysed tokens, chosen now or read back, the last checkpoint if it was loaded, and the settings.

    What the model decides about the settings is decided then.
    """
    if store.manifest.is_file():
        return *reload_tokens(store, plan.config, plan, show), plan.config
    adapter = load_weights(plan.config, plan.checkpoints[-1])
    config = replace(plan.config, engine=first_that_serves(plan.engines, adapter, plan.config.layer).name)
    tokens = choose_tokens(config, study_corpus(config), adapter, store.root / UNIGRAMS, show=show)
    save_tokens(store, tokens)
    store.write_manifest(
        Manifest(
            format=FORMAT,
            config=config,
            resolved=canonical_names(config),
            environment=environment(),
            data=tokens.record,
            layer=config.layer % adapter.n_layers,
            n_layers=adapter.n_layers,
        )
    )
    return tokens, adapter, config


def reload_tokens(store: RunStore, config: StudyConfig, plan: Plan, show: bool) -> tuple[TokenStage, Adapter | None]:
    """Return the tokens of a study begun before; if their files are lost, choose them again.

    Text, filter and seed decide the tokens, so the choice should come out the same; if it doesn't, it is refused.
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
            else "the same text gives other tokens now, as can happen with other counts or versions of the libraries"
        )
        raise RunFolderError(
            f"The tokens of {store.root} ({TOKENS}, {CONTEXTS}) are lost or damaged, and choosing them "
            f"again from {corpus.name} gives others: {cause}. Finished checkpoints could not be compared with further "
            "ones. Restore those two files or the original text, or start over in another folder with --out."
        )
    save_tokens(store, tokens)
    return tokens, adapter


def record_plan(store: RunStore, plan: Plan) -> None:
    """Add the checkpoints that this command asks for to `run.json`, so that a reader sees which are still missing."""
    manifest = store.read_manifest()
    asked = [step_folder(checkpoint.step) for checkpoint in plan.checkpoints]
    further = tuple(name for name in asked if name not in manifest.planned)
    if further:
        store.write_manifest(replace(manifest, planned=manifest.planned + further))


def add_missing_phases(store: RunStore, config: StudyConfig) -> None:
    """Fit, from their effects, the phases of finished checkpoints that lack them or whose phases are damaged."""
    run = Run(store.root)
    for name, step in zip(store.finished_steps(), run.steps, strict=True):
        folder, effects = store.step(name), run.effects(step)
        if not phases_are_whole(folder, effects, config.definitions):
            is_last = step == run.steps[-1]
            phases = fit_rankings(effects, run.context_sums(step), config.seed, config.definitions, is_last=is_last)
            write_phases(folder, phases, config.definitions)


def finish(store: RunStore, config: StudyConfig, n_computed: int = 0, seconds: float = 0.0) -> None:
    """End a study: gather its checkpoints in `run.json`, write the trajectory, judge the claims.

    Files whose content would stay the same aren't written again, so a study with nothing to do changes nothing.
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
        write_table(store.root / TOKENS, tokens.assign(loss=loss))
    if gathered != manifest:
        store.write_manifest(gathered)
    over_steps = trajectory(run)
    try:
        known = over_steps.equals(run.trajectory())
    except RunFolderError:  # missing or damaged
        known = False
    if not known:
        write_table(store.root / TRAJECTORY, over_steps)
    write_claims(run, over_steps)
