"""Checks that a run folder belongs to the study that is about to write to it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rareneuron.errors import RunFolderError
from rareneuron.measure.weights import changed_weights
from rareneuron.models.checkpoints import Checkpoint
from rareneuron.models.hub import split_revision
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import file_sum
from rareneuron.runs.layout import step_folder
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage, selection_digest

# Settings that needn't be part of a piece's name: digests of tokens and weights cover them, or they matter to later
# stages only.
SEEN_IN_TOKENS = {"data", "text_field", "max_corpus_tokens", "counts", "rarity", "percentile", "words", "n_tokens"}
SEEN_IN_TOKENS |= {"context_length", "counts_from", "per_context"}
SEEN_IN_WEIGHTS = {"model", "revision"}
DECIDE_LATER_STAGES = {"layers", "units", "verify", "definitions", "group_size", "n_random"}


def canonical_names(config: StudyConfig) -> dict[str, str | None]:
    """Return model, data and counts under one name each, so that `./m` and `/home/me/m` count as the same."""
    model, revision = config.model, config.revision
    if model is not None:
        model, revision = split_revision(model, revision)
    paths = {"model": model, "data": config.data, "counts": config.counts}
    there = {name: absolute_path(path) for name, path in paths.items() if path is not None and Path(path).exists()}
    return paths | there | {"revision": revision}


def absolute_path(path: str) -> str:
    """Return a path in full, with links resolved."""
    return str(Path(path).resolve())


def check_same_settings(store: RunStore, config: StudyConfig) -> None:
    """Refuse a run folder made with other settings: its finished checkpoints couldn't be compared with new ones."""
    manifest = store.read_manifest()
    before, now = manifest.config.identity() | manifest.resolved, config.identity() | canonical_names(config)
    differing = [
        f"{k}: {before.get(k)!r} there, {v!r} now"
        for k, v in now.items()
        # Data that have been removed since are compared by their path.
        if before.get(k) != v and not (isinstance(v, str) and before.get(k) == absolute_path(v))
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
                f"{counts} has changed since {store.root} was begun (SHA-256 {then} then, {content} now), and it "
                "decides what is rare. Restore it to continue the run, or choose another folder with --out."
            )


def check_same_weights(store: RunStore, finished: Iterable[Checkpoint]) -> None:
    """Refuse finished steps computed from other weights: the trajectory would mix two models."""
    for checkpoint in finished:
        name = step_folder(checkpoint.step)
        how = changed_weights(checkpoint, store.read_step(name).model)
        if how is not None:
            raise RunFolderError(
                f"Step {name} of {store.root} was computed from other weights: {how}, and results of both would be "
                f"mixed. Restore the checkpoint, or remove {store.step(name)} to compute it again (and the other steps "
                "if they changed too), or choose another folder with --out."
            )


def piece_identity(
    config: StudyConfig, *, layer: int, weights: str | None, tokens: str, frequency: str | None = None
) -> dict[str, Any]:
    """Return everything that the pieces of a checkpoint are computed from, except their contexts.

    Every setting that decides results belongs to it, unless it is listed above as making no difference here. `layer`
    counts from 0; `weights`, `tokens` and `frequency`, that of all types, are digests.
    """
    known = SEEN_IN_TOKENS | SEEN_IN_WEIGHTS | DECIDE_LATER_STAGES
    settings = {name: value for name, value in config.identity().items() if name not in known}
    return settings | {"layer": layer, "weights": weights, "tokens": tokens, "frequency": frequency}


def refuse_removed(store: RunStore, config: StudyConfig, tokens: TokenStage) -> None:
    """Refuse to write to a folder that was removed, or that another study has taken since."""
    if not store.manifest.is_file():
        raise RunFolderError(
            f"{store.root} was removed or lost its run.json while the study was at work, so there is nowhere to put "
            "the checkpoint at hand. Run the same command again: everything that still exists is kept."
        )
    check_same_settings(store, config)
    if store.read_manifest().data.sha256 != selection_digest(tokens.selection):
        raise RunFolderError(
            f"{store.root} has other tokens now than when this study began: another one has taken its place. Run the "
            "same command again, or choose another folder with --out."
        )
