"""Whether a run folder and the work at hand are of the same study."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rareneuron.errors import RunFolderError
from rareneuron.measure.weights import changed_weights
from rareneuron.models.adapter import Adapter
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.hub import split_revision
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import file_sum
from rareneuron.runs.layout import UNKNOWN_STEP_NAME
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage, selection_digest

# Settings that the pieces of a checkpoint needn't be named by: digests of tokens and weights say more, or they matter
# to later stages alone.
SEEN_IN_TOKENS = {"data", "text_field", "max_corpus_tokens", "counts", "rarity", "percentile", "words", "n_tokens"}
SEEN_IN_TOKENS |= {"context_length", "counts_from"}
SEEN_IN_WEIGHTS = {"model", "revision"}
DECIDE_LATER_STAGES = {"definitions", "group_size", "n_random"}


def step_name(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint's folder in the run."""
    return UNKNOWN_STEP_NAME if checkpoint.step is None else str(checkpoint.step)


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
    before, now = manifest.config.identity() | manifest.resolved, config.identity() | resolved(config)
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
        then, content = manifest.data.counts.sha256, file_sum(Path(counts))
        if then != content:
            raise RunFolderError(
                f"{counts} has changed since {store.root} was begun (SHA-256 {then} then, {content} now), and what is "
                "rare was decided by it. Restore it to continue the run, or choose another folder with --out."
            )


def check_same_weights(store: RunStore, finished: Iterable[Checkpoint]) -> None:
    """Finished steps of other weights are refused: what is computed now would be followed from another model's."""
    for checkpoint in finished:
        name = step_name(checkpoint)
        how = changed_weights(checkpoint, store.read_step(name).model)
        if how is not None:
            raise RunFolderError(
                f"Step {name} of {store.root} was computed from other weights: {how}, and results of both would be "
                f"mixed. Restore the checkpoint, or remove {store.step(name)} to compute it again (and the other steps "
                "if they changed too), or choose another folder with --out."
            )


def piece_identity(config: StudyConfig, adapter: Adapter, tokens: TokenStage) -> dict[str, Any]:
    """Return what the pieces of a checkpoint are computed from, but for their contexts.

    Every setting that decides results belongs to it, unless it is known otherwise to make no difference here.
    """
    known = SEEN_IN_TOKENS | SEEN_IN_WEIGHTS | DECIDE_LATER_STAGES
    settings = {name: value for name, value in config.identity().items() if name not in known}
    return settings | {
        "layer": config.layer % adapter.n_layers,
        "weights": adapter.provenance["weights_sha256"],
        "tokens": selection_digest(tokens.selection),
    }


def refuse_removed(store: RunStore, config: StudyConfig, tokens: TokenStage) -> None:
    """Results must not go to a folder that was removed, or that another study has begun since."""
    if not store.manifest.is_file():
        raise RunFolderError(
            f"{store.root} was removed or lost its run.json while the study was at work, so there is nowhere to put "
            "the checkpoint at hand. Run the same command again: what is still there is kept."
        )
    check_same_settings(store, config)
    if store.read_manifest().data.sha256 != selection_digest(tokens.selection):
        raise RunFolderError(
            f"{store.root} has other tokens now than when this study began: another one has taken its place. Run the "
            "same command again, or choose another folder with --out."
        )
