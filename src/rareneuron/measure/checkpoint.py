"""Computes one checkpoint of a study and puts it in place, whole or not at all.

It takes the run folder and the settings, with tokens chosen before, and gives a folder in `steps/`. It can be repeated:
finished checkpoints are left alone, damaged ones are computed again, and a checkpoint gives the same numbers in any
process, at any time. So checkpoints can be computed in turn, by local processes or on a cluster (`study.workers`).
A lock on each keeps two processes from the same one. Oracle: tests/study/test_crash.py, an undisturbed run.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareneuron.errors import RareNeuronError, Unavailable
from rareneuron.maths.rank_curve import RankCurve, rank_curve
from rareneuron.measure.capture import HELD
from rareneuron.measure.effects import LayerEffects, layer_effects
from rareneuron.measure.engines import engine_kind
from rareneuron.measure.engines.gradient import GRADIENT
from rareneuron.measure.experiments import experiments
from rareneuron.measure.gradient_check import gradient_check
from rareneuron.measure.groups import compare_groups
from rareneuron.measure.identity import piece_identity, refuse_removed
from rareneuron.measure.kinds import with_kinds
from rareneuron.measure.layer_units import LayersWork
from rareneuron.measure.layers import measure_layers, wanted_sites
from rareneuron.measure.neurons import Observer, explore
from rareneuron.measure.pieces import CapturedPieces, PieceStore, StepPieces, cut_contexts
from rareneuron.measure.routing import RoutingWork, routing
from rareneuron.measure.sums import OF_MECHANISM
from rareneuron.measure.weights import weight_stamps, weights_record
from rareneuron.models.adapter import Adapter, load_folder
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder
from rareneuron.progress import progress_bar
from rareneuron.runs.config import AUTO, StudyConfig
from rareneuron.runs.experiments import write_experiments
from rareneuron.runs.files import damage, digest, file_sums, remove, replacing, write_json, write_table, write_tensors
from rareneuron.runs.groups import ComparedGroups, write_groups
from rareneuron.runs.layers import Layers, write_layers
from rareneuron.runs.layout import (
    CONTEXT_SUMS,
    EFFECTS,
    RANK_CURVE,
    STEP_RECORD,
    TOKEN_LOSS,
    WEIGHTS,
    step_folder,
)
from rareneuron.runs.neurons import Explorer, write_explorer
from rareneuron.runs.options import with_option
from rareneuron.runs.rankings import Found, Ranking, fit_rankings, write_phases
from rareneuron.runs.records import ClosedFormRecord, ModelRecord, StepRecord, as_json
from rareneuron.runs.routing import Routing, write_routing
from rareneuron.runs.seeds import generator
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage, load_tokens, selection_digest


def compute_checkpoint(
    store: RunStore,
    config: StudyConfig,
    checkpoint: Checkpoint,
    *,
    is_last: bool,
    tokens: TokenStage | None = None,
    adapter: Adapter | None = None,
    progress: bool = False,
) -> None:
    """Compute one checkpoint into its folder, unless it is there and whole; tokens are read if not given."""
    tokens = tokens or load_tokens(store)
    refuse_removed(store, config, tokens)
    name = step_folder(checkpoint.step)
    with store.step_locked(name):
        if store.step(name).is_dir() and damage(store.step(name)) is None:
            remove(store.pieces(name))
            return  # another process has computed it meanwhile
        measure_checkpoint(
            Measurement(
                store=store,
                config=config,
                checkpoint=checkpoint,
                adapter=adapter or load_checkpoint(config, checkpoint),
                tokens=tokens,
                is_last=is_last,
                progress=progress,
            )
        )


def load_checkpoint(config: StudyConfig, checkpoint: Checkpoint) -> Adapter:
    """Load one checkpoint; refuse a model that the chosen engine can't handle before any work is done."""
    adapter = load_weights(config, checkpoint)
    if config.engine != AUTO:  # otherwise what serves this model is yet to be decided
        engine_kind(config.engine).refuse_model(adapter, config.layer)
    return adapter


def load_weights(config: StudyConfig, checkpoint: Checkpoint) -> Adapter:
    """Load one checkpoint, and keep what tells whether its files change later."""
    where = checkpoint_folder(checkpoint)
    stamps = weight_stamps(where)  # before loading: weights that change meanwhile then count as changed
    adapter = load_folder(where, dtype=config.dtype, device=config.device)
    adapter.provenance["weight_stamps"] = stamps
    return adapter


