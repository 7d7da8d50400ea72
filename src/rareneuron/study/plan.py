"""Plans a study: which checkpoints to compute, and whether that is possible. No weights are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rareneuron.data.words import refuse_wordless, word_types
from rareneuron.embedded import SERIES
from rareneuron.errors import RunFolderError, TooFewNeurons
from rareneuron.maths.groups import remedy
from rareneuron.measure.capture import HELD
from rareneuron.measure.engines import kinds_to_try
from rareneuron.measure.engines.base import Asked, EngineKind, refuse_reference
from rareneuron.measure.identity import check_same_settings, check_same_weights
from rareneuron.measure.layers import layers_asked
from rareneuron.models.adapter import device_named
from rareneuron.models.anatomy import family_of, layer_index
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder, list_checkpoints, pin, select_steps
from rareneuron.models.hub import ModelFolder, is_local
from rareneuron.models.loading import parsed_config, read_config, read_header
from rareneuron.models.shape import ModelShape, model_shape
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.runs.config import AUTO, StudyConfig
from rareneuron.runs.files import damage, explaining
from rareneuron.runs.layout import CONTEXTS, LOCK, PARTIAL, TOKENS, UNIGRAMS, step_folder
from rareneuron.runs.store import RunStore
from rareneuron.study.counts import read_counts_file
from rareneuron.study.tokens import study_corpus

BEFORE_MANIFEST = {LOCK, TOKENS, CONTEXTS, UNIGRAMS}  # left by a study that was killed in its first stage
MODEL = "the model's own mean prediction over the text"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The checkpoints of a study, and which of them are finished."""

    config: StudyConfig
    checkpoints: tuple[Checkpoint, ...]
    last: ModelFolder  # config and tokenizer of the last checkpoint
    finished: tuple[str, ...]  # names of checkpoints that need no work
    damaged: tuple[str, ...]  # what was found wrong with others
    out: Path
    begun: bool = False  # the tokens are chosen
    engines: tuple[EngineKind, ...] = ()  # that may serve open checkpoints, the best one first

    @property
    def whose_counts(self) -> str:
        """What says how frequent a token is."""
        config = self.config
        if config.counts is not None:
            return config.counts
        if config.counts_from == "auto" and config.is_embedded_model:
            return "those of the training set, which come with the series"
        return {"corpus": "those of the text", "merges": "none, the order of the tokenizer's merges"}.get(
            config.counts_from, MODEL
        )

    @property
    def open(self) -> list[Checkpoint]:
        """Checkpoints to compute, the last one first, as most readers want it first; for a shard, only its own."""
        return [c for c in shard_checkpoints(self.config, self.checkpoints) if step_folder(c.step) not in self.finished]

    @property
    def n_workers(self) -> int:
        """How many checkpoints are computed at a time, at most those that are open. Local ones share the memory."""
        return max(1, min(self.config.workers, len(self.open)))

    @cached_property
    def shape(self) -> ModelShape:
        """The last checkpoint's shape, from its config."""
        return model_shape(self.last.folder, self.config.layer)


def shard_checkpoints(config: StudyConfig, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return every n-th checkpoint from the last one back; all of them if there is one shard."""
    i, n = config.part
    return list(reversed(checkpoints))[i - 1 :: n]


def plan_study(config: StudyConfig) -> Plan:
    """Plan a study: resolve checkpoints, find finished ones, refuse what can't be done. Writes nothing."""
    source = str(SERIES) if config.model is None else config.model
    device_named(config.device)
    series = list_checkpoints(source, config.revision, None if config.steps is None else "all")
    checkpoints = series if config.steps is None else select_steps(source, series, config.steps)
    last = checkpoint_folder(checkpoints[-1], weights=False)
    checkpoints[-1] = pin(checkpoints[-1], last)
    store = RunStore(config.run_folder)
    with explaining(store.root, "opening"):
        begun = is_begun(store)
        config = resolved(config, last.folder, store if begun else None)
        if begun:
            check_same_settings(store, config)
        mine = {step_folder(c.step) for c in shard_checkpoints(config, checkpoints)}  # other shards check their own
        found = {name: damage(store.step(name)) for name in store.finished_steps() if name in mine} if begun else {}
        finished = tuple(name for name, wrong in found.items() if wrong is None)
        if begun:
            whole = set(store.finished_steps()) - (found.keys() - set(finished))
            check_same_weights(store, [c for c in series if step_folder(c.step) in whole])
    wrong = tuple(str(error) for error in found.values() if error is not None)
    plan = Plan(
        config=config,
        checkpoints=tuple(checkpoints),
        last=last,
        finished=finished,
        damaged=wrong,
        out=store.root,
        begun=begun,
    )
    if plan.open:
        plan = replace(plan, engines=check_model(plan))
    if not begun:
        check_data(plan)
    return plan


def is_begun(store: RunStore) -> bool:
    """Return whether a run folder exists, to be continued; refuse a folder that holds something else."""
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


def resolved(config: StudyConfig, folder: Path, begun: RunStore | None) -> StudyConfig:
    """Return the settings with what was left to us decided: as the run has it, or as the layer needs it.

    The engine of a new study is decided when its model is loaded.
    """
    if begun is not None:
        theirs = begun.read_manifest().config
        left = {name: getattr(theirs, name) for name in ("engine", "reference") if getattr(config, name) == AUTO}
        return replace(config, **left)
    if config.reference != AUTO:
        return config
    if config.layer == -1:
        return replace(config, reference="analysed")
    n_layers = int(parsed_config(folder).num_hidden_layers)
    return replace(config, reference="analysed" if layer_index(config.layer, n_layers) == n_layers - 1 else "all")


def check_model(plan: Plan) -> tuple[EngineKind, ...]:
    """Return the engines that may serve; refuse missing or damaged weight files, and settings the model rules out."""
    for checkpoint in plan.open:
        if is_local(checkpoint.source):  # what lies on the Hub is fetched, and checked, when it is needed
            read_header(checkpoint_folder(checkpoint).folder)
    config, shape = plan.config, plan.shape
    layer_index(config.layer, shape.n_layers)
    if 3 * config.group_size > shape.d_mlp:
        raise TooFewNeurons(
            f"Three groups of {config.group_size} (boosting, suppressing, random) need {3 * config.group_size} "
            f"neurons, and the layer has {shape.d_mlp}. {remedy(shape.d_mlp // 3)} "
            "The option is --group-size."
        )
    sharing = plan.n_workers if config.executor == "local" else 1
    asked = Asked(
        shape=shape,
        family=family_of(read_config(plan.last.folder)),
        layer=layer_index(config.layer, shape.n_layers),
        memory=int((1 - HELD) * config.memory / sharing * 2**30),
        reference=config.reference,
        verify=float(config.verify),
    )
    refuse_reference(asked)
    layers_asked(config, shape.n_layers)  # refuses those that don't exist
    return kinds_to_try(config.engine, asked)


def check_data(plan: Plan) -> None:
    """Refuse a missing text, a vocabulary without words, or counts of another one, before anything is computed."""
    study_corpus(plan.config)
    reads_words = plan.config.words and not plan.config.is_embedded_model  # whose words are known
    tokenizer = load_tokenizer(plan.last.folder, None) if reads_words or plan.config.counts is not None else None
    if reads_words and tokenizer is not None:
        refuse_wordless(word_types(tokenizer, plan.shape.vocab), tokenizer)
    if plan.config.counts is not None:
        read_counts_file(Path(plan.config.counts), plan.shape.vocab, tokenizer)
