"""Examines whether every checkpoint of a series is what its name says: facts, hashes, losses and suspicions.

The losses are taken on a seeded sample of the embedded corpus, or of a given one: the same windows at every checkpoint,
so they differ by the weights alone. A checkpoint that can't be read is recorded, and the others are still examined.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from rareneuron.data.corpus import WindowStream, too_short
from rareneuron.data.texts import Corpus, open_corpus
from rareneuron.embedded import SERIES
from rareneuron.embedded.docstrings import analysis_texts
from rareneuron.errors import HubUnavailable, MissingText, RareNeuronError, UnreadableText
from rareneuron.models.adapter import load_folder
from rareneuron.models.checkpoints import Checkpoint, all_checkpoints, checkpoint_folder, label
from rareneuron.models.loss import mean_loss
from rareneuron.models.suspicions import CheckpointFacts, Suspicion, facts_from_record, suspicions, tensor_facts
from rareneuron.runs.files import read_json
from rareneuron.runs.layout import WEIGHTS, step_of
from rareneuron.runs.store import RunStore

CONTEXT_LENGTH = 64
N_CONTEXTS = 64
READ_CONTEXTS = 2_000  # from which the sample is drawn


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """The facts about the checkpoints of a series, in the order of steps, and what is suspicious."""

    checkpoints: tuple[CheckpointFacts, ...]
    suspicions: tuple[Suspicion, ...]
    text: str
    n_tokens: int  # over which losses were measured


def examine_series(
    model: str | None,
    revision: str | None = None,
    *,
    data: str | None = None,
    text_field: str = "text",
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> SeriesFacts:
    """Read every checkpoint, measure its loss, and compare them. From the Hub, all of them are downloaded."""
    checkpoints = all_checkpoints(str(SERIES) if model is None else model, revision)
    corpus = loss_text(data, text_field)
    windows: Int[np.ndarray, "context position"] | None = None
    found = []
    for checkpoint in checkpoints:
        progress(label(checkpoint))
        facts, windows = read_checkpoint(checkpoint, corpus, windows, seed)
        found.append(facts)
    return SeriesFacts(
        checkpoints=tuple(found),
        suspicions=tuple(suspicions(found)),
        text=corpus.name,
        n_tokens=0 if windows is None else windows[:, 1:].size,
    )


def loss_text(data: str | None, text_field: str) -> Corpus:
    """Return the text on which losses are measured."""
    if data is not None:
        return open_corpus(data, text_field=text_field)
    return Corpus(name="embedded corpus", description="docstrings of the standard library", read=analysis_texts)


def read_checkpoint(
    checkpoint: Checkpoint, corpus: Corpus, windows: Int[np.ndarray, "context position"] | None, seed: int
) -> tuple[CheckpointFacts, Int[np.ndarray, "context position"] | None]:
    """Return the facts of one checkpoint, and the windows; the first checkpoint that loads encodes them for all."""
    tensors, loss, why = {}, None, None
    try:
        where = checkpoint_folder(checkpoint)
        tensors = tensor_facts(where.folder)
        adapter = load_folder(where)
        windows = sample_windows(corpus, adapter.tokenizer, seed) if windows is None else windows
        loss = mean_loss(adapter.model, adapter.anatomy.token_ids(windows))
    except (MissingText, UnreadableText, HubUnavailable):  # the text's fault, not the checkpoint's
        raise
    except RareNeuronError as error:
        why = str(error)
    return (
        CheckpointFacts(step=checkpoint.step, name=label(checkpoint), tensors=tensors, loss=loss, error=why),
        windows,
    )


def sample_windows(corpus: Corpus, tokenizer: Any, seed: int) -> Int[np.ndarray, "context position"]:
    """Return a sample of windows from the beginning of a text."""
    read: list[np.ndarray] = []
    for block in WindowStream(corpus, tokenizer, CONTEXT_LENGTH):
        read.append(block)
        if sum(map(len, read)) >= READ_CONTEXTS:
            break
    if not read:
        raise too_short(corpus.name, CONTEXT_LENGTH, "Give more text (`--data`).")
    windows = np.concatenate(read)[:READ_CONTEXTS]
    chosen = np.random.default_rng(seed).permutation(len(windows))[:N_CONTEXTS]
    return windows[np.sort(chosen)]


def study_warnings(store: RunStore) -> list[str]:
    """Return warnings about the checkpoints that a study used, for its report.

    Losses are those of the analysed common targets. Steps written by older versions, which stored no tensor facts,
    are compared by their weights' hash alone.
    """
    found = []
    for name in store.finished_steps():
        record, file = store.read_step(name), store.step(name) / WEIGHTS
        whole = {"sha256": record.model.weights_sha256 or name, "shape": (), "norm": None, "n_bad": 0}
        tensors = read_json(file)["tensors"] if file.is_file() else {"weights": whole | {"constant": False}}
        loss = record.loss_rare if record.loss_common is None else record.loss_common
        found.append(facts_from_record(step_of(name), name, tensors, loss))
    # A study may leave steps out on purpose.
    return [suspicion.text for suspicion in suspicions(found) if suspicion.kind != "missing"]