class Measurement:
    """One checkpoint while it is measured: its inputs, and the results of the stages so far."""

    def __init__(
        self,
        *,
        store: RunStore,
        config: StudyConfig,
        checkpoint: Checkpoint,
        adapter: Adapter,
        tokens: TokenStage,
        is_last: bool,
        progress: bool,
    ) -> None:
        self.store, self.config, self.checkpoint, self.adapter = store, config, checkpoint, adapter
        self.tokens, self.is_last, self.progress = tokens, is_last, progress
        self.name = step_folder(checkpoint.step)
        self.selection = tokens.selection
        memory = int(config.memory * 2**30)
        self.held_bytes = int(HELD * memory)  # of captured tokens
        self.engine_bytes = memory - self.held_bytes
        self.kind = engine_kind(config.engine)
        self.layer = config.layer % adapter.n_layers
        self.observer = Observer(self.selection, adapter.n_neurons(self.layer)) if is_last else None
        pieces, are_kept = cut_contexts(adapter, self.selection, self.layer, self.kind)
        identity = piece_identity(
            config,
            layer=self.layer,
            weights=adapter.provenance["weights_sha256"],
            tokens=selection_digest(tokens.selection),
            frequency=None if tokens.log_frequency is None else digest({"f": tokens.log_frequency}),
        )
        self.kept = PieceStore(store.pieces(self.name), identity, self.check)
        self.source = CapturedPieces(
            adapter,
            self.selection,
            self.layer,
            memory=self.held_bytes,
            pieces=pieces,
            kept=self.kept if are_kept else None,
            whole=config.reference == "all",
        )
        self.found: dict[str, Any] = {}  # by stage

    def check(self) -> None:
        """Refuse to go on where the run folder is no longer this study's."""
        refuse_removed(self.store, self.config, self.tokens)

    @property
    def effects(self) -> LayerEffects:
        """The result of the stage `effects`."""
        return self.found["effects"]

    @property
    def groups(self) -> ComparedGroups:
        """The result of the stage `groups`."""
        return self.found["groups"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a checkpoint's results, computed from the results of the stages above it."""

    name: str  # of its seconds in step.json
    compute: Callable[[Measurement], Any]
    write: Callable[[Path, Measurement, Any], None]
    at_last: bool = False  # of the last planned checkpoint only
    asked: Callable[[StudyConfig], bool] = lambda config: True


def measure_checkpoint(work: Measurement) -> None:
    """Run all stages, then put the results in place as one folder, which exists only when complete."""
    stages = [stage for stage in STAGES if stage.asked(work.config) and (work.is_last or not stage.at_last)]
    timings: dict[str, float] = {}
    for stage in stages:
        started = time.perf_counter()
        work.found[stage.name] = stage.compute(work)
        timings[stage.name] = time.perf_counter() - started
    work.check()
    with replacing(work.store.step(work.name)) as folder:
        folder.mkdir()
        for stage in stages:
            stage.write(folder, work, work.found[stage.name])
        record = step_record(work, timings | work.effects.timings, file_sums(folder))
        write_json(folder / STEP_RECORD, as_json(record))
    remove(work.store.pieces(work.name))


def compute_effects(work: Measurement) -> LayerEffects:
    """Compute every neuron's effect piece by piece, and show progress."""
    pieces, label = StepPieces(work.source, work.kept, work.observer), f"step {work.name}"
    with (
        progress_bar(f"{label} capture", len(work.selection.windows), "context", show=work.progress) as capturing,
        progress_bar(f"{label} effects", len(work.selection.context), "token", show=work.progress) as ablating,
    ):
        found = layer_effects(
            work.source,
            work.kind,
            pieces,
            reference=work.config.reference,
            memory=work.engine_bytes,
            verify=float(work.config.verify),
            seed=work.config.seed,
            log_frequency=work.tokens.log_frequency,
            capture_progress=capturing.update,
            effects_progress=ablating.update,
            observe=pieces.observe,
        )
    return replace(found, table=with_kinds(found.table, work.adapter, work.layer, work.tokens.log_frequency))


def write_effects(folder: Path, work: Measurement, effects: LayerEffects) -> None:
    """Write the table of effects with each neuron's role, the rank curve, sums per context and clean losses."""
    role = np.full(len(effects.table), "other", dtype=object)
    for name, neurons in work.groups.role.items():
        role[neurons] = name
    write_table(folder / EFFECTS, effects.table.assign(role=role))
    curve = rank_curve(effects.table["abs_delta_loss"].to_numpy())
    write_table(folder / RANK_CURVE, curve_table(curve, effects.table["neuron"].to_numpy()))
    # Claims about mechanisms are judged at the last checkpoint; elsewhere their sums would double a run's size.
    of_mechanism = () if work.is_last else {f"{kind}{name}" for kind in ("", "common_") for name in OF_MECHANISM}
    kept = {name: sums for name, sums in effects.context_sums.items() if name not in of_mechanism}
    write_tensors(folder / CONTEXT_SUMS, kept)
    write_tensors(folder / TOKEN_LOSS, {"loss": effects.token_loss})


def compute_phases(work: Measurement) -> dict[Ranking, Found | Unavailable]:
    """Fit the phases of every ranking."""
    effects, config = work.effects, work.config
    return fit_rankings(effects.table, effects.context_sums, config.seed, config.definitions, is_last=work.is_last)


def compute_experiments(work: Measurement) -> dict[str, np.ndarray] | Unavailable:
    """Ablate whole groups at once."""
    return experiments(work.source, work.effects.table, work.groups.groups, work.engine_bytes, work.config.seed)


def compute_neurons(work: Measurement) -> Explorer:
    """Gather the details of neurons that the explorer of the report shows."""
    assert work.observer is not None, "the last checkpoint is observed"
    return explore(work.source, work.observer, work.effects.table, memory=work.engine_bytes)


def compute_routing(work: Measurement) -> Routing | Unavailable:
    """Measure what heads of earlier layers write to the neurons, in the contexts of the experiments."""
    experimented, groups = work.found["experiments"], work.groups.groups
    if isinstance(groups, RareNeuronError):
        return Unavailable(with_option(groups))
    if isinstance(experimented, Unavailable):
        return Unavailable(f"The groups are judged in the contexts of the experiments. {experimented.why}")
    return routing(
        RoutingWork(
            adapter=work.adapter,
            selection=work.selection,
            layer=work.layer,
            groups=groups,
            judging=np.unique(experimented["context"]),
            seed=work.config.seed,
            memory=work.engine_bytes,
            bar=lambda part, total, unit: progress_bar(f"step {work.name} {part}", total, unit, show=work.progress),
        )
    )


def compute_layers(work: Measurement) -> Layers:
    """Estimate and verify the units of other layers, and show progress."""
    adapter, selection = work.adapter, work.selection
    sites = wanted_sites(adapter, work.config)
    pieces, _ = cut_contexts(adapter, selection, 0, GRADIENT)
    label = f"step {work.name}"
    # Before the bars, whose first guess would take its time for that of the first tokens.
    check = gradient_check(adapter, selection, generator(work.config.seed, "layers", "check"), work.engine_bytes)
    with (
        progress_bar(f"{label} layers", len(selection.context), "token", show=work.progress) as estimating,
        progress_bar(f"{label} verification", 0, "cell", show=work.progress) as verifying,
    ):
        return measure_layers(
            LayersWork(
                adapter=adapter,
                selection=selection,
                sites=sites,
                memory=work.engine_bytes,
                verify=float(work.config.verify),
                seed=work.config.seed,
                store=replace(work.kept, identity={**work.kept.identity, "sites": [s.name(0) for s in sites]}),
                pieces=pieces,
            ),
            check,
            estimating=estimating.update,
            verifying=verifying.update,
        )


STAGES = (
    Stage(name="effects", compute=compute_effects, write=write_effects),
    Stage(
        name="groups",
        compute=lambda work: compare_groups(work.config, work.source, work.effects.table, work.is_last),
        write=lambda folder, _, found: write_groups(folder, found),
    ),
    Stage(
        name="layers",
        compute=compute_layers,
        write=lambda folder, _, found: write_layers(folder, found),
        asked=lambda config: config.layers is not None,
    ),
    Stage(
        name="phases",
        compute=compute_phases,
        write=lambda folder, work, found: write_phases(folder, found, work.config.definitions),
    ),
    Stage(
        name="experiments",
        compute=compute_experiments,
        write=lambda folder, _, found: write_experiments(folder, found),
        at_last=True,
    ),
    Stage(
        name="routing",
        compute=compute_routing,
        write=lambda folder, _, found: write_routing(folder, found),
        at_last=True,
        asked=lambda config: config.layers is not None,
    ),
    Stage(
        name="neurons",
        compute=compute_neurons,
        write=lambda folder, _, found: write_explorer(folder, found),
        at_last=True,
    ),
    Stage(
        name="weights",
        compute=lambda work: weights_record(work.adapter),
        write=lambda folder, _, found: write_json(folder / WEIGHTS, found),
    ),
)


def step_record(work: Measurement, timings: dict[str, float], files: dict[str, str]) -> StepRecord:
    """Return the record for `step.json`: model, losses, audit, seconds."""
    effects, rare, adapter = work.effects, work.selection.rare, work.adapter
    embedded = {"source": f"embedded series, step {work.name}"} if work.config.is_embedded_model else {}
    return StepRecord(
        step=work.checkpoint.step,
        model=ModelRecord(**adapter.provenance | embedded),
        closed_form=ClosedFormRecord(**asdict(adapter.closed_form)),
        engine=work.kind.name,
        loss_rare=float(effects.token_loss[rare].mean()),
        loss_common=float(effects.token_loss[~rare].mean()) if (~rare).any() else None,
        audit=effects.audit,
        gauge=adapter.gauge(work.layer),
        timings=timings,
        rates=effects.rates,
        files=files,
    )


def curve_table(curve: RankCurve, name: np.ndarray) -> pd.DataFrame:
    """Return a rank curve as a table, one row per rank; columns are named as in the table of effects."""
    columns = {"rank": curve.rank, "neuron": name[curve.neuron]}
    columns |= {f.name: getattr(curve, f.name) for f in fields(curve) if f.name != "neuron"}
    table = pd.DataFrame({k: v for k, v in columns.items() if np.shape(v) == np.shape(curve.value)})
    return table.assign(index=curve.neuron).rename(columns={"value": "abs_delta_loss"})
