"""One checkpoint of a study, computed and put in its place whole or not at all, whoever computed it.

It takes the run folder and the settings and gives a folder in `steps/`; tokens were chosen before. It can be repeated:
what is finished is left, what is damaged is computed again, and the same checkpoint gives the same numbers in any
process, at any time. So checkpoints are computed in turn, by local processes or on a cluster (`study.workers`) alike.
A lock on each keeps two processes from the same one. Oracle: tests/study/test_crash.py, an undisturbed run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from rareneuron.maths.rank_curve import RankCurve, rank_curve
from rareneuron.measure.capture import HELD
from rareneuron.measure.effects import layer_effects
from rareneuron.measure.experiments import experiments
from rareneuron.measure.groups import compare_groups
from rareneuron.measure.identity import refuse_removed, shard_identity, step_name
from rareneuron.measure.neurons import Observer, explorer_stage
from rareneuron.measure.pieces import ShardedSource, ShardStore, StepShards, cut_contexts
from rareneuron.measure.weights import weight_stamps, weights_record
from rareneuron.models.adapter import Adapter, load_folder
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.experiments import write_experiments
from rareneuron.runs.files import damage, file_sums, remove, replacing, write_json, write_table, write_tensors
from rareneuron.runs.groups import write_groups
from rareneuron.runs.layout import WEIGHTS
from rareneuron.runs.rankings import fit_rankings, write_phases
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage, load_tokens


def compute_unit(
    store: RunStore,
    config: StudyConfig,
    checkpoint: Checkpoint,
    *,
    is_last: bool,
    tokens: TokenStage | None = None,
    adapter: Adapter | None = None,
    progress: bool = False,
) -> None:
    """Compute one checkpoint into its folder, unless it is there and whole; tokens are read where not given."""
    tokens = tokens or load_tokens(store)
    refuse_removed(store, config, tokens)
    name = step_name(checkpoint)
    with store.step_locked(name):
        if store.step(name).is_dir() and damage(store.step(name)) is None:
            remove(store.units(name))
            return  # another process was here meanwhile
        step_stage(store, config, checkpoint, adapter or load_checkpoint(config, checkpoint), tokens, progress, is_last)


def load_checkpoint(config: StudyConfig, checkpoint: Checkpoint) -> Adapter:
    """Load one checkpoint, and refuse what the chosen engine cannot do before any work is done."""
    where = checkpoint_folder(checkpoint)
    stamps = weight_stamps(where)  # before loading: weights that change meanwhile then count as changed
    adapter = load_folder(where, dtype=config.dtype, device=config.device)
    adapter.provenance["weight_stamps"] = stamps
    if config.engine == "closed-form":
        adapter.readout(config.layer)  # refuses with the reason
    return adapter


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
        seen = Observer(selection, adapter.d_mlp) if is_last else None
        shards, are_kept = cut_contexts(adapter, selection, config.engine)
        kept = ShardStore(
            store.units(name), shard_identity(config, adapter, tokens), lambda: refuse_removed(store, config, tokens)
        )
        source = ShardedSource(adapter, selection, config.layer, held, shards, kept if are_kept else None)
        in_shards = StepShards(source, kept, seen)
        effects = layer_effects(
            source,
            engine=config.engine,
            reference=config.reference,
            memory=memory - held,
            seed=config.seed,
            capture_progress=capture_progress,
            effects_progress=effects_progress,
            observe=in_shards.observe,
            units=in_shards,
        )
    started = time.perf_counter()
    compared = compare_groups(config, source, effects.table)
    compared_at = time.perf_counter()
    phases = fit_rankings(effects.table, effects.context_sums, config.seed, config.definitions, is_last=is_last)
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
        "step": checkpoint.step,
        "model": adapter.provenance | ({"source": f"embedded series, step {name}"} if config.is_embedded_model else {}),
        "closed_form": asdict(adapter.closed_form),
        "engine": config.engine,
        "loss_rare": float(effects.token_loss[rare].mean()),
        "loss_common": float(effects.token_loss[~rare].mean()) if (~rare).any() else None,
        "audit": None if effects.audit is None else asdict(effects.audit),
        "timings": effects.timings | further,
        "rates": effects.rates,
    }
    refuse_removed(store, config, tokens)
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
        write_json(folder / WEIGHTS, weights_record(adapter))
        write_json(folder / "step.json", record | {"files": file_sums(folder)})
    remove(store.units(name))


def curve_table(curve: RankCurve, name: np.ndarray) -> pd.DataFrame:
    """The rank curve with everything that it holds per rank; columns are named as in the table of effects."""
    columns = {"rank": curve.rank, "neuron": name[curve.neuron]}
    columns |= {f.name: getattr(curve, f.name) for f in fields(curve) if f.name != "neuron"}
    table = pd.DataFrame({k: v for k, v in columns.items() if np.shape(v) == np.shape(curve.value)})
    return table.assign(index=curve.neuron).rename(columns={"value": "abs_delta_loss"})
