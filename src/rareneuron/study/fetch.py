"""Downloads weights, config and tokenizer of each checkpoint, so that a study runs with the network off.

Files go to the Hub's cache (HF_HOME) and are compared with the Hub's hashes. Files that are there already are kept, so
the same command continues; a checkpoint that can't be fetched doesn't stop the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rareneuron.errors import InvalidConfig, ModelNotFound, RareNeuronError
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder, label, list_checkpoints
from rareneuron.models.hub import is_local, split_revision
from rareneuron.models.loading import read_config, read_header
from rareneuron.models.packaged import PACKAGED, fetch_packaged
from rareneuron.models.shape import model_shape
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.study.counts import read_counts_file


@dataclass(frozen=True, kw_only=True)
class FetchedCheckpoint:
    """A complete checkpoint on this machine."""

    step: int | None
    checkpoint: str
    commit: str | None
    folder: Path
    n_bytes: int


def fetch(
    model: str,
    revision: str | None = None,
    steps: str | Iterable[int] | None = None,
    *,
    counts: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[FetchedCheckpoint, ...]:
    """Download the checkpoints that a study with the same arguments would load, and check that it could use them.

    `counts` is a file on this machine; it is checked against the model's vocabulary while there is still a network from
    which to get another one.
    """
    name, _ = split_revision(model, revision)
    if name in PACKAGED:
        return (fetch_one_packaged(name, steps, counts),)
    if is_local(name):
        raise InvalidConfig(
            f"{name} is a folder on this machine, so there is nothing to fetch. Study it as it is, or give a Hub id "
            "such as `EleutherAI/pythia-70m`."
        )
    checkpoints = list_checkpoints(model, revision, steps)
    found, failed = [], {}
    for checkpoint in checkpoints:
        progress(label(checkpoint))
        try:
            found.append(fetch_checkpoint(checkpoint))
        except RareNeuronError as error:
            if len(checkpoints) == 1:
                raise
            failed[label(checkpoint)] = str(error)
    if failed:
        listed = " ".join(f"{name}: {why}" for name, why in failed.items())
        how_many = (
            f"{len(failed)} of {len(checkpoints)} checkpoints could not be fetched; the others are here, and the"
            if found
            else f"None of the {len(checkpoints)} checkpoints could be fetched. The"
        )
        raise ModelNotFound(f"{how_many} same command tries again only what is missing. {listed}")
    if counts is not None:
        refuse_other_counts(found[-1].folder, counts)
    return tuple(found)


def fetch_one_packaged(name: str, steps: object, counts: Path | None) -> FetchedCheckpoint:
    """Download and convert a packaged model, unless it is here."""
    if steps is not None:
        raise InvalidConfig(f"{name} is one packaged model, not a series, so it has no steps. Leave --steps out.")
    folder = fetch_packaged(name)
    if counts is not None:
        refuse_other_counts(folder, counts)
    return FetchedCheckpoint(
        step=None,
        checkpoint=f"{name} ({PACKAGED[name].about}, {PACKAGED[name].licence}, from {PACKAGED[name].requirement})",
        commit=None,
        folder=folder,
        n_bytes=read_header(folder).n_bytes,
    )


def fetch_checkpoint(checkpoint: Checkpoint) -> FetchedCheckpoint:
    """Download one checkpoint, and read its config and the headers of its weights."""
    where = checkpoint_folder(checkpoint)
    read_config(where.folder)
    header = read_header(where.folder)
    return FetchedCheckpoint(
        step=checkpoint.step,
        checkpoint=label(checkpoint),
        commit=where.commit,
        folder=where.folder,
        n_bytes=header.n_bytes,
    )


def refuse_other_counts(folder: Path, counts: Path) -> None:
    """Refuse counts that a study of the model in this folder would refuse."""
    tokenizer = load_tokenizer(folder, None)
    read_counts_file(counts, model_shape(folder).vocab, tokenizer)
